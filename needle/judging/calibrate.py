"""Makes a student's confidence a probability, and says how far it can be trusted.

A logistic regression of what was noticed while an answer was decoded (`needle.engine.confidence`), then isotonic
regression of its score (Zadrozny & Elkan 2002). Everything that is reported is of records whose family (a service, a
skill, a catalogue) had no part in fitting what judges it: families are dealt into `FOLDS`, each judged by what the
others fit. A bound on the share of wrong answers is Learn-then-Test (Angelopoulos et al. 2021, arXiv:2110.01052) with
fixed-sequence testing; how often it holds is counted over resplits by family.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, t
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from needle.engine.confidence import NAMES, Calibration, Map
from needle.engine.decode import Answer, Engine, Report, Request
from needle.judging.metrics import score
from needle.text.records import Call, Record, canonical_json

FOLDS = 5
BINS = 15
LEAST = 100  # records that something is fitted on
STRENGTH = 0.3  # inverse of the penalty on the regression's weights
WRONG = (0.01, 0.02, 0.05, 0.1)  # shares of wrong answers at which coverage is told
RISK, MISS = 0.05, 0.1  # the bound, and how often it may be missed
RESPLITS = 1000
GRID = 40  # thresholds that are tested
STARTS = (75, 200, 500)  # answers above the first of them
Numbers = NDArray[np.float64]


@dataclass
class Judged:
    """Answers beside what is right: features [N, F], raw confidences and whether the answer is exact [N], the family of
    each, groups in which it is counted, and pairs of raw confidence and right for calls and arguments."""

    features: Numbers
    raw: Numbers
    right: Numbers
    family: list[str]
    groups: list[dict[str, str]]
    calls: list[tuple[float, float]]
    arguments: list[tuple[float, float]]

    def take(self, rows: NDArray[np.bool_]) -> Judged:
        kept = [index for index in range(len(self.family)) if rows[index]]
        return Judged(
            self.features[rows], self.raw[rows], self.right[rows], [self.family[i] for i in kept],
            [self.groups[i] for i in kept], self.calls, self.arguments,
        )  # fmt: skip


def family_of(record: Record) -> str:
    meta = record.meta
    return f"{record.source}/{meta.get('family') or meta.get('service') or ''}"


def answered(engine: Engine, records: Sequence[Record], report: Report | None = None) -> Judged:
    """Answers every record, without the calibration that the engine may have. Answers that aren't any are left out:
    their confidence is 0."""
    known, engine.calibration = engine.calibration, None
    try:
        answers = engine.answer_all([Request(one.query, one.tools, one.id) for one in records], report=report)
    finally:
        engine.calibration = known
    seen = engine.model.seen_tools or None
    rows: list[tuple[Numbers, float, float, str, dict[str, str]]] = []
    calls: list[tuple[float, float]] = []
    arguments: list[tuple[float, float]] = []
    for record, answer in zip(records, answers, strict=True):
        if answer.noticed is None or answer.calls is None:
            continue
        judged = score(record, answer.calls, seen)
        groups = {"calls": judged.groups["calls"], "source": judged.groups["source"]}
        groups["said"] = str(min(len(answer.calls), 3))
        if "seen" in judged.groups:
            groups["seen"] = judged.groups["seen"]
        row = (answer.noticed.features(), answer.confidence, float(judged.exact), family_of(record), groups)
        rows.append(row)
        _parts(record, answer, calls, arguments)
    if not rows:
        raise ValueError("there are no answers to calibrate on")
    features, raw, right, family, groups_of = zip(*rows, strict=True)
    return Judged(
        np.stack(features), np.asarray(raw), np.asarray(right), list(family), list(groups_of), calls, arguments
    )


def _parts(
    record: Record, answer: Answer, calls: list[tuple[float, float]], arguments: list[tuple[float, float]]
) -> None:
    gold = Counter(call.key for call in record.answers)
    told = Counter(_argument(call, name) for call in record.answers for name in call.arguments)
    for call, sure, parts in zip(answer.calls or (), answer.call_confidence, answer.argument_confidence, strict=True):
        calls.append((sure, float(gold[call.key] > 0)))
        gold[call.key] -= 1
        for name, own in parts.items():
            key = _argument(call, name)
            arguments.append((own, float(told[key] > 0)))
            told[key] -= 1


def _argument(call: Call, name: str) -> tuple[str, str, str]:
    return call.name, name, canonical_json(call.arguments[name])


def fit(judged: Judged, facts: Mapping[str, Any] | None = None) -> Calibration:
    """Raises ValueError for too few records, or if all answers are right, or none."""
    if len(judged.right) < LEAST or len(set(judged.right)) < 2:
        raise ValueError(
            f"{len(judged.right)} answers, {int(judged.right.sum())} of them right: a confidence is fitted on at least"
            f" {LEAST}, some right and some wrong"
        )
    mean, scale = judged.features.mean(0), judged.features.std(0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    made = (judged.features - mean) / scale
    # The map is fitted on scores of records that the regression hasn't seen.
    scores = np.zeros(len(made))
    for fold in _folds(judged.family):
        rest = ~fold
        own = _regression(made[rest], judged.right[rest])
        scores[fold] = own.decision_function(made[fold])
    whole = _regression(made, judged.right)
    weights, bias = whole.coef_[0].tolist(), float(whole.intercept_[0])
    return Calibration(
        mean.tolist(), scale.tolist(), weights, bias, _monotone(scores, judged.right), _pairs(judged.calls),
        _pairs(judged.arguments), dict(facts or {}),
    )  # fmt: skip


def _regression(features: Numbers, right: Numbers) -> LogisticRegression:
    if len(set(right)) < 2:  # a fold without a wrong answer
        features, right = np.vstack([features, features[:1]]), np.append(right, 1 - right[0])
    return LogisticRegression(C=STRENGTH, max_iter=2000).fit(features, right)


def _pairs(pairs: Sequence[tuple[float, float]]) -> Map:
    if len(pairs) < LEAST:
        return Map((0.0, 1.0), (0.0, 1.0))
    scores, right = np.asarray(pairs).T
    return _monotone(scores, right)


def _monotone(scores: Numbers, right: Numbers) -> Map:
    """Isotonic regression, each level drawn towards a half as if two more records, one right and one wrong, were in it:
    what was always right among ten isn't sure."""
    levels = IsotonicRegression(out_of_bounds="clip").fit_transform(scores, right)
    x, y = [], []
    for level in np.unique(levels):
        inside = levels == level
        count = inside.sum()
        value = (right[inside].sum() + 1) / (count + 2)
        for place in dict.fromkeys((float(scores[inside].min()), float(scores[inside].max()))):
            x.append(place)
            y.append(float(value))
    return Map(x, np.maximum.accumulate(y).tolist())


def _folds(families: Sequence[str], seed: int = 0, count: int = FOLDS) -> list[NDArray[np.bool_]]:
    """Families dealt into folds of similar size; records of the only family are dealt one by one."""
    sizes = Counter(families)
    names = sorted(sizes, key=lambda name: (-sizes[name], name))
    if len(names) < count:
        place = np.random.default_rng(seed).permutation(len(families)) % count
        return [place == fold for fold in range(count)]
    random.Random(seed).shuffle(names)
    totals, fold_of = [0] * count, {}
    for name in sorted(names, key=lambda name: -sizes[name]):
        fold = totals.index(min(totals))
        fold_of[name] = fold
        totals[fold] += sizes[name]
    place = np.asarray([fold_of[name] for name in families])
    return [place == fold for fold in range(count)]


def crossed(judged: Judged) -> Numbers:
    """[N] confidences, each by a calibration that its family had no part in."""
    found = np.zeros(len(judged.right))
    for fold in _folds(judged.family, seed=1):
        own = fit(judged.take(~fold))
        found[fold] = [own(row) for row in judged.features[fold]]
    return found


def quality(sure: Numbers, right: Numbers) -> dict[str, Any]:
    """How well confidences tell right from wrong (AUROC), how true they are (expected calibration error in bins of
    equal size, beside what chance alone would give; Brier), and what share may be answered at a share of wrong
    ones."""
    out: dict[str, Any] = {"records": len(right), "right": float(right.mean()) if len(right) else None}
    if len(right) < 2:
        return out
    both = len(set(right)) == 2
    out["auroc"] = float(roc_auc_score(right, sure)) if both else None
    out["ece"], out["ece_by_chance"] = _ece(sure, right), _chance(sure)
    out["brier"] = float(np.mean((sure - right) ** 2))
    out["coverage"] = {str(wrong): coverage(sure, right, wrong) for wrong in WRONG}
    return out


def _ece(sure: Numbers, right: Numbers) -> float:
    parts = np.array_split(np.argsort(sure, kind="stable"), min(BINS, len(right)))
    return float(sum(len(own) * abs(sure[own].mean() - right[own].mean()) for own in parts) / len(right))


def _chance(sure: Numbers) -> float:
    """The error that is to be expected if every confidence is true."""
    drawn = np.random.default_rng(0)
    return float(np.mean([_ece(sure, (drawn.random(len(sure)) < sure).astype(float)) for _ in range(20)]))


def coverage(sure: Numbers, right: Numbers, wrong: float) -> float:
    """The largest share of answers, the surest first, of which at most a share `wrong` is wrong."""
    order = np.argsort(-sure, kind="stable")
    errors = np.cumsum(1 - right[order]) / np.arange(1, len(right) + 1)
    last = np.append(np.diff(sure[order]) != 0, True)  # equal confidences are answered together or not at all
    fitting = np.nonzero((errors <= wrong) & last)[0]
    return float((fitting[-1] + 1) / len(right)) if len(fitting) else 0.0


def threshold(
    sure: Numbers, right: Numbers, families: Sequence[str], risk: float = RISK, miss: float = MISS
) -> float | None:
    """The least confidence above which at most a share `risk` of answers is wrong, with a chance of `miss` to be
    mistaken; None if there is no such. Thresholds are tested from the highest down until one fails, beginning with
    those that `STARTS` answers reach, each with its part of the chance."""
    order = np.argsort(-sure, kind="stable")
    levels, wrong = sure[order], 1 - right[order]
    names = {name: number for number, name in enumerate(dict.fromkeys(families))}
    own = np.asarray([names[families[place]] for place in order])
    counts = np.unique(np.linspace(0, len(sure), GRID + 1).astype(int)[1:])
    found = None
    for start in STARTS:
        for count in np.unique(np.append(counts[counts > start], start)):
            if count > len(sure):
                break
            last = int(np.searchsorted(-levels, -levels[count - 1], side="right"))  # equal ones are answered together
            if most_wrong(wrong[:last], own[:last], miss / len(STARTS)) > risk:
                break
            found = min(float(levels[count - 1]), 1.0 if found is None else found)
    return found


def most_wrong(wrong: Numbers, families: NDArray[np.int64], miss: float) -> float:
    """An upper limit of the share of wrong answers that is missed with this chance: Clopper and Pearson's, or that of a
    sample of families (the ratio estimator of Cochran 1977, section 6), whichever is higher. The families to come may
    be harder than those seen."""
    count, total = len(wrong), float(wrong.sum())
    by_family, sizes = np.bincount(families, wrong), np.bincount(families)
    kept = sizes > 0
    few, spread = int(kept.sum()), by_family[kept] - total / count * sizes[kept]
    alone = float(beta.ppf(1 - miss, total + 1, count - total)) if total < count else 1.0
    if few < 2:
        return alone
    error = float(np.sqrt(few / (few - 1) * (spread**2).sum())) / count
    return max(alone, total / count + float(t.ppf(1 - miss, few - 1)) * error)


def held(sure: Numbers, right: Numbers, families: Sequence[str], resplits: int = RESPLITS) -> dict[str, Any]:
    """Of resplits by family into halves: how often a threshold that was set on one kept the bound on the other, where
    it answers anything, and what share it answers. The confidences are those of `crossed`: only the threshold is set
    anew, not the regression."""
    names, own = sorted(set(families)), np.asarray(families)
    kept, answered_share = 0, []
    for seed in range(resplits):
        drawn = random.Random(seed).sample(names, len(names) // 2) if len(names) > 3 else None
        if drawn is None:
            half = np.random.default_rng(seed).random(len(own)) < 0.5
        else:
            half = np.isin(own, drawn)
        level = threshold(sure[half], right[half], list(own[half]))
        inside = sure[~half] >= (2.0 if level is None else level)
        kept += not inside.any() or float(1 - right[~half][inside].mean()) <= RISK
        answered_share.append(float(inside.mean()))
    return {"risk": RISK, "held": kept / resplits, "answered": float(np.mean(answered_share)), "resplits": resplits}


def calibrate(
    engine: Engine, records: Sequence[Record], report: Report | None = None
) -> tuple[Calibration, dict[str, Any]]:
    """A calibration of an engine, and the table of how good it is on families that have no part in it.

    Raises:
        ValueError: too few records, or all answers right or wrong.
    """
    started = time.perf_counter()
    judged = answered(engine, records, report)
    between = time.perf_counter()
    facts: dict[str, Any] = {
        "records": len(judged.right), "families": len(set(judged.family)), "right": float(judged.right.mean()),
        "sources": sorted({groups["source"] for groups in judged.groups}),
    }  # fmt: skip
    sure = crossed(judged)
    facts["threshold"] = {str(risk): threshold(sure, judged.right, judged.family, risk) for risk in WRONG}
    found = fit(judged, facts)
    table: dict[str, Any] = {
        **facts,
        "raw": quality(judged.raw, judged.right),
        "calibrated": quality(sure, judged.right),
        "bound": held(sure, judged.right, judged.family),
        "groups": {},
        "weights": dict(zip(NAMES, found.weights, strict=True)),
        "seconds": {"answering": round(between - started, 1), "fitting": 0.0},
    }
    for group in ("said", "calls", "seen", "source"):
        members = sorted({groups[group] for groups in judged.groups if group in groups})
        for member in members:
            rows = np.asarray([groups.get(group) == member for groups in judged.groups])
            table["groups"][f"{group}: {member}"] = {
                "raw": quality(judged.raw[rows], judged.right[rows]),
                "calibrated": quality(sure[rows], judged.right[rows]),
            }
    table["curve"] = {"confidence": sure.tolist(), "raw": judged.raw.tolist(), "right": judged.right.tolist()}
    table["seconds"]["fitting"] = round(time.perf_counter() - between, 1)
    return found, table
