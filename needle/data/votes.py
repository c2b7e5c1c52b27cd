"""What a recorded teacher answered, kept beside a record.

A record's `teacher` field holds the answers: {"answers": [{"calls": [...], "count": 3}, ...]}. `count` is how many
samples gave that answer, or any weight; answers that are equal as multisets of calls are one.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from needle.text.calls import read_call
from needle.text.records import Call, DataError, FieldError, Record, canonical_json
from needle.text.validity import call_errors


@dataclass(frozen=True)
class Vote:
    """One distinct answer and its share of the teacher's answers."""

    calls: tuple[Call, ...]
    share: float


def votes(record: Record) -> list[Vote]:
    """The teacher's distinct answers, the likeliest first; empty when the record holds none. One that the tools don't
    allow is left out, and its share goes to the others.

    Raises:
        DataError: the `teacher` field isn't as above.
    """
    if record.teacher is None or "answers" not in record.teacher:
        return []
    counts: dict[str, float] = defaultdict(float)
    calls: dict[str, tuple[Call, ...]] = {}
    try:
        for index, row in enumerate(_rows(record.teacher["answers"])):
            where = f"teacher.answers[{index}]"
            count = row.get("count", 1)
            if isinstance(count, bool) or not isinstance(count, int | float) or not 0 < count < math.inf:
                raise FieldError(f"{where}.count", f"expected a positive number, got {count!r}")
            answer = tuple(read_call(call, f"{where}.calls[{i}]") for i, call in enumerate(row.get("calls", [])))
            if any(call_errors(call, record.tools) for call in answer):
                continue
            key = canonical_json(sorted(call.key for call in answer))
            calls.setdefault(key, answer)
            counts[key] += count
    except FieldError as error:
        raise DataError(f"record {record.id}: {error}") from error
    whole = sum(counts.values())
    return sorted((Vote(calls[key], count / whole) for key, count in counts.items()), key=lambda vote: -vote.share)


def _rows(answers: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(answers, list) or not all(
        isinstance(row, Mapping) and isinstance(row.get("calls", []), list) for row in answers
    ):
        raise FieldError("teacher.answers", 'expected an array of {"calls": [...], "count": number}')
    return answers


def votes_key(record: Record) -> str:
    """A hash of what the teacher said; empty when it said nothing."""
    if record.teacher is None or "answers" not in record.teacher:
        return ""
    return hashlib.sha256(canonical_json(record.teacher["answers"]).encode()).hexdigest()[:16]


def as_targets(records: Sequence[Record], rung: str) -> tuple[list[Record], list[float]]:
    """Records whose answers are the teacher's, and their weights; records without recorded answers that their tools
    allow are left out."""
    out, weights = [], []
    for record in records:
        found = votes(record)
        for number, vote in enumerate(found[:1] if rung == "argmax" else found):
            out.append(replace(record, id=f"{record.id}#{number}" if number else record.id, answers=vote.calls))
            weights.append(1.0 if rung == "argmax" else vote.share)
    return out, weights
