"""One `needle collect`: its settings, the consent, the run, the export."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from needle.collect.books import Books
from needle.collect.catalogue import Declared
from needle.collect.dedupe import Seen
from needle.collect.export import export
from needle.collect.ledger import Ledger
from needle.collect.money import DOLLAR, Price
from needle.collect.pace import Pace
from needle.collect.pipeline import Collection, judge_traffic, mark_duplicates, wave_rows, write_wave
from needle.collect.send import Batcher, RunStopped, Sender
from needle.collect.services.hosted import HostedTeacher
from needle.collect.settings import CollectConfig
from needle.collect.verify import Case
from needle.collect.workers import Workers
from needle.engine.bm25 import Bm25Retriever
from needle.text.declarations import read_tools
from needle.text.formats import Skipped, read_records
from needle.text.records import DataError, Tool, parse_line, read_lines, text_field

Say = Callable[[str], None]
EVERY = 5.0  # seconds between lines of progress
CONFIRMED = "confirmed.json"


def read_requests(
    path: Path, sources: Sequence[Declared], max_tools: int, language: str, left_out: Counter[str] | None = None
) -> list[Case]:
    """Real requests: lines of JSON with `query`, and `tools` where a request has its own, or plain lines of text.

    A tool that can't be read is left out, and counted in `left_out` by reason. A request without tools is offered the
    catalogue's; of a large one those that share most words with it.

    Raises:
        DataError: a line that can't be read, with file and number.
    """
    tools = [source.tool for source in sources]
    words = Bm25Retriever()
    found = []
    for number, line in read_lines(path):
        try:
            row = parse_line(line) if path.suffix != ".txt" else {"query": line.strip()}
            if not isinstance(row, Mapping):
                raise DataError("expected an object with 'query'")
            query = text_field(row, "query")
            read = read_tools(row["tools"], "tools") if row.get("tools") else None
            own: tuple[Tool, ...] = read.tools if read else ()
            if read and left_out is not None:
                left_out.update(f"a tool that can't be read: {tool.reason.partition(': ')[2]}" for tool in read.skipped)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
        if not own:
            own = tuple(
                tools if len(tools) <= max_tools else [tools[index] for index in words.rank(query, tools)[:max_tools]]
            )
        found.append(Case(str(row.get("id", f"{path.stem}-{number}")), query, own, language))
    if len({source.id for source in found}) < len(found):
        raise DataError(f"{path}: two requests have the same id")
    return found


def confirmed(folder: Path, config: CollectConfig) -> bool:
    """Whether somebody has agreed to this run before, with no smaller budget."""
    path = folder / CONFIRMED
    if not path.exists():
        return False
    before = json.loads(path.read_text(encoding="utf-8"))
    budget = before["budget_usd"]
    return bool(
        before["records"] >= config.records
        and (budget is None or (config.budget_usd is not None and config.budget_usd <= budget))
    )


def confirm(folder: Path, config: CollectConfig) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIRMED).write_text(
        json.dumps({"budget_usd": config.budget_usd, "records": config.records}), encoding="utf-8"
    )


async def run(
    collection: Collection, make: Callable[[], HostedTeacher], folder: Path, say: Say
) -> tuple[str | None, dict[str, Any]]:
    """Asks, judges and stores until there are enough records. Why it stopped before, or None; and what it cost.

    `make` builds the teacher, inside the event loop that its connections belong to.
    """
    config = collection.config
    budget = None if config.budget_usd is None else round(config.budget_usd * DOLLAR)
    async with Books(folder, budget) as books:
        for note in books.notes[:10]:
            say(f"found: {note}")
        teacher = make()
        collection.read = teacher.read
        sender = Sender(teacher, books, Pace.of(config), collection.price, config.attempts)
        way = Batcher(sender, config.batch_size, config.poll) if config.mode == "batch" else sender
        loop = asyncio.get_running_loop()
        _on_interrupt(loop, sender, say)
        ticker = asyncio.create_task(_progress(collection, sender, books, say))
        stopped = None
        try:
            with Workers(config.engine, config.processes) as workers:
                await collection.prepare(way, books)
                if collection.logprobs != config.logprobs:
                    say(f"{collection.model} gives no log-probabilities; going on without them")
                await collection.waves(way, books, workers, say)
        except RunStopped as reason:
            stopped = str(reason)
        finally:
            ticker.cancel()
            await teacher.close()
        return stopped, facts(books.ledger)


def facts(ledger: Ledger) -> dict[str, Any]:
    """What the book says of a run: money, requests, everything that went wrong."""
    charged, reserved = ledger.money()
    return {
        "dollars": charged / DOLLAR,
        "dollars_reserved": reserved / DOLLAR,
        "dollars_by_purpose": {purpose: cost / DOLLAR for purpose, cost in sorted(ledger.spent_on().items())},
        "requests": dict(sorted(ledger.states().items())),
        "events": dict(sorted(ledger.events().items())),
    }


def finish(
    folder: Path,
    config: CollectConfig,
    price: Price | None,
    teacher: str,
    method: str,
    known: Mapping[str, Any],
    title: str,
) -> dict[str, Any]:
    """Writes everything that a run leaves; the manifest."""
    more = {"price_usd_per_million": {"input": price.input / 1000, "output": price.output / 1000}} if price else {}
    about = {"title": title, "teacher": teacher, "method": method, "config": asdict(config), **more, **known}
    return export(wave_rows(folder), folder, about)


def take_traffic(path: Path, folder: Path, config: CollectConfig) -> tuple[int, list[str]]:
    """Judges logged calls as one wave; how many records there were, and the lines that couldn't be read."""
    skipped = Skipped()
    rows = [judged.to_json() for judged in judge_traffic(read_records(path, "auto", skipped), config.languages[0])]
    (folder / "waves").mkdir(parents=True, exist_ok=True)
    with Seen(folder / "seen.sqlite", config.phrasings) as seen, Workers(config.engine, config.processes) as workers:
        mark_duplicates(rows, seen, workers)
    for old in (folder / "waves").glob("*.jsonl.gz"):
        old.unlink()
    write_wave(folder / "waves" / "00000.jsonl.gz", "traffic", rows)
    return len(rows), skipped.messages


def _on_interrupt(loop: asyncio.AbstractEventLoop, sender: Sender, say: Say) -> None:
    """The first Ctrl-C lets what is under way come to its end, the second doesn't wait."""

    def stop() -> None:
        say("stopping: waiting for the answers that are under way (Ctrl-C again doesn't wait)")
        sender.stop("interrupted; the same command goes on")
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, stop)


async def _progress(collection: Collection, sender: Sender, books: Books, say: Say) -> None:
    started, before = time.monotonic(), 0
    while True:
        await asyncio.sleep(EVERY)
        charged, reserved = await books.money()
        answered = sender.seen["answered"]
        rate, before = (answered - before) / EVERY, answered
        kept, planned, wanted = (
            collection.kept,
            collection.planned,
            len(collection.requests) or collection.config.records,
        )
        share = f", yield {100 * kept / planned:.0f}%" if planned else ""
        done = kept / wanted
        left = f", about {(time.monotonic() - started) * (1 - done) / done / 60:.0f} min left" if done > 0.02 else ""
        faults = {name: count for name, count in sender.seen.items() if name not in ("sent", "answered")}
        troubles = "; " + ", ".join(f"{count} {name}" for name, count in sorted(faults.items())) if faults else ""
        say(
            f"{kept:,} of {wanted:,} records{share}; ${charged / DOLLAR:.4f} and ${reserved / DOLLAR:.4f} under way;"
            f" {answered:,} answers, {rate:.0f}/s{left}{troubles}"
        )
