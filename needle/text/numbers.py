"""Numbers as people write them in a request: `10,000`, `3,5`, `2E6`."""

from __future__ import annotations

import json
import re

PLAIN = r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?|-?\.[0-9]+"
THOUSANDS = r"-?[1-9][0-9]{0,2}(,[0-9]{3})+(\.[0-9]+)?"
DECIMAL_COMMA = "-?[0-9]+,[0-9]{1,2}"


def read_number(text: str) -> int | float:
    """Reads JSON's numbers, `10,000`, `3,5`, `.5`, `007` and `2E6`. Raises `ValueError`."""
    if not re.fullmatch(f"{THOUSANDS}|{DECIMAL_COMMA}|{PLAIN}", text):
        raise ValueError(f"{text!r} isn't a number")
    plain = text.replace(",", "." if re.fullmatch(DECIMAL_COMMA, text) else "")
    return float(plain) if re.search("[.eE]", plain) else int(plain)


def number_texts(value: float) -> list[str]:
    """How a request may have this number, JSON's way first; all are read back as this value."""
    texts = [json.dumps(value)]
    if abs(value) >= 1000 and re.fullmatch(THOUSANDS, f"{value:,}"):
        texts.append(f"{value:,}")
    if re.fullmatch(DECIMAL_COMMA, other := texts[0].replace(".", ",")):
        texts.append(other)
    return texts
