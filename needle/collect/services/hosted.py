"""What a hosted teacher is asked and what it answers, whoever hosts it: the shape that `gemini` and `openai` share."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Protocol

from needle.text.calls import calls_in_text, fitted
from needle.text.records import Call, FieldError, Tool, canonical_json

# What became of an answer. Anything but STOP gives no calls; the names are Gemini's own in lower case, with four of
# ours.
STOP = "stop"
MALFORMED = "malformed_function_call"
EMPTY, BLOCKED, NO_CANDIDATE, UNREADABLE = "empty", "blocked", "no_candidate", "unreadable"

# Why a request failed. `charged` says whether it may have been paid for: nobody knows after a timeout or a lost
# connection.
RATE, BUSY, TIMEOUT, CONNECTION = "rate", "busy", "timeout", "connection"  # asked again
REFUSED = "refused"  # this request never will be answered
SPEND_CAP, DAILY_QUOTA, DENIED = "spend_cap", "daily_quota", "denied"  # no request will be, for now
RETRIED, FATAL = {RATE, BUSY, TIMEOUT, CONNECTION}, {SPEND_CAP, DAILY_QUOTA, DENIED}
LOST = "lost"  # a batch that is done doesn't mention the request
UNKNOWN_OUTCOME = {TIMEOUT, CONNECTION, LOST}


@dataclass(frozen=True)
class Ask:
    """One request. With `tools` the teacher answers by calling functions, with `schema` by JSON of that shape.

    `prompt` is the version of the instructions, `sample` tells repeated questions apart; both are part of the key.
    """

    purpose: str
    model: str
    system: str
    text: str
    tools: tuple[Tool, ...] = ()
    schema: Mapping[str, Any] | None = None
    max_tokens: int = 1024
    thinking: str | None = None
    logprobs: int = 0
    prompt: int = 1
    sample: int = 0

    @cached_property
    def key(self) -> str:
        """The request's name in ledger and batches: equal requests have equal keys."""
        return hashlib.sha256(canonical_json(asdict(self)).encode()).hexdigest()[:32]

    @cached_property
    def size(self) -> int:
        """Bytes of everything that is sent: at least as many as tokens, which each spell one byte or more."""
        return len(canonical_json(asdict(self)).encode())


@dataclass(frozen=True)
class Usage:
    """Tokens as billed: `output` includes thoughts, `cached` is a part of `input`."""

    input: int
    output: int
    cached: int = 0


@dataclass(frozen=True)
class Reply:
    """What one raw answer says. `finish` other than `stop` is why there is nothing in it."""

    finish: str
    calls: tuple[Call, ...] = ()
    text: str = ""
    usage: Usage | None = None
    model: str = ""
    logprob: float | None = None


def understood(reply: Reply, names: Mapping[str, str]) -> Reply:
    """The reply with calls that were left in its text, its tools under their own names (`names`, by those that they
    were sent under), and of equal calls one. Text that can't be told from a call is no answer."""
    calls = list(reply.calls)
    finish = reply.finish
    if names and not calls and reply.text and finish in (STOP, MALFORMED):
        try:
            calls = calls_in_text(reply.text) or []
        except FieldError:
            finish = MALFORMED
        if calls:
            finish = STOP
    named = [replace(call, name=_own_name(call.name, names)) for call in calls]
    return replace(reply, finish=finish, calls=tuple({call.key: call for call in named}.values()))


def _own_name(name: str, names: Mapping[str, str]) -> str:
    """A tool's own name, whatever a service puts in front of it (`default_api.f`)."""
    if name in names:
        return names[name]
    ends = [own for sent, own in names.items() if re.split("[.:/]", name)[-1] == sent or name == own]
    return ends[0] if len(ends) == 1 else name


def in_words_of(reply: Reply, tools: Sequence[Tool]) -> Reply:
    """The reply's calls as their tools have them: without null for what is optional, whole numbers as such."""
    return replace(reply, calls=tuple(fitted(call, tools) for call in reply.calls))


def readable(read: Callable[[], Reply], raw: str) -> Reply:
    """What an answer says; `unreadable` where it hasn't the shape of one. It is stored already, and read in every later
    run."""
    try:
        return read()
    except (TypeError, ValueError, AttributeError, KeyError, RecursionError):
        return Reply(UNREADABLE, text=raw[:500])


def read_body(raw: str) -> Mapping[str, Any] | None:
    """The JSON object that an answer is; None for anything else."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, Mapping) else None


def sent_names(tools: Sequence[Tool], allowed: re.Pattern[str]) -> dict[str, str]:
    """The tools' names by those that they are sent under: their own where the service takes it, or else one that it
    takes."""
    return {
        tool.name
        if allowed.fullmatch(tool.name)
        else f"tool_{number}_{re.sub('[^A-Za-z0-9_]', '_', tool.name)[:48]}": tool.name
        for number, tool in enumerate(tools)
    }


class Fault(Exception):
    """A request that failed: why, and after how many seconds the server wants to be asked again, if it said so."""

    def __init__(self, kind: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after = retry_after

    @property
    def retried(self) -> bool:
        return self.kind in RETRIED

    @property
    def charged(self) -> bool:
        """Whether the request may have been paid for."""
        return self.kind in UNKNOWN_OUTCOME


@dataclass(frozen=True)
class Job:
    """A batch on the teacher's side. `state` is running, done, failed or expired; the last three may hold answers."""

    name: str
    label: str
    state: str
    results: str | None = None

    @property
    def finished(self) -> bool:
        return self.state != "running"


class Batches(Protocol):
    """The teacher's batch service."""

    async def create(self, label: str, asks: Sequence[Ask]) -> Job: ...

    async def find(self, label: str) -> Job | None: ...

    async def look(self, job: Job) -> Job: ...

    async def results(self, job: Job) -> Mapping[str, str | None]: ...


class HostedTeacher(Protocol):
    """One model behind an API. `ask` returns the answer's body as it came; `read` makes sense of it, without asking
    anybody."""

    provider: str
    model: str
    batches: Batches | None

    async def ask(self, ask: Ask) -> str: ...

    def read(self, ask: Ask, raw: str) -> Reply: ...

    async def close(self) -> None: ...
