"""`needle collect` without its command line and without torch, for the tests that start it, kill it and start it again.

python -m tests.collecting FOLDER URL RECORDS BUDGET_USD
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from needle.collect.catalogue import read_catalogue
from needle.collect.money import Price
from needle.collect.pipeline import Collection
from needle.collect.run import finish, run
from needle.collect.services.gemini import Gemini
from needle.collect.settings import CollectConfig
from needle.collect.verify import Case
from tests.gemini_server import PRICE

MODEL, KEY = "gemini-3.5-flash-lite", "a-key-that-nobody-may-see"


async def collect(
    folder: Path,
    url: str,
    config: CollectConfig,
    tools: Path | None = None,
    requests: Sequence[Case] = (),
    timeout: float = 5.0,
    key: str = KEY,
) -> tuple[str | None, dict[str, Any]]:
    """Why it stopped, if it did, and the manifest."""
    collection = Collection(config, read_catalogue(tools)[0], MODEL, Price(*PRICE), requests)
    said: list[str] = []
    stopped, known = await run(collection, lambda: Gemini(MODEL, key, url, timeout), folder, said.append)
    manifest = finish(folder, config, collection.price, "gemini", "as a test", known, "A test")
    return stopped, {**manifest, "said": said}


if __name__ == "__main__":
    where, address, records, budget = sys.argv[1:]
    reason, _ = asyncio.run(
        collect(Path(where), address, CollectConfig(records=int(records), budget_usd=float(budget), concurrency=32))
    )
    print(reason or "finished", flush=True)
