"""How fast the data engine is, and how much memory it takes, against a loopback server that answers at once.

    python -m experiments.bench_collect.bench --output experiments/bench_collect/results.json

`send` sends the same labelling request under different numbers, 200 in flight, with ledger and budget as in a
real run; each size in a process of its own, so that its peak memory is its own. `run` is a whole `needle collect` of so
many records.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from needle.collect.asks import label_ask
from needle.collect.books import Books
from needle.collect.catalogue import read_catalogue
from needle.collect.money import DOLLAR, Price
from needle.collect.pace import Pace
from needle.collect.plan import Planner
from needle.collect.send import Sender
from needle.collect.services.gemini import Gemini
from needle.collect.services.hosted import Ask
from needle.collect.settings import CollectConfig
from tests.collecting import KEY, MODEL, collect
from tests.gemini_server import PRICE

IN_FLIGHT = 200


def asks(count: int) -> Iterator[Ask]:
    planner = Planner(read_catalogue(None)[0], frozenset(), 0, ["en"], 10)
    items = [planner.item(number) for number in range(50)]
    for number in range(count):
        yield replace(
            label_ask(f"please do the usual thing for customer {number} today", items[number % 50].tools, MODEL),
            sample=number,
        )


async def send(folder: Path, url: str, count: int) -> dict[str, Any]:
    async with Books(folder, 1000 * DOLLAR) as books:
        teacher, pace = Gemini(MODEL, KEY, url, connections=IN_FLIGHT), Pace(IN_FLIGHT)
        pace.limit = float(IN_FLIGHT)
        started, cpu = time.perf_counter(), time.process_time()
        await Sender(teacher, books, pace, Price(*PRICE)).all(asks(count))
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        await teacher.close()
        states = books.ledger.states()
    return {
        "requests": count,
        "seconds": round(seconds, 2),
        "per_second": round(count / seconds, 1),
        "cpu_ms": round(1000 * cpu / count, 2),
        "states": dict(states),
    }


async def whole(folder: Path, url: str, count: int) -> dict[str, Any]:
    started = time.perf_counter()
    _, manifest = await collect(folder, url, CollectConfig(records=count, concurrency=IN_FLIGHT))
    seconds = time.perf_counter() - started
    return {
        "records": manifest["records"],
        "requests": sum(manifest["requests"].values()),
        "seconds": round(seconds, 1),
        "records_per_second": round(manifest["records"] / seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", nargs=3, metavar=("WHAT", "URL", "COUNT"), help="one measurement, in this process")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--records", type=int, nargs="+", default=[2_000, 20_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("outputs/bench_collect.json"))
    options = parser.parse_args()
    if options.one:
        what, url, count = options.one
        with tempfile.TemporaryDirectory() as folder:
            row = asyncio.run({"send": send, "run": whole}[what](Path(folder), url, int(count)))
        print(
            json.dumps(
                {"what": what, **row, "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)}
            ),
            flush=True,
        )
        return
    rows = []
    work = (
        [("send", options.sizes[0])] * (options.rounds - 1)
        + [("send", size) for size in options.sizes]
        + [("run", count) for count in options.records]
    )
    for what, count in work:
        server = subprocess.Popen([sys.executable, "-m", "tests.gemini_server"], stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        done = subprocess.run(
            [sys.executable, "-m", "experiments.bench_collect.bench", "--one", what, url, str(count)],
            capture_output=True,
            text=True,
            check=True,
        )
        server.kill()
        rows.append(json.loads(done.stdout))
        print(json.dumps(rows[-1]), flush=True)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
