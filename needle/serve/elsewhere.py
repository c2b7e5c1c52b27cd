"""What the student isn't sure of goes to a model elsewhere, within a budget; whatever happens there, a request has an
answer.

The ledger is that of `needle collect`: before a request is sent, the most that it can cost is reserved, so that any
number of workers together never spend more than the budget. Of a request that nobody answers in time the student's own
answer is given; what it costs is settled when it comes. A service that fails again and again isn't asked for a while.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from needle.collect.asks import label_ask
from needle.collect.books import Books
from needle.collect.money import DOLLAR, Price, find_price
from needle.collect.services import hosted
from needle.collect.services.build import ServiceConfig, build_service
from needle.collect.services.hosted import Ask, Fault, HostedTeacher, Reply
from needle.engine.decode import Answer, Request
from needle.serve.fallback import FallbackConfig
from needle.text.records import Record
from needle.text.validity import call_errors

MODELS = {"gemini": "gemini-3.5-flash-lite"}
CONNECTIONS = 64  # requests in flight
FUSE, COOL, COLDEST = 5, 5.0, 300.0  # failures in a row; seconds that nothing is sent then, doubled each time, at most


@dataclass(frozen=True)
class Escalated:
    """What came of asking elsewhere: an answer, or why there is none; `because` is why it was asked for."""

    because: str
    by: str
    answer: Answer | None = None
    cost_usd: float = 0.0
    failed: str = ""


class Elsewhere:
    """Asks a model elsewhere. Made where an event loop runs; see `open_elsewhere`."""

    def __init__(
        self, teacher: HostedTeacher, books: Books, price: Price, least: float, timeout: float, keep: IO[str] | None
    ) -> None:
        self.teacher, self.books, self.price = teacher, books, price
        self.least, self.timeout, self.keep = least, timeout, keep
        self.fuse, self.failures, self.blown, self.closed_until = FUSE, 0, 0, 0.0
        self._under_way: set[asyncio.Task[tuple[Reply | None, int, str]]] = set()

    def because(self, answer: Answer) -> str:
        """Why an answer isn't good enough; empty if it is."""
        if answer.calls is None:
            return f"no answer: {answer.finish}"
        return f"confidence {answer.confidence:.2f} < {self.least:.2f}" if answer.confidence < self.least else ""

    async def ask(self, asked: Request, because: str) -> Escalated:
        """Never raises for what happens elsewhere."""
        if time.monotonic() < self.closed_until:
            return Escalated(
                because, self.teacher.model, failed="the service has failed too often; it is left alone for a while"
            )
        if len(self._under_way) >= CONNECTIONS:
            return Escalated(because, self.teacher.model, failed=f"{CONNECTIONS} requests are under way already")
        # A request of its own in the books, however often somebody says the same.
        ask = replace(label_ask(asked.query, asked.tools, self.teacher.model), sample=uuid.uuid4().int >> 66)
        task = asyncio.create_task(self._send(ask))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        done, _ = await asyncio.wait({task}, timeout=self.timeout)
        if not done:
            self._failed()
            return Escalated(because, self.teacher.model, failed=f"no answer within {self.timeout:g} s")
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error:  # a full disk, an answer that nobody thought of
            self._failed()
            return Escalated(because, self.teacher.model, failed=f"it couldn't be asked: {type(error).__name__}")
        reply, cost, failed = task.result()
        paid = cost / DOLLAR
        if reply is None:
            return Escalated(because, self.teacher.model, None, paid, failed)
        if reply.finish != hosted.STOP:
            return Escalated(because, self.teacher.model, None, paid, f"its answer ended with '{reply.finish}'")
        faults = [fault for call in reply.calls for fault in call_errors(call, asked.tools)]
        if faults:
            return Escalated(
                because, self.teacher.model, None, paid, f"its answer doesn't fit the functions: {faults[0]}"
            )
        self._keep(asked, reply)
        return Escalated(because, self.teacher.model, Answer(reply.calls, 0.0, "stop", skipped=asked.skipped), paid)

    async def _send(self, ask: Ask) -> tuple[Reply | None, int, str]:
        """The reply, its price in nanodollars, and why there is none; all of it stands in the books."""
        if not await self.books.reserve(ask, self.price.worst(ask)):
            return None, 0, "the budget is spent"
        await self.books.sent([ask])
        try:
            raw = await self.teacher.ask(ask)
        except Fault as fault:
            await self.books.failed(ask, fault, dead=True)
            self._failed(fault)
            return None, self.price.worst(ask) if fault.charged else 0, f"the service says: {fault}"
        except BaseException as error:
            await self.books.failed(ask, Fault(hosted.CONNECTION, type(error).__name__), dead=True)
            raise
        reply = self.teacher.read(ask, raw)
        cost = self.price.worst(ask) if reply.usage is None else self.price.of(reply.usage)
        await self.books.settle(ask, raw, cost)
        self.failures = self.blown = 0
        return reply, cost, ""

    def _failed(self, fault: Fault | None = None) -> None:
        """Counts a failure; after some in a row, or one that will last, nothing is sent for a while."""
        self.failures += 1
        lasting = fault is not None and fault.kind in hosted.FATAL
        if fault is not None and fault.retry_after is not None:
            self.closed_until = max(self.closed_until, time.monotonic() + min(fault.retry_after, COLDEST))
        elif lasting or self.failures >= self.fuse:
            self.closed_until = time.monotonic() + (COLDEST if lasting else min(COOL * 2**self.blown, COLDEST))
            self.failures, self.blown = 0, self.blown + 1

    def _keep(self, asked: Request, reply: Reply) -> None:
        if self.keep is not None:
            number = uuid.uuid4().hex[:12]
            record = Record(
                f"fallback-{number}", asked.query, asked.tools, reply.calls, f"fallback {self.teacher.model}"
            )
            self.keep.write(json.dumps(record.to_json(), ensure_ascii=False) + "\n")
            self.keep.flush()

    async def close(self) -> None:
        """Waits a while for what is under way; of the rest nobody knows what it costs, so its worst price stays
        charged."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=self.timeout)
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)


@asynccontextmanager
async def open_elsewhere(config: FallbackConfig, least: float) -> AsyncIterator[Elsewhere]:
    """Somebody to ask about answers whose confidence is below `least`.

    Raises:
        ValueError: the model, its price, its address or its key is missing.
    """
    model = config.fallback_model or MODELS[config.fallback]
    asked = ServiceConfig(config.fallback, model, config.fallback_url, config.fallback_key_file)
    assert config.budget_usd is not None
    price = find_price(asked.provider, model, config.price)
    async with Books(Path(config.ledger).expanduser(), round(config.budget_usd * DOLLAR)) as books:
        teacher = build_service(asked, CONNECTIONS)
        keep = None
        if config.keep:
            path = Path(config.keep).expanduser()
            path.parent.mkdir(parents=True, exist_ok=True)
            keep = open(path, "a", encoding="utf-8")  # noqa: SIM115  open as long as the server is
        found = Elsewhere(teacher, books, price, least, config.fallback_timeout, keep)
        try:
            yield found
        finally:
            await found.close()
            await teacher.close()
            if keep:
                keep.close()
