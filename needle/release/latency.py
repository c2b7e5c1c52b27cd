"""How long a call takes, and where the time goes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

import numpy as np

from needle.data.sources import subset
from needle.engine.decode import Engine
from needle.engine.eager import EagerBackend
from needle.text.grammar import Matcher
from needle.text.records import Record

STAGES = {  # what of a student takes time, by family
    "pointer": {
        "encoding the request": "encode_requests",
        "looking up the tools": "cached_tools",
        "pointing keys": "keys",
        "decoder": "_advance",
        "output layer": "distribution",
    },
    "span": {
        "encoding the request": "read_requests",
        "looking up the tools": "read_tools",
        "reading the chosen tool": "_open",
        "decoder": "_advance",
        "output layer": "_scores",
    },
}


def latency(engine: Engine, records: Sequence[Record], calls: int) -> dict[str, Any]:
    """Milliseconds of one call with five tools that the engine has met before."""
    chosen = subset([record for record in records if len(record.tools) == 5 and record.answers], calls, 0)
    for record in chosen[:20]:
        engine.answer(record.query, record.tools)
    whole, tokens = [], []
    for record in chosen:
        engine.answer(record.query, record.tools)  # its tools are known from here on
        started = time.perf_counter()
        answer = engine.answer(record.query, record.tools)
        whole.append(1000 * (time.perf_counter() - started))
        tokens.append(answer.tokens)
    figures = {
        "calls": len(whole),
        "p50": float(np.percentile(whole, 50)),
        "p95": float(np.percentile(whole, 95)),
        "tokens_p50": float(np.percentile(tokens, 50)),
    }
    return {**figures, "shares": shares(engine, chosen)}


def shares(engine: Engine, records: Sequence[Record]) -> dict[str, float]:
    """What part of the time of these calls each stage takes by itself, without the stages inside it; `rest` is choosing
    tokens, moving tensors, Python. The stages of an export are its graphs."""
    spent = Counter[str]()
    inside = [0.0]  # of each stage that is running, what others inside it have taken
    assert engine.grammar is not None
    stages: dict[str, tuple[Any, str]] = {
        "tokenising": (engine, "_read"),
        "grammar": (engine.grammar, "matcher"),
        "allowed tokens": (Matcher, "allowed"),
    }
    if isinstance(engine.backend, EagerBackend):
        stages |= {name: (engine.backend.student, part) for name, part in STAGES[engine.model.family].items()}
    else:
        stages["graph"] = (engine.backend.export, "run")  # type: ignore[attr-defined]

    def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            started = time.perf_counter()
            inside.append(0.0)
            try:
                return function(*given, **named)
            finally:
                taken = time.perf_counter() - started
                spent[f"graph {given[0]}" if stage == "graph" else stage] += taken - inside.pop()  # type: ignore[assignment]
                inside[-1] += taken

        return call

    with ExitStack() as stack:
        for stage, (owner, name) in stages.items():
            stack.enter_context(mock.patch.object(owner, name, timed(stage, getattr(owner, name)), create=True))
        started = time.perf_counter()
        for record in records:
            engine.answer(record.query, record.tools)
        whole = time.perf_counter() - started
    return {
        **{stage: round(taken / whole, 3) for stage, taken in spent.items()},
        "rest": round(1 - sum(spent.values()) / whole, 3),
    }
