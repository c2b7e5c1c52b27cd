"""Ledger and budget: nothing lost, nothing paid twice, never more than allowed."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from needle.collect.books import Books
from needle.collect.ledger import Answers, Ledger
from needle.collect.money import Price, find_price
from needle.collect.services.hosted import CONNECTION, RATE, Ask, Fault, Usage


def ask(number: int) -> Ask:
    return Ask("label", "m", "system", f"request {number}", max_tokens=100)


def money(folder: Path) -> tuple[int, int]:
    charged, reserved = (
        sqlite3.connect(folder / "ledger.sqlite").execute("SELECT charged, reserved FROM money").fetchone()
    )
    return charged, reserved


def test_the_states_of_a_request_and_its_money(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.reserve("a", "label", 60, 100)
    assert not ledger.reserve("b", "label", 60, 100)
    assert ledger.state("a") == "reserved"
    ledger.sent("a")
    ledger.failed("a", "too many", charged=False, dead=False)
    assert (ledger.state("a"), ledger.money()) == ("planned", (0, 0))
    assert ledger.reserve("a", "label", 60, 100)
    ledger.sent("a")
    ledger.failed("a", "connection lost", charged=True, dead=False)
    assert ledger.money() == (60, 0), "nobody knows whether it was answered, so it stays charged"
    assert not ledger.reserve("a", "label", 60, 100)
    assert ledger.reserve("a", "label", 40, 100)
    ledger.sent("a")
    ledger.settle([{"id": "a", "cost": 25}])
    assert (ledger.state("a"), ledger.money()) == ("done", (85, 0))
    assert ledger.spent_on() == {"label": 85}


def test_what_was_under_way_in_a_crash_stays_charged_and_what_was_stored_is_there(tmp_path: Path) -> None:
    async def begin() -> None:
        async with Books(tmp_path, 1000) as books:
            for number in range(4):
                assert await books.reserve(ask(number), 100)
            await books.sent([ask(0), ask(1), ask(2)])
            await books.settle(ask(0), "answer 0\nin two lines\u2028and \ud83d half a sign", 30)
            await books.settle(ask(1), "answer 1", 20)

    asyncio.run(begin())
    again = Books(tmp_path, 1000)
    stored = ["answer 0\nin two lines\u2028and \ud83d half a sign", "answer 1", None, None]
    assert [again.raw(ask(number)) for number in range(4)] == stored
    assert again.ledger.money() == (30 + 20 + 100, 0)
    assert [again.ledger.state(ask(number).key) for number in range(4)] == ["done", "done", "planned", "planned"]
    assert again.ledger.events() == {"lost": 1}
    assert [row["text"] for row in Answers(tmp_path)] == ["request 0", "request 1"]
    again.ledger.close()


def test_a_transaction_that_was_cut_off_leaves_neither_answer_nor_price(tmp_path: Path) -> None:
    """A process that dies between storing an answer and its commit: SQLite takes back what it had written."""
    program = f"""
import os, pathlib
from needle.collect.ledger import Ledger
ledger = Ledger(pathlib.Path({str(tmp_path)!r}))
with ledger.transaction():
    ledger.reserve("a", "label", 60, 100)
    ledger.sent("a")
ledger.base.execute("BEGIN IMMEDIATE")
ledger.settle([{{"id": "a", "cost": 25, "raw": "x" * 100_000}}])
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == -9
    ledger = Ledger(tmp_path)
    assert (ledger.state("a"), ledger.money()) == ("sent", (0, 60))
    assert len(ledger.recover()) == 1
    assert (ledger.state("a"), ledger.money()) == ("planned", (60, 0))
    assert list(Answers(tmp_path)) == []
    ledger.close()


def test_a_folder_of_an_older_version_keeps_its_answers_and_its_bill(tmp_path: Path) -> None:
    """Before 0.2 the answers lay in files beside the ledger, which knew the places."""
    compress = zstandard.ZstdCompressor(level=6, write_checksum=True).compress
    frames = [b'{"id": "a", "raw": "first"}\n{"id": "b", "raw": "second"}\n', b'{"id": "c", "raw": "third"}\n']
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "me-00000.jsonl.zst").write_bytes(b"".join(compress(frame) for frame in frames))
    base = sqlite3.connect(tmp_path / "ledger.sqlite")
    base.executescript(
        "CREATE TABLE requests(id TEXT PRIMARY KEY, purpose TEXT NOT NULL, state TEXT NOT NULL, attempts INTEGER NOT"
        " NULL DEFAULT 0, reserved INTEGER NOT NULL DEFAULT 0, charged INTEGER NOT NULL DEFAULT 0, owner TEXT, job"
        " TEXT, reason TEXT, shard TEXT, offset INTEGER, line INTEGER) WITHOUT ROWID;"
        "CREATE TABLE money(one INTEGER PRIMARY KEY CHECK (one = 1), charged INTEGER NOT NULL, reserved INTEGER NOT"
        " NULL); INSERT INTO money VALUES (1, 70, 0);"
    )
    places = [("a", 0, 0), ("b", 0, 1), ("c", len(compress(frames[0])), 0)]
    for name, offset, line in places:
        base.execute(
            "INSERT INTO requests(id, purpose, state, shard, offset, line) VALUES (?, 'label', 'done', ?, ?, ?)",
            (name, "me-00000.jsonl.zst", offset, line),
        )
    base.execute("INSERT INTO requests(id, purpose, state) VALUES ('d', 'label', 'planned')")
    base.commit()
    base.close()
    for _ in range(2):  # the second time there is nothing left to do
        ledger = Ledger(tmp_path)
        assert ledger.money() == (70, 0)
        assert ledger.state("d") == "planned"
        ledger.close()
    assert [Answers(tmp_path).find(name) for name, _, _ in places] == [
        {"id": "a", "raw": "first"},
        {"id": "b", "raw": "second"},
        {"id": "c", "raw": "third"},
    ]


def test_the_work_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    one = Ledger(tmp_path)
    with one.transaction():
        one.reserve("a", "label", 10, None)
        one.sent("a")
    other = Ledger(tmp_path)
    assert other.recover() == []
    assert other.state("a") == "sent"
    one.close()
    third = Ledger(tmp_path)
    assert len(third.recover()) == 1
    assert (third.state("a"), third.money()) == ("planned", (10, 0))
    other.close()
    third.close()


def _spend(folder: str, seed: int) -> int:
    source = random.Random(seed)
    ledger = Ledger(Path(folder))
    granted = 0
    for number in range(120):
        most = source.randint(1, 40)
        with ledger.transaction():
            paid = ledger.reserve(f"{seed}-{number}", "label", most, 2000)
        if not paid:
            continue
        granted += 1
        with ledger.transaction():
            ledger.sent(f"{seed}-{number}")
        with ledger.transaction():
            if source.random() < 0.3:
                ledger.failed(f"{seed}-{number}", "lost", charged=True, dead=True)
            else:
                ledger.settle([{"id": f"{seed}-{number}", "cost": source.randint(0, most)}])
        charged, reserved = ledger.money()
        assert charged + reserved <= 2000
    ledger.close()
    return granted


def test_four_processes_together_never_exceed_the_budget(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        granted = pool.starmap(_spend, [(str(tmp_path), seed) for seed in range(4)])
    charged, reserved = money(tmp_path)
    assert reserved == 0
    assert 1900 < charged <= 2000
    assert sum(granted) > 60


def test_what_is_written_together_is_all_there(tmp_path: Path) -> None:
    async def fill() -> int:
        async with Books(tmp_path, None) as books:

            async def one(number: int) -> None:
                assert await books.reserve(ask(number), 10)
                await books.sent([ask(number)])
                if number % 5:
                    await books.settle(ask(number), f"answer {number}", number)
                else:
                    await books.failed(ask(number), Fault(RATE if number % 2 else CONNECTION, "no"), dead=True)

            await asyncio.gather(*(one(number) for number in range(300)))
            assert all(books.raw(ask(number)) == (f"answer {number}" if number % 5 else None) for number in range(300))
            return books.ledger.money()[0]

    assert asyncio.run(fill()) == sum(number for number in range(300) if number % 5) + 10 * sum(
        number % 2 == 0 for number in range(0, 300, 5)
    )


def test_prices_come_from_the_list_or_the_user_and_are_never_guessed() -> None:
    assert find_price("google", "gemini-2.5-flash-lite", None) == Price(100.0, 400.0)
    assert find_price("google", "anything", [0.3, 2.5]) == Price(300.0, 2500.0)
    with pytest.raises(ValueError, match=r"collect\.price=\[INPUT,OUTPUT\]"):
        find_price("google", "gemini-99-imaginary", None)
    with pytest.raises(ValueError, match="two prices"):
        find_price("google", "anything", [0.3])
    price = Price(300.0, 2500.0)
    assert price.of(Usage(1000, 100)) == 550_000
    assert price.of(Usage(1000, 100), batch=True) == 275_000
    assert price.worst(ask(1)) >= price.of(Usage(ask(1).size, 100))
