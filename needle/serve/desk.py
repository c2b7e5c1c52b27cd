"""Where every request waits for its turn, whatever address it came to."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
from anyio.to_thread import run_sync
from fastapi import Request as Http

from needle.engine.decode import Answer, Engine, Request
from needle.serve.fallback import FallbackConfig, least_confidence
from needle.serve.faults import clean
from needle.serve.guard import LOOPBACK, Metrics, read_keys
from needle.text.declarations import read_tools
from needle.text.records import FieldError, ToolSchemaError, encodable

if TYPE_CHECKING:
    from needle.serve.elsewhere import Elsewhere, Escalated


@dataclass
class ServeConfig(FallbackConfig):
    """Where to listen, the largest body that is read, in bytes, and how many requests may wait for their turn.

    `workers` are processes that share the port, each with weights of its own; one that dies is started anew. In each,
    `threads` answer side by side where the backend can (onnx), when 0 as many as there are cores for it; torch answers
    one by one. `no_call` is what a chat client is told where no function fits.

    `keys` is a file of the keys that clients must have, beside those of the environment's NEEDLE_KEYS: one on a line,
    or `sha256:` and its hash. Without keys a server answers on the loopback address alone, unless it is `open`. A
    client may ask `per_minute` times a minute, 0 as often as it likes.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_body: int = 1_000_000
    max_waiting: int = 100
    threads: int = 0
    workers: int = 1
    no_call: str = "None of the functions that I have does that."
    keys: str | None = None
    open: bool = False
    per_minute: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threads < 0:
            raise ValueError(f"serve.threads is {self.threads}; it must be at least 1, or 0 for one on each core")
        if self.workers < 1:
            raise ValueError(f"serve.workers is {self.workers}; it must be at least 1")
        if self.per_minute < 0:
            raise ValueError(f"serve.per_minute is {self.per_minute}; it must be at least 0")
        if self.host not in LOOPBACK and not self.open and not read_keys(self.keys):
            raise ValueError(
                f"serve.host={self.host} can be reached from elsewhere: set serve.keys=FILE or NEEDLE_KEYS, or"
                " serve.open=true where everybody may ask"
            )


class Busy(Exception):
    """Too many requests are waiting already."""


class Gone(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Given:
    """What was asked, the student's answer, and what came of asking elsewhere, if it was."""

    asked: Request
    answer: Answer
    escalated: Escalated | None

    @property
    def own(self) -> bool:
        return not (self.escalated and self.escalated.answer)

    @property
    def final(self) -> Answer:
        """The student's answer, or the one from elsewhere."""
        return self.escalated.answer if self.escalated and self.escalated.answer else self.answer


class Desk:
    """Its threads live as long as it does: torch, and the caches of a core, know them. Raises ValueError for a fallback
    whose settings don't fit the engine."""

    def __init__(self, engine: Engine, config: ServeConfig) -> None:
        self.engine, self.config = engine, config
        self.asks = config.fallback != "none"
        self.least = least_confidence(config, engine.calibration) if self.asks else 0.0
        self.elsewhere: Elsewhere | None = None
        threads = config.threads or max((os.cpu_count() or 1) // config.workers, 1)
        threads = threads if engine.backend.concurrent else 1
        self._turn, self._workers = anyio.Semaphore(threads), ThreadPoolExecutor(threads, "needle")
        self._inside = 0  # requests that are read, waiting or being answered
        self.metrics = Metrics()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """While the server runs."""
        if not self.asks:
            yield
            return
        from needle.serve.elsewhere import open_elsewhere  # needs what collecting needs

        async with open_elsewhere(self.config, self.least) as self.elsewhere:
            yield

    async def answer(self, read: Callable[[], Request], max_tokens: int, http: Http) -> Given:
        """The answer to what `read` makes of a request, away from the event loop. Raises `Busy`, `Gone`, and what
        `read` and `Engine.answer_one` raise."""
        if self._inside > self.config.max_waiting:
            raise Busy(f"{self.config.max_waiting} requests are waiting already; try again")
        self._inside += 1
        self.metrics.inside.inc()
        try:
            with self._timed("read"):
                asked = await run_sync(read)
            with self._timed("wait"):
                await self._turn.acquire()
            try:
                if await http.is_disconnected():
                    raise Gone
                loop = asyncio.get_running_loop()
                with self._timed("answer"):
                    answer = await loop.run_in_executor(self._workers, self.engine.answer_one, asked, max_tokens)
            finally:
                self._turn.release()
            self.metrics.answered(answer)
            return Given(asked, answer, await self._escalate(asked, answer))
        finally:
            self._inside -= 1
            self.metrics.inside.dec()

    async def _escalate(self, asked: Request, answer: Answer) -> Escalated | None:
        because = self.elsewhere.because(answer) if self.elsewhere else ""
        if not self.elsewhere or not because:
            return None
        with self._timed("elsewhere"):
            escalated = await self.elsewhere.ask(asked, because)
        self.metrics.escalated.labels("answered" if escalated.answer else "failed").inc()
        return escalated

    def _timed(self, stage: str) -> AbstractContextManager[Any]:
        timed: AbstractContextManager[Any] = self.metrics.stages.labels(stage).time()
        return timed


def asked_of(query: str, where: str, declarations: Any, at: str, strict: bool = False, **more: Any) -> Request:
    """A request with its tools, which stand at `at` in what the client sent, its text at `where`. Raises
    `ToolSchemaError`."""
    encodable_at(query, where)
    found = read_tools(declarations, at, strict)
    return Request(query, found.tools, strict=strict, skipped=found.skipped, places=found.places, **more)


def encodable_at(text: str, where: str) -> None:
    """Raises `ToolSchemaError` for text that no encoder takes."""
    try:
        encodable(text, where.strip("/"))
    except FieldError as error:
        raise ToolSchemaError(where, error.expected) from error


def escalation(given: Given) -> dict[str, Any]:
    """Who answered, for how much, and why it was asked for elsewhere."""
    escalated = given.escalated
    if escalated is None:
        return {"answered_by": "needle", "cost_usd": 0.0}
    found = {
        "answered_by": "needle" if given.own else escalated.by,
        "cost_usd": escalated.cost_usd,
        "escalated_because": escalated.because,
    }
    return {**found, **({"escalation_failed": clean(escalated.failed)} if given.own else {})}


def notes(answer: Answer) -> dict[str, Any]:
    """What was left out of a request and of its answer, and why there is none; without what has nothing to say."""
    found = {
        "error": clean(answer.error),
        "skipped": [tool.to_json() for tool in answer.skipped],
        "shortened": [tool.to_json() for tool in answer.shortened],
        "left_out": list(answer.left_out),
        "missing": [{"name": one.name, "arguments": list(one.arguments)} for one in answer.missing],
        "reasons": [clean(reason) for reason in answer.reasons],
    }
    return {name: value for name, value in found.items() if value}
