"""Comparing arms: paired statistics over seeds and records, and the report.

An arm is a loss at a data size; its runs differ in the seed. Every run is judged on the same test records, so a
difference between two arms is paired: by seed (same initialisation, same order) and by record.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from needle.judging.metrics import Score
from needle.text.records import Record

RESAMPLES = 2000
LEVEL, SEEDS = 0.05, 3  # of the corrected p, and of the seeds, without which no arm is called better
PLAIN = "finetune"  # the arm that the others are compared with
RATES = ("exact_call", "tool_name", "argument_f1", "false_call_rate", "missed_call_rate", "schema_valid")


@dataclass
class CompareConfig:
    """`teacher` are settings of the teacher's own training run, on top of the experiment's; `sweep` names the grid of
    arms.

    `checkpoint` is a teacher that is there already, in place of one trained here. `seeds` stand in place of the grid's.
    With `train=false` nothing is trained: the report is about the arms that are there, and names those that aren't.
    """

    teacher: list[str] = field(default_factory=list)
    checkpoint: str | None = None
    sweep: str = "distill_vs_finetune"
    seeds: list[int] = field(default_factory=list)
    samples: int = 12
    train: bool = True


@dataclass
class Run:
    """One trained and judged model: `scores` in the order of the test records."""

    scores: Sequence[Score]
    answers: Sequence[Any]  # engine Answers
    seed: int
    summary: Mapping[str, Any]  # of training
    evaluation_seconds: float
    folder: Path


@dataclass
class Arm:
    """All seeds of one loss at one data size."""

    name: str
    loss: Mapping[str, float]
    data_size: int
    runs: list[Run]

    def rates(self, metric: str) -> NDArray[np.float64]:
        """[seeds, records, 2] hits and cases."""
        return np.asarray(
            [[score.rates.get(metric, (0, 0)) for score in run.scores] for run in self.runs], dtype=np.float64
        )


def seeds_interval(rates: NDArray[np.float64], seed: int = 0) -> dict[str, float | None]:
    """Mean over seeds of a rate, with a 95% interval over seeds and records. Seeds without a case don't count.

    Args:
        rates: [seeds, records, 2], hits and cases.
    """
    per_seed = _per_seed(rates.sum(1))
    if not per_seed.size:
        return {"mean": None, "low": None, "high": None}
    low, high = np.clip(np.percentile(_drawn(rates, seed), [2.5, 97.5]), 0, 1)
    return {"mean": float(per_seed.mean()), "low": float(low), "high": float(high)}


def _per_seed(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rates of the seeds that have cases; `totals` are [seeds, 2]."""
    some = totals[totals[:, 1] > 0]
    rates: NDArray[np.float64] = some[:, 0] / some[:, 1]
    return rates


def _drawn(rates: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """[RESAMPLES] mean rates that other records and other seeds might have given.

    Records are resampled. Few seeds can't be: of three, no resample leaves their own range, and where seeds differ
    much, two equal arms would be told apart in a quarter of all reports. So their mean is moved as Student's t with n -
    1 degrees of freedom has it. What is drawn depends on the number of records and seeds and on `seed` alone, so that
    two calls share it.
    """
    which, luck = (np.random.default_rng([seed, stream]) for stream in (0, 1))
    seeds, records, _ = rates.shape
    out = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        own = _per_seed(rates[:, which.integers(0, records, records)].sum(1))
        moves, spread = luck.normal(size=(seeds,))[: own.size], luck.chisquare(max(seeds - 1, 1))
        mean = own.mean() if own.size else 0.0
        out[index] = mean + (moves @ (own - mean) / np.sqrt(own.size * spread) if own.size > 1 else 0.0)
    return out


def paired(a: Arm, b: Arm, seed: int = 0) -> dict[str, Any]:
    """Exact call of `a` minus that of `b`, paired by seed and record; p is two-sided, from the same draws as the
    interval.

    Raises:
        ValueError: the arms have other seeds or other test records.
    """
    if [run.seed for run in a.runs] != [run.seed for run in b.runs]:
        raise ValueError(f"arms '{a.name}' and '{b.name}' have other seeds and can't be paired")
    left, right = a.rates("exact_call"), b.rates("exact_call")
    if left.shape != right.shape:
        raise ValueError(f"arms '{a.name}' and '{b.name}' were judged on other test records")
    difference = left[..., 0] - right[..., 0]
    drawn = _drawn(np.stack([difference, np.ones_like(difference)], axis=-1), seed)
    low, high = np.percentile(drawn, [2.5, 97.5])
    tail = min((drawn <= 0).mean(), (drawn >= 0).mean())
    return {
        "a": a.name, "b": b.name, "data_size": a.data_size, "seeds": len(a.runs),
            "difference": float(difference.mean()), "low": float(low), "high": float(high),
        "p": float(min(1.0, max(2 * tail, 1 / RESAMPLES))),
    }  # fmt: skip


def holm(p: Sequence[float]) -> list[float]:
    """The p-values of several tests, corrected for their number (Holm 1979): one below 0.05 is then found by chance in
    5% of reports, not of tests."""
    order = sorted(range(len(p)), key=lambda index: p[index])
    out, highest = [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, p[index] * (len(p) - rank)))
        out[index] = highest
    return out


def worth(arm: Arm, plain: Sequence[Arm], seed: int = 0) -> dict[str, Any]:
    """How many records one loss needs (`plain`, at several sizes) for the exact call that `arm` reaches with its own.

    Read off the learning curve of `plain`, straight lines over the logarithm of the size, with a 95% interval over
    records and seeds. A curve isn't drawn further than it was measured: its smallest size stands for that or fewer,
    None for more than its largest. Only seeds that all of them have count.

    Raises:
        ValueError: there is no such seed.
    """
    arm, *curve = _with_common_seeds(arm, *sorted(plain, key=lambda other: other.data_size))
    sizes = [other.data_size for other in curve]
    drawn = np.stack(
        [_drawn(other.rates("exact_call"), seed) for other in curve], axis=1
    )  # the same records in all of them
    reached = _drawn(arm.rates("exact_call"), seed)
    needed = [_where(sizes, values, value) for values, value in zip(drawn, reached, strict=True)]
    low, high = np.percentile(needed, [2.5, 97.5], method="nearest")
    found = _where(
        sizes, [other.rates("exact_call")[..., 0].mean() for other in curve], arm.rates("exact_call")[..., 0].mean()
    )
    records, least, most = (round(value) if np.isfinite(value) else None for value in (found, float(low), float(high)))
    return {
        "a": arm.name,
        "b": curve[0].name,
        "data_size": arm.data_size,
        "seeds": len(arm.runs),
        "records": records,
        "low": least,
        "high": most,
        "smallest": sizes[0],
        "largest": sizes[-1],
    }


def _where(sizes: Sequence[int], values: Sequence[float], value: float) -> float:
    """The size at which a curve first comes to `value`; infinite where it never does."""
    highest = np.maximum.accumulate(values)
    first = int(np.searchsorted(highest, value))
    if first == len(highest):
        return np.inf
    if first == 0:
        return float(sizes[0])
    return float(np.exp(np.interp(value, highest[first - 1 : first + 1], np.log(sizes[first - 1 : first + 1]))))


def _seeds(*arms: Arm) -> list[int]:
    """The seeds that all arms have, in order: a sweep may be unfinished."""
    return sorted(set.intersection(*({run.seed for run in arm.runs} for arm in arms)))


def _with_common_seeds(*arms: Arm) -> list[Arm]:
    seeds = _seeds(*arms)
    if not seeds:
        raise ValueError(f"{', '.join(f'{arm.name} at {arm.data_size}' for arm in arms)} have no seed in common")
    return [replace(arm, runs=[next(run for run in arm.runs if run.seed == seed) for seed in seeds]) for arm in arms]


def _contrasts(arms: Sequence[Arm], named: Sequence[tuple[str, str]]) -> list[tuple[Arm, Arm]]:
    """Every arm with the one that stands for no teacher at its size, and the pairs that were named."""
    out = []
    fallback = (
        None
        if any(arm.name == PLAIN for arm in arms)
        else next((arm.name for arm in arms if arm.loss["alpha"] == 0), None)
    )
    for size in sorted({arm.data_size for arm in arms}):
        here = {arm.name: arm for arm in arms if arm.data_size == size}
        wanted = [*((name, fallback or PLAIN) for name in here), *named]
        out += [
            (here[a], here[b]) for a, b in wanted if a != b and a in here and b in here and _seeds(here[a], here[b])
        ]
    return out


def build_report(
    arms: Sequence[Arm],
    teacher: Run | None,
    records: Sequence[Record],
    wall_seconds: float,
    facts: Mapping[str, Any],
    samples: int = 12,
    contrasts: Sequence[tuple[str, str]] = (),
) -> dict[str, Any]:
    """Everything the report shows, as JSON. `facts` are the title, the commands and the teacher's and students'
    settings.

    Every arm is compared with fine-tuning; `contrasts` names further pairs of arms to compare, at each size that has
    both.
    """
    if not arms:
        raise ValueError("no arm is trained and judged yet; there is nothing to report")
    # Each arm by itself: rates with intervals, by group of records, and what it cost.
    parts = _partition(max(arms, key=lambda arm: arm.data_size).runs[0])
    rows = []
    for arm in arms:
        if len({run.seed for run in arm.runs}) < len(arm.runs):
            raise ValueError(
                f"arm '{arm.name}' at {arm.data_size} records has two runs of one seed; give the sweep another axis"
                " name or other seeds"
            )
        seconds = [run.summary.get("seconds", 0.0) for run in arm.runs]
        rows.append(
            {
                "name": arm.name,
                "loss": dict(arm.loss),
                "data_size": arm.data_size,
                "seeds": [run.seed for run in arm.runs],
                "metrics": {metric: seeds_interval(arm.rates(metric)) for metric in RATES},
                "per_seed": [float(np.mean([score.exact for score in run.scores])) for run in arm.runs],
                "groups": _groups(arm, parts),
                "cost": {
                    "train_seconds": float(np.mean(seconds)),
                    "evaluate_seconds": float(np.mean([run.evaluation_seconds for run in arm.runs])),
                    "steps": arm.runs[0].summary.get("steps"),
                    "records_per_second": float(
                        np.mean([run.summary.get("records_per_second", 0.0) for run in arm.runs])
                    ),
                    "parameters": arm.runs[0].summary.get("parameters"),
                },
            }
        )
    # Arms against each other, on the seeds that both have, corrected for their number.
    shared = [_with_common_seeds(*pair) for pair in _contrasts(arms, contrasts)]
    pairs = [paired(a, b) for a, b in shared]
    pairs = [{**pair, "p_holm": p} for pair, p in zip(pairs, holm([pair["p"] for pair in pairs]), strict=True)]
    # How many fine-tuning records an arm is worth needs a curve of fine-tuning at several sizes.
    plain = [arm for arm in arms if arm.name == PLAIN]
    report: dict[str, Any] = {
        "missing": [],
        **facts,
        "arms": rows,
        "teacher": _teacher_row(teacher, parts),
        "paired": pairs,
        "worth": (
            [worth(arm, plain) for arm in arms if arm.name != PLAIN and _seeds(arm, *plain)] if len(plain) > 1 else []
        ),
        "verdict": verdict(pairs),
        "test_records": len(records),
        "wall_seconds": round(wall_seconds, 1),
        "versions": versions(),
        "samples": _samples(arms, teacher, records, samples),
    }
    return report


Partition = Mapping[str, Mapping[str, Sequence[int]]]


def _partition(run: Run) -> Partition:
    """Test records by source, number of calls, seen and unseen tools, and kind of phrasing, as one run sees them, so
    that all arms share the parts."""
    out: dict[str, dict[str, list[int]]] = {}
    for index, score in enumerate(run.scores):
        for group in ("source", "calls", "seen", "phrasing"):
            if group in score.groups:
                out.setdefault(group, {}).setdefault(score.groups[group], []).append(index)
    return {
        group: dict(sorted(members.items())) for group, members in out.items() if group != "source" or len(members) > 1
    }


def _groups(arm: Arm, parts: Partition) -> dict[str, dict[str, dict[str, Any]]]:
    """Exact call on each part of the test records."""
    rates = arm.rates("exact_call")
    return {
        group: {member: {"records": len(index), **seeds_interval(rates[:, index])} for member, index in members.items()}
        for group, members in parts.items()
    }


def _teacher_row(teacher: Run | None, parts: Partition) -> dict[str, Any] | None:
    if teacher is None:
        return None
    arm = Arm(
        "teacher", {"alpha": 0, "beta": 1, "temperature": 1}, teacher.summary.get("training_records", 0), [teacher]
    )
    return {
        "metrics": {metric: seeds_interval(arm.rates(metric)) for metric in RATES},
        "groups": _groups(arm, parts),
        "training": dict(teacher.summary),
    }


def verdict(pairs: Sequence[Mapping[str, Any]]) -> str:
    """One sentence for each size, in plain words; of more than two comparisons those with `finetune`, sorted by what
    came out.

    Better or worse is what has an interval without zero and, corrected for the number of comparisons, p < 0.05; with
    fewer than three seeds nothing is, as their own luck can't be told.
    """
    sizes: dict[int, list[Mapping[str, Any]]] = {}
    for pair in pairs:
        sizes.setdefault(pair["data_size"], []).append(pair)
    lines = []
    for size, found in sizes.items():
        plain = [pair for pair in found if pair["b"] == PLAIN]
        many = len(found) > 2 and bool(plain)
        lines.append(
            f"With {size:,} records, {_against_plain(plain) if many else '; '.join(_in_words(pair) for pair in found)}."
        )
    return " ".join(lines)


def _outcome(pair: Mapping[str, Any]) -> str:
    if pair["seeds"] < SEEDS:
        return "too few seeds to tell"
    if pair["p_holm"] < LEVEL and (pair["low"] > 0 or pair["high"] < 0):
        return "better" if pair["low"] > 0 else "worse"
    return "no difference shows"


def _points(pair: Mapping[str, Any]) -> str:
    return f"{100 * pair['difference']:+.1f} points ({100 * pair['low']:+.1f} to {100 * pair['high']:+.1f})"


def _in_words(pair: Mapping[str, Any]) -> str:
    return {
        "better": f"{pair['a']} beats {pair['b']} by {_points(pair)}",
        "worse": f"{pair['a']} loses to {pair['b']}: {_points(pair)}",
        "no difference shows": f"no difference between {pair['a']} and {pair['b']} shows: {_points(pair)}",
        "too few seeds to tell": (
            f"{pair['a']} and {pair['b']} differ by {_points(pair)} with {pair['seeds']}"
            f" seed{'s' if pair['seeds'] > 1 else ''}, too few to tell"
        ),
    }[_outcome(pair)]


def _against_plain(pairs: Sequence[Mapping[str, Any]]) -> str:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for pair in sorted(pairs, key=lambda pair: -pair["difference"]):
        found.setdefault(_outcome(pair), []).append(pair)
    order = ("better", "no difference shows", "worse", "too few seeds to tell")
    return f"against {PLAIN}: " + "; ".join(
        f"{outcome}: {_list(found[outcome])}" for outcome in order if outcome in found
    )


def _list(pairs: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{pair['a']} {_points(pair)}" for pair in pairs)


def _samples(arms: Sequence[Arm], teacher: Run | None, records: Sequence[Record], count: int) -> list[dict[str, Any]]:
    """Requests with the answers of the arms of the largest size side by side; those on which the arms disagree come
    first."""
    if not arms:
        return []
    largest = max(arm.data_size for arm in arms)
    here = [arm for arm in arms if arm.data_size == largest]
    order = sorted(range(len(records)), key=lambda i: (len({arm.runs[0].scores[i].exact for arm in here}) == 1, i))
    half = count // 2
    chosen = order[:half] + [i for i in range(len(records)) if i not in order[:half]][: count - half]
    rows = []
    for index in chosen:
        row: dict[str, Any] = {
            "query": records[index].query,
            "tools": [tool.name for tool in records[index].tools],
            "gold": [call.to_json() for call in records[index].answers],
            "answers": {},
        }
        named = [("teacher", teacher)] if teacher else []
        for name, run in [*named, *((arm.name, arm.runs[0]) for arm in here)]:
            answer, score = run.answers[index], run.scores[index]
            calls = None if answer.calls is None else [call.to_json() for call in answer.calls]
            row["answers"][name] = {
                "calls": calls,
                "exact": score.exact,
                "confidence": round(answer.confidence, 3),
                "finish": answer.finish,
            }
        rows.append(row)
    return rows


def versions() -> dict[str, str]:
    names = ("torch", "accelerate", "tokenizers", "llguidance", "jsonschema-rs", "hydra-core")
    return {
        "needle": version("needle"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: version(name) for name in names},
    }


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """`report.json`, `report.md` and `report.html`, the last with its pictures inside."""
    from needle.judging.report import render_html, render_markdown  # matplotlib is slow to import, and only wanted here

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(render_markdown(report), encoding="utf-8")
    (folder / "report.html").write_text(render_html(report), encoding="utf-8")
