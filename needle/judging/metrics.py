"""How answers are judged: one `Score` a record, and `summarise`, which adds scores up with 95% intervals.

A call is exact when the multiset of predicted calls equals the gold one, arguments compared as JSON values. An empty
answer counts like any other: silence is right where no tool fits, and wrong where one does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from needle.text.records import Call, Record, canonical_json
from needle.text.validity import call_errors

RESAMPLES = 1000


@dataclass(frozen=True)
class Score:
    """Counts of one record. Rates are pairs (hits, out of), so that a summary can add them up."""

    rates: Mapping[str, tuple[float, float]]
    groups: Mapping[str, str]
    values: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        return self.rates["exact_call"][0] == 1.0


def score(record: Record, predicted: Sequence[Call] | None, seen_tools: frozenset[str] | None = None) -> Score:
    """Judges one answer. `predicted` is None when the output wasn't an answer at all: wrong, invalid, and no call."""
    calls = list(predicted or ())
    gold = Counter(call.key for call in record.answers)
    mine = Counter(call.key for call in calls)
    gold_arguments, my_arguments = _arguments(record.answers), _arguments(calls)
    hits = sum((gold_arguments & my_arguments).values())
    broken = predicted is None
    valid = not broken and not any(call_errors(call, record.tools) for call in calls)
    rates: dict[str, tuple[float, float]] = {
        "exact_call": (float(not broken and gold == mine), 1),
        "tool_name": (float(not broken and _names(record.answers) == _names(calls)), 1),
        "argument_precision": (hits, my_arguments.total()),
        "argument_recall": (hits, gold_arguments.total()),
        "argument_f1": (2 * hits, gold_arguments.total() + my_arguments.total()),
        "schema_valid": (float(valid), 1),
    }
    if record.answers:
        rates["missed_call_rate"] = (float(not calls), 1)
    else:
        rates["false_call_rate"] = (float(bool(calls)), 1)
    return Score(rates, _groups(record, seen_tools), _value_accuracy(record.answers, calls))


def _names(calls: Iterable[Call]) -> Counter[str]:
    return Counter(call.name for call in calls)


def _arguments(calls: Iterable[Call]) -> Counter[tuple[str, str, str]]:
    return Counter((call.name, name, canonical_json(value)) for call in calls for name, value in call.arguments.items())


def _value_accuracy(gold: Sequence[Call], calls: Sequence[Call]) -> dict[str, tuple[int, int]]:
    """By JSON type: of the gold values whose tool and argument were named, how many have the right value."""
    named = Counter((call.name, name) for call in calls for name in call.arguments)
    right = _arguments(calls)
    out: dict[str, tuple[int, int]] = {}
    missed = []
    for call in gold:
        for name, value in call.arguments.items():
            key = (call.name, name, canonical_json(value))
            if right[key] > 0:
                right[key] -= 1
                named[call.name, name] -= 1
                _count(out, value, 1)
            else:
                missed.append((call.name, name, value))
    for tool, name, value in missed:
        if named[tool, name] > 0:
            named[tool, name] -= 1
            _count(out, value, 0)
    return out


def _count(out: dict[str, tuple[int, int]], value: Any, hit: int) -> None:
    hits, total = out.get(json_type(value), (0, 0))
    out[json_type(value)] = (hits + hit, total + 1)


def json_type(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "integer" if isinstance(value, int) or value.is_integer() else "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list | tuple) else "object"


def _groups(record: Record, seen_tools: frozenset[str] | None) -> dict[str, str]:
    groups = {
        "calls": str(len(record.answers)) if len(record.answers) < 4 else "4+",
        "tools": str(len(record.tools)) if len(record.tools) < 10 else "10+",
        "source": record.source or "(none)",
    }
    if "phrasing" in record.meta:
        groups["phrasing"] = str(record.meta["phrasing"])
    if "unseen_service" in record.meta or "unseen_tool" in record.meta:
        groups["seen"] = "unseen" if record.meta.get("unseen_service") or record.meta.get("unseen_tool") else "seen"
    elif seen_tools is not None:
        names = {call.name for call in record.answers} or {tool.name for tool in record.tools}
        groups["seen"] = "seen" if names <= seen_tools else "unseen"
    return groups


def summarise(scores: Sequence[Score], seed: int = 0) -> dict[str, Any]:
    """`{"records", metric: {"value", "low", "high"}, "values": {type: …}, "groups": {group: {member: {…}}}}`.

    Intervals are percentile bootstraps over records. A rate without a single case has the value None.
    """
    summary = _table(scores, seed)
    kinds = sorted({kind for s in scores for kind in s.values})
    summary["values"] = {kind: interval([s.values.get(kind, (0, 0)) for s in scores], seed) for kind in kinds}
    groups: dict[str, Any] = {}
    for group in sorted({name for s in scores for name in s.groups}):
        members: dict[str, list[Score]] = {}
        for s in scores:
            if group in s.groups:
                members.setdefault(s.groups[group], []).append(s)
        groups[group] = {member: _table(found, seed) for member, found in sorted(members.items())}
    summary["groups"] = groups
    return summary


METRICS = (
    "exact_call", "tool_name", "argument_f1", "argument_precision", "argument_recall", "false_call_rate",
    "missed_call_rate", "schema_valid",
)  # fmt: skip


def _table(scores: Sequence[Score], seed: int) -> dict[str, Any]:
    table: dict[str, Any] = {"records": len(scores)}
    for metric in METRICS:
        table[metric] = interval([s.rates.get(metric, (0, 0)) for s in scores], seed)
    return table


def interval(pairs: Sequence[tuple[float, float]], seed: int) -> dict[str, float | None]:
    """The rate of pairs (hits, out of) with a 95% percentile bootstrap over them."""
    counts = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    counts = counts[counts[:, 1] > 0]
    if not len(counts):
        return {"value": None, "low": None, "high": None}
    low, high = np.percentile(_resample(counts, seed), [2.5, 97.5])
    return {"value": float(counts[:, 0].sum() / counts[:, 1].sum()), "low": float(low), "high": float(high)}


def _resample(counts: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """[RESAMPLES] ratios of sums over records drawn with replacement."""
    random = np.random.default_rng(seed)
    out = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        drawn = counts[random.integers(0, len(counts), len(counts))].sum(axis=0)
        out[index] = drawn[0] / drawn[1] if drawn[1] else 0.0
    return out
