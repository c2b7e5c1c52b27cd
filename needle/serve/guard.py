"""Who may ask, how often, and what is counted: keys, rates, request ids, metrics. Prompts and keys stand in no log and
in no metric.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from needle.engine.decode import Answer
from needle.serve.faults import fault

KEYS = "NEEDLE_KEYS"  # the environment variable: keys, or their hashes, with commas between
HASHED = re.compile(r"sha256:([0-9a-f]{64})")
ID = re.compile(rb"[A-Za-z0-9_.-]{1,64}")
OPEN = ("/", "/health", "/health/live", "/health/ready")  # for everybody: they tell nothing of anybody
LOOPBACK = ("127.0.0.1", "::1", "localhost")
CLIENTS = 10_000  # whose rates are remembered
SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
SHARES = tuple(number / 10 for number in range(1, 11))


class Metrics:
    """What `/metrics` tells, of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        more: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("needle_requests", "Requests by address and status", ["path", "status"], **more)
        self.seconds = Histogram("needle_request_seconds", "From first byte to last", ["path"], buckets=SECONDS, **more)
        self.stages = Histogram("needle_stage_seconds", "Stages of an answer", ["stage"], buckets=SECONDS, **more)
        self.confidence = Histogram("needle_confidence", "Confidence of the student's answers", buckets=SHARES, **more)
        self.answers = Counter("needle_answers", "The student's answers by what became of them", ["finish"], **more)
        self.calls = Counter("needle_calls", "Calls in the student's answers", **more)
        self.skipped = Counter("needle_skipped_tools", "Tools that were left out", **more)
        self.escalated = Counter("needle_escalations", "Answers that were asked for elsewhere", ["outcome"], **more)
        self.inside = Gauge("needle_inside", "Requests that are read, waiting or being answered", **more)

    def answered(self, answer: Answer) -> None:
        finish = "none" if answer.finish == "stop" and not answer.calls else answer.finish
        self.answers.labels(finish).inc()
        self.confidence.observe(answer.confidence)
        self.calls.inc(len(answer.calls or ()))
        self.skipped.inc(len(answer.skipped))


def read_keys(path: str | None) -> frozenset[str]:
    """The hashes of the keys that a file and the environment name; a line of a file is a key, or sha256: and its hash.

    Raises:
        ValueError: the file can't be read, or holds no key.
    """
    lines: list[str] = []
    if path:
        try:
            lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ValueError(f"serve.keys is {path}, which can't be read: {error.strerror}") from error
    lines += os.environ.get(KEYS, "").split(",")
    found = frozenset(_hashed(line.strip()) for line in lines if line.strip() and not line.startswith("#"))
    if path and not found:
        raise ValueError(f"serve.keys is {path}, which holds no key: one on a line, or sha256: and its hash")
    return found


def _hashed(key: str) -> str:
    given = HASHED.fullmatch(key)
    return given[1] if given else hashlib.sha256(key.encode()).hexdigest()


class Rates:
    """So many requests a minute for each client, in a bucket that holds a minute's worth."""

    def __init__(self, per_minute: float) -> None:
        self.per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, client: str) -> float:
        """Seconds until this client may ask again; 0 if it may now, which is then counted."""
        now = time.monotonic()
        left, then = self._buckets.pop(client, (self.per_minute, now))
        left = min(left + (now - then) * self.per_minute / 60, self.per_minute)
        may = left >= 1
        self._buckets[client] = (left - 1 if may else left, now)
        if len(self._buckets) > CLIENTS:
            self._buckets.popitem(last=False)
        return 0.0 if may else (1 - left) * 60 / self.per_minute


class Guard:
    """Stands in front of an application. `known` are paths that have a metric of their own; all others share one."""

    def __init__(
        self, app: ASGIApp, keys: frozenset[str], per_minute: float, metrics: Metrics, known: Sequence[str]
    ) -> None:
        self.app, self.keys, self.metrics, self.known = app, keys, metrics, frozenset(known)
        self.rates = Rates(per_minute) if per_minute else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, path = dict(scope["headers"]), scope["path"]
        given = headers.get(b"x-request-id", b"")
        name = given if ID.fullmatch(given) else secrets.token_hex(8).encode()
        label, started, status = path if path in self.known else "other", time.perf_counter(), 499

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", name)]}
            await send(message)

        try:
            refused = None if path in OPEN else self._refused(scope, headers)
            await (refused or self.app)(scope, receive, told)
        finally:
            self.metrics.requests.labels(label, str(status)).inc()
            self.metrics.seconds.labels(label).observe(time.perf_counter() - started)

    def _refused(self, scope: Scope, headers: dict[bytes, bytes]) -> ASGIApp | None:
        """What a client is told in place of an answer; None if it may go on."""
        client = str((scope.get("client") or ("",))[0])
        if self.keys:
            key = headers.get(b"authorization", b"").removeprefix(b"Bearer ") or headers.get(b"x-api-key", b"")
            digest = hashlib.sha256(key).hexdigest()
            # Every known key is compared, each in the same time.
            if not sum(hmac.compare_digest(digest, known) for known in self.keys):
                said = [(["header", "authorization"], "expected Authorization: Bearer KEY with a key of this server")]
                return fault(scope["path"], 401, said)
            client = digest
        wait = self.rates.wait(client) if self.rates else 0.0
        if wait:
            response = fault(scope["path"], 429, [(["body"], f"too many requests; try again in {wait:.0f} s")])
            response.headers["Retry-After"] = str(max(round(wait + 0.5), 1))
            return response
        return None
