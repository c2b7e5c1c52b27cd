"""Ledger, shards and budget: nothing lost, nothing paid twice, never more than allowed."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import sqlite3
from pathlib import Path

import pytest

from needle.collect.books import Books
from needle.collect.ledger import Ledger
from needle.collect.money import Price, find_price
from needle.collect.services.hosted import CONNECTION, RATE, Ask, Fault, Usage
from needle.collect.shards import Place, ShardReader, ShardWriter, cut, rows, tail


def ask(number: int) -> Ask:
    return Ask("label", "m", "system", f"request {number}", max_tokens=100)


def money(folder: Path) -> tuple[int, int]:
    charged, reserved = (
        sqlite3.connect(folder / "ledger.sqlite").execute("SELECT charged, reserved FROM money").fetchone()
    )
    return charged, reserved


@pytest.mark.parametrize("torn", [0, 1, 17, 10_000])
def test_a_torn_end_is_cut_and_everything_before_it_is_read(tmp_path: Path, torn: int) -> None:
    writer = ShardWriter(tmp_path, "me")
    places, _ = writer.append([{"id": "a", "raw": "first"}, {"id": "b", "raw": "zweite Zeile\nmit Umbruch"}])
    more, length = writer.append([{"id": "c", "raw": "x" * 5000}])
    path = tmp_path / places[0].shard
    frame = writer.compressor.compress(random.Random(0).randbytes(20_000))
    with path.open("ab") as file:
        file.write(frame[:torn])
    found, end = tail(path, 0)
    assert [row["id"] for _, row in found] == ["a", "b", "c"]
    assert end == length
    assert cut(path, end) == len(frame[:torn])
    reader = ShardReader(tmp_path)
    assert [reader.read(place)["raw"] for place in (*places, *more)] == [
        "first",
        "zweite Zeile\nmit Umbruch",
        "x" * 5000,
    ]
    assert [row["id"] for row in rows(tmp_path)] == ["a", "b", "c"]


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
    ledger.settle("a", 25, Place("s", 0, 0))
    assert (ledger.state("a"), ledger.money()) == ("done", (85, 0))
    assert ledger.spent_on() == {"label": 85}


def test_answers_that_were_stored_before_a_crash_are_entered_and_those_under_way_stay_charged(tmp_path: Path) -> None:
    async def begin() -> None:
        books = Books(tmp_path, 1000)
        async with books:
            for number in range(4):
                assert await books.reserve(ask(number), 100)
            await books.sent([ask(0), ask(1), ask(2)])
            await books.settle(ask(0), "answer 0", 30)
            books.writer.append(
                [{"id": ask(1).key, "purpose": "label", "cost": 20, "raw": "answer 1"}]
            )  # on the disk, not in the book
            (tmp_path / "answers" / f"{books.ledger.owner}-00000.jsonl.zst").open("ab").write(b"\x28\xb5\x2f\xfdtorn")

    asyncio.run(begin())
    again = Books(tmp_path, 1000)
    assert [again.raw(ask(number)) for number in range(4)] == ["answer 0", "answer 1", None, None]
    assert again.ledger.money() == (30 + 20 + 100, 0)
    assert [again.ledger.state(ask(number).key) for number in range(4)] == ["done", "done", "planned", "planned"]
    assert again.ledger.events() == {"lost": 1}
    assert any("torn end" in note for note in again.notes)
    again.ledger.close()


def test_a_book_that_is_gone_is_written_again_from_the_answers(tmp_path: Path) -> None:
    async def fill() -> None:
        async with Books(tmp_path, 1000) as books:
            for number in range(20):
                await books.reserve(ask(number), 10)
                await books.sent([ask(number)])
                await books.settle(ask(number), f"answer {number}", 7)

    asyncio.run(fill())
    for path in tmp_path.glob("ledger.sqlite*"):
        path.unlink()
    again = Books(tmp_path, 1000)
    assert again.ledger.money() == (140, 0)
    assert [again.raw(ask(number)) for number in range(20)] == [f"answer {number}" for number in range(20)]
    again.ledger.close()


def test_answers_whose_file_is_gone_are_asked_for_again(tmp_path: Path) -> None:
    async def fill() -> None:
        async with Books(tmp_path, 1000) as books:
            await books.reserve(ask(0), 10)
            await books.sent([ask(0)])
            await books.settle(ask(0), "answer", 7)

    asyncio.run(fill())
    for path in (tmp_path / "answers").iterdir():
        path.unlink()
    again = Books(tmp_path, 1000)
    assert again.ledger.state(ask(0).key) == "planned"
    assert again.ledger.money() == (7, 0), "it has been paid for"
    again.ledger.close()


def test_the_work_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    one = Ledger(tmp_path)
    with one.transaction():
        one.reserve("a", "label", 10, None)
        one.sent("a")
    other = Ledger(tmp_path)
    (tmp_path / "answers").mkdir()
    assert other.recover(tmp_path / "answers") == []
    assert other.state("a") == "sent"
    one.close()
    third = Ledger(tmp_path)
    assert len(third.recover(tmp_path / "answers")) == 1
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
                ledger.settle(f"{seed}-{number}", source.randint(0, most), Place("none", 0, 0))
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
