"""How fast to ask: as many requests at once as the service takes, its own limits, its hints, and a fuse."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from aiolimiter import AsyncLimiter

from needle.collect.services import hosted
from needle.collect.services.hosted import Fault
from needle.collect.settings import CollectConfig

FIRST = 8.0  # requests in flight at the start
MINUTE = 60.0


class TeacherDown(Exception):
    """The service has failed for longer than anybody wants to wait."""


class Draining(Exception):
    """The run is coming to its end; this request isn't sent any more."""


class Pace:
    """One for all requests to a service. Times in seconds, `most` requests in flight at once.

    The number in flight grows by one for each number's worth of answers and falls by a third for each "too many
    requests" (Chiu and Jain 1989: additive increase, multiplicative decrease). After `fuse` failures in a row nothing
    is sent for `cool` seconds, twice as long each time; then one request goes ahead alone. After `give_up` seconds
    without one answer the run ends.
    """

    def __init__(
        self,
        most: int,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        fuse: int = 10,
        cool: float = 5.0,
        give_up: float = 600.0,
        seed: int = 0,
    ) -> None:
        self.most, self.limit = most, min(FIRST, most)
        self.requests = AsyncLimiter(requests_per_minute, MINUTE) if requests_per_minute else None
        self.tokens = AsyncLimiter(tokens_per_minute, MINUTE) if tokens_per_minute else None
        self.fuse, self.cool, self.give_up = fuse, cool, give_up
        self.random = random.Random(seed)
        self.in_flight, self.failures, self.blown = 0, 0, 0
        self.wait_until = self.slowed = 0.0
        self.last_answer = time.monotonic()
        self.stop = asyncio.Event()
        self._free = asyncio.Condition()

    @classmethod
    def of(cls, config: CollectConfig) -> Pace:
        return cls(
            config.concurrency,
            config.requests_per_minute,
            config.tokens_per_minute,
            give_up=config.give_up,
            seed=config.seed,
        )

    @asynccontextmanager
    async def slot(self, tokens: int) -> AsyncIterator[None]:
        """Waits until one more request of about so many tokens may be sent. Raises `TeacherDown`, or `Draining` once
        `stop` is set."""
        if self.requests:
            await self._unless_stopped(self.requests.acquire())
        if self.tokens:
            await self._unless_stopped(self.tokens.acquire(min(tokens, self.tokens.max_rate)))
        async with self._free:
            await self._free.wait_for(
                lambda: self.in_flight < max(int(self.limit), 1) and not (self.blown and self.in_flight)
            )
            self.in_flight += 1
        try:
            while (left := self.wait_until - time.monotonic()) > 0:
                await self.sleep(left)
            if self.stop.is_set():
                raise Draining
            if self.failures and time.monotonic() - self.last_answer > self.give_up:
                raise TeacherDown(
                    f"the teacher has not answered for {self.give_up:.0f} s; the same command goes on when it does"
                )
            yield
        finally:
            async with self._free:
                self.in_flight -= 1
                self._free.notify_all()

    async def sleep(self, seconds: float) -> None:
        """Raises `Draining` when the run is stopped meanwhile."""
        await self._unless_stopped(asyncio.sleep(seconds))

    async def _unless_stopped(self, waiting: Coroutine[Any, Any, None]) -> None:
        stopped = asyncio.ensure_future(self.stop.wait())
        task = asyncio.ensure_future(waiting)
        done, late = await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        for other in late:
            other.cancel()
        if task not in done:
            raise Draining

    def answered(self) -> None:
        self.last_answer, self.failures, self.blown = time.monotonic(), 0, 0
        self.limit = min(self.limit + 1 / self.limit, self.most)

    def failed(self, fault: Fault) -> None:
        """Learns from a failure: fewer at once, the server's hint, the fuse."""
        now = time.monotonic()
        if fault.kind == hosted.RATE:
            if now - self.slowed > 1.0:  # the others that fail now were sent before we slowed down
                self.limit, self.slowed = max(self.limit * 2 / 3, 1.0), now
            if fault.retry_after is None:
                return
        if fault.retry_after is not None:
            self.wait_until = max(self.wait_until, now + fault.retry_after)
            return
        if fault.retried:
            self.failures += 1
            if self.failures >= self.fuse * (self.blown + 1):
                self.wait_until = now + self.cool * 2**self.blown
                self.blown += 1

    def backoff(self, attempt: int, fault: Fault) -> float:
        """Seconds before the same request is sent again: the hint, or more and more with full jitter."""
        if fault.retry_after is not None:
            return fault.retry_after + self.random.random() * 0.1 * max(fault.retry_after, 0.1)
        return self.random.uniform(0, min(0.5 * 2**attempt, 60.0))
