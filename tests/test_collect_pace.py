"""How fast to ask: more while it goes well, less when told, nothing for a while when nothing answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from needle.collect.pace import Draining, Pace, TeacherDown
from needle.collect.services.hosted import BUSY, RATE, Fault


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(body())


def test_one_more_with_each_round_of_answers_and_a_third_fewer_when_it_is_too_many() -> None:
    async def body() -> None:
        pace = Pace(100)
        before = pace.limit
        for _ in range(int(before) + 1):
            pace.answered()
        assert before + 0.9 < pace.limit < before + 1.3
        high = pace.limit
        for _ in range(8):  # they were all sent at the old speed
            pace.failed(Fault(RATE, "slow down"))
        assert pace.limit == pytest.approx(high * 2 / 3)
        for _ in range(20_000):
            pace.answered()
        assert pace.limit == 100

    run(body)


def test_no_more_are_under_way_than_the_limit() -> None:
    async def body() -> None:
        pace, most, now = Pace(4), 0, 0

        async def one() -> None:
            nonlocal most, now
            async with pace.slot(1):
                now += 1
                most = max(most, now)
                await asyncio.sleep(0.01)
                now -= 1

        await asyncio.gather(*(one() for _ in range(30)))
        assert most == 4

    run(body)


def test_a_hint_holds_for_everybody() -> None:
    async def body() -> None:
        pace = Pace(4)
        pace.failed(Fault(RATE, "wait", retry_after=0.3))
        started = time.monotonic()
        async with pace.slot(1):
            assert time.monotonic() - started >= 0.29
        assert pace.backoff(1, Fault(RATE, "wait", retry_after=0.3)) >= 0.3

    run(body)


def test_after_failures_in_a_row_nothing_is_sent_for_a_while_and_then_one_goes_alone() -> None:
    async def body() -> None:
        pace = Pace(8, fuse=3, cool=0.3)
        for _ in range(3):
            pace.failed(Fault(BUSY, "no"))
        started, under_way, most = time.monotonic(), 0, 0

        async def probe() -> None:
            nonlocal under_way, most
            async with pace.slot(1):
                assert time.monotonic() - started >= 0.29
                under_way += 1
                most = max(most, under_way)
                await asyncio.sleep(0.02)
                under_way -= 1

        await asyncio.gather(probe(), probe(), probe())
        assert most == 1
        pace.answered()
        assert pace.blown == 0

    run(body)


def test_a_service_that_never_answers_ends_the_run_and_a_stopped_run_sends_nothing() -> None:
    async def body() -> None:
        pace = Pace(2, give_up=0.05)
        pace.failed(Fault(BUSY, "no"))
        await asyncio.sleep(0.1)
        with pytest.raises(TeacherDown, match="has not answered"):
            async with pace.slot(1):
                raise AssertionError("it must not be sent")
        other = Pace(2, requests_per_minute=1)
        async with other.slot(1):
            pass
        waiting = asyncio.create_task(_enter(other))
        await asyncio.sleep(0.05)
        assert not waiting.done(), "a minute has sixty seconds"
        other.stop.set()
        with pytest.raises(Draining):
            await waiting

    run(body)


async def _enter(pace: Pace) -> None:
    async with pace.slot(1):
        pass
