"""The picture of the house is that of the code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_picture_in_the_docs_is_drawn_from_this_code() -> None:
    subprocess.run([sys.executable, str(ROOT / "docs" / "house.py"), "--check"], check=True)


def test_every_arrow_points_down_and_there_is_no_circle() -> None:
    said = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "house.py"), "--figures"], check=True, capture_output=True, text=True
    ).stdout
    found = dict(line.rsplit(maxsplit=1) for line in said.splitlines() if line)
    assert found["upward arrows"] == found["rooms in a circle"] == "0"
