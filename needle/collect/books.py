"""The ledger of one process, for many requests at once.

Everything that happens while the disk is busy is written together: one frame of answers, one transaction. Whoever waits
is told after it is on the disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from needle.collect.ledger import Answers, Ledger
from needle.collect.services.hosted import Ask, Fault

T = TypeVar("T")
Entry = tuple[Callable[[], Any], dict[str, Any] | None, "asyncio.Future[Any]"]


class Books:
    """Use as an async context manager. `budget` in nanodollars; None is without limit."""

    def __init__(self, folder: Path, budget: int | None = None) -> None:
        self.folder, self.budget = folder, budget
        self.ledger = Ledger(folder)
        self.notes = self.ledger.recover()
        self.answers = Answers(folder)
        self.moved = asyncio.Event()  # money came back
        self._entries: asyncio.Queue[Entry] = asyncio.Queue()
        self._pen = ThreadPoolExecutor(1, "ledger")
        self._writing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Books:
        self._writing = asyncio.create_task(self._write())
        return self

    async def __aexit__(self, *reason: object) -> None:
        await self._entries.join()
        assert self._writing is not None
        self._writing.cancel()
        self._pen.shutdown()
        self.answers.close()
        self.ledger.close()

    async def reserve(self, ask: Ask, most: int) -> bool:
        """Sets money aside; False when the budget doesn't allow it now."""
        return await self._enter(lambda: self.ledger.reserve(ask.key, ask.purpose, most, self.budget))

    async def sent(self, asks: list[Ask], job: str | None = None) -> None:
        def enter() -> None:
            for ask in asks:
                self.ledger.sent(ask.key, job)

        await self._enter(enter)

    async def settle(self, ask: Ask, raw: str, cost: int) -> None:
        """Stores an answer as it came, beside what was asked, and settles its price."""
        row = {
            "id": ask.key,
            "purpose": ask.purpose,
            "model": ask.model,
            "sample": ask.sample,
            "text": ask.text,
            "tools": [tool.to_json() for tool in ask.tools],
            "cost": cost,
        }
        await self._enter(lambda: None, {**row, "raw": raw})  # `_commit` settles what it has stored
        self.moved.set()

    async def failed(self, ask: Ask, fault: Fault, dead: bool) -> None:
        """Notes that no answer came; `dead` if the request won't be sent again."""

        def enter() -> None:
            self.ledger.failed(ask.key, str(fault)[:300], fault.charged, dead)
            self.ledger.count(fault.kind)

        await self._enter(enter)
        self.moved.set()

    async def release(self, ask: Ask) -> None:
        """Takes back a reservation whose request was never sent."""
        await self._enter(lambda: self.ledger.failed(ask.key, "not sent", charged=False, dead=False))
        self.moved.set()

    async def count(self, kind: str, number: int = 1) -> None:
        await self._enter(lambda: self.ledger.count(kind, number))

    async def money(self) -> tuple[int, int]:
        return await self._enter(self.ledger.money)

    async def in_jobs(self) -> dict[str, list[str]]:
        return await self._enter(self.ledger.in_jobs)

    async def state(self, ask: Ask) -> str:
        return await self._enter(lambda: self.ledger.state(ask.key))

    def raw(self, ask: Ask) -> str | None:
        """The stored answer of a request; None while there is none."""
        found = self.answers.find(ask.key)
        return None if found is None else found["raw"]

    async def _enter(self, change: Callable[[], T], row: dict[str, Any] | None = None) -> T:
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._entries.put_nowait((change, row, done))
        return await asyncio.shield(done)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            entries = [await self._entries.get()]
            while not self._entries.empty():
                entries.append(self._entries.get_nowait())
            try:
                results = await loop.run_in_executor(self._pen, self._commit, entries)
                for (_, _, done), result in zip(entries, results, strict=True):
                    if not done.done():
                        done.set_result(result)
            except Exception as error:  # a full disk is everybody's business
                for _, _, done in entries:
                    if not done.done():
                        done.set_exception(error)
            finally:
                for _ in entries:
                    self._entries.task_done()

    def _commit(self, entries: list[Entry]) -> list[Any]:
        rows = [row for _, row, _ in entries if row is not None]
        with self.ledger.transaction():
            results = [change() for change, _, _ in entries]
            if rows:
                self.ledger.settle(rows)
        return results
