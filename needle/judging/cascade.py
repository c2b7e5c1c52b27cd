"""What a cascade would cost and get right: the student where it is sure, a model elsewhere for the rest.

Every ordering of the answers by how sure they are gives a curve of accuracy against the share that is asked for
elsewhere. Its gain is how far its mean lies above that of a random order, as a share of what an oracle would gain,
which asks elsewhere first where that helps and last where it harms. A monotone map of a confidence, isotonic regression
too, orders as the confidence itself and has the same curve.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from needle.engine.confidence import NAMES
from needle.engine.decode import Answer, Engine, Report, Request
from needle.judging.metrics import score
from needle.text.records import Record

RESAMPLES = 500
SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)  # asked elsewhere, for the table
DAYS = 30
Numbers = NDArray[np.float64]


@dataclass
class CascadeConfig:
    """The model elsewhere: what it answered to the same records is in the file `cloud`, as `needle evaluate
    predictions=FILE` writes it; without one it gives the gold answers but for a share of `error`. A call costs `price`
    dollars, and there are `per_day`."""

    cloud: str | None = None
    error: float = 0.0
    price: float = 0.002
    per_day: float = 847.0

    def __post_init__(self) -> None:
        if not 0 <= self.error < 1:
            raise ValueError(f"cascade.error is {self.error}; it must be at least 0 and below 1")
        for name in ("price", "per_day"):
            if getattr(self, name) <= 0:
                raise ValueError(f"cascade.{name} is {getattr(self, name)}; it must be above 0")


def simulated(records: Sequence[Record], error: float) -> Numbers:
    """Whether a model that is wrong on a share of `error` is right on each record; the same for the same record."""
    return np.asarray([float(random.Random(f"cloud:{record.id}").random() >= error) for record in records])


def rightness(records: Sequence[Record], answers: Sequence[Answer]) -> Numbers:
    return np.asarray(
        [float(score(record, answer.calls).exact) for record, answer in zip(records, answers, strict=True)]
    )


def orders(answers: Sequence[Answer]) -> dict[str, Numbers]:
    """How sure each answer is, by several measures; no answer at all is the least sure."""
    found: dict[str, list[float]] = {"confidence": [], "raw product": [], "margin": [], "doubt": []}
    for answer in answers:
        if answer.calls is None or answer.noticed is None:
            for own in found.values():
                own.append(-1e9)
            continue
        noticed = answer.noticed.features()
        found["confidence"].append(answer.confidence)
        found["raw product"].append(noticed[NAMES.index("raw")])
        found["margin"].append(noticed[NAMES.index("margin")])
        found["doubt"].append(-noticed[NAMES.index("doubt")])
    if not any(answer.calibrated for answer in answers):
        del found["raw product"]  # it is the confidence
    return {name: np.asarray(own) for name, own in found.items()}


def curve(sure: Numbers, own: Numbers, cloud: Numbers) -> Numbers:
    """[N+1] accuracy when the k least sure answers are asked for elsewhere. Of equally sure ones any may come first:
    their mean counts."""
    order = np.argsort(sure, kind="stable")
    ranked, gains = sure[order], (cloud - own)[order]
    starts = np.flatnonzero(np.append(True, np.diff(ranked) != 0))
    sizes = np.diff(np.append(starts, len(ranked)))
    gains = np.repeat(np.add.reduceat(gains, starts) / sizes, sizes)
    return np.concatenate([[own.mean()], own.mean() + np.cumsum(gains) / len(own)])


def gain(sure: Numbers, own: Numbers, cloud: Numbers) -> float:
    """0 for a random order, 1 for an oracle's."""
    middle = (own.mean() + cloud.mean()) / 2
    best = curve(own - cloud, own, cloud).mean() - middle
    return float((curve(sure, own, cloud).mean() - middle) / best) if best > 1e-12 else 0.0


def cascade(
    engine: Engine,
    records: Sequence[Record],
    config: CascadeConfig,
    cloud: Sequence[Answer] | None = None,
    report: Report | None = None,
) -> dict[str, Any]:
    """The table of a cascade; `cloud` are the other model's answers to the same records."""
    requests = [Request(record.query, record.tools, record.id) for record in records]
    answers = engine.answer_all(requests, report=report)
    own = rightness(records, answers)
    theirs = simulated(records, config.error) if cloud is None else rightness(records, cloud)
    return tabled(orders(answers), own, theirs, config)


def tabled(sures: Mapping[str, Numbers], own: Numbers, cloud: Numbers, config: CascadeConfig) -> dict[str, Any]:
    month = config.price * config.per_day * DAYS
    best = curve(sures["confidence"], own, cloud)
    shares = np.arange(len(best)) / len(own)
    order = np.sort(sures["confidence"])
    # The cheapest that is as good as the other model alone, and the best of all.
    even = np.flatnonzero(best >= cloud.mean() - 1e-12)
    top = int(np.flatnonzero(best >= best.max() - 1e-12)[0])

    def point(k: int) -> dict[str, float | None]:
        """At a share that is asked for elsewhere: below which confidence, how good, and what it costs."""
        below = float(order[min(k, len(order) - 1)]) if k < len(order) else None
        return {
            "share": float(shares[k]),
            "below": below,
            "accuracy": float(best[k]),
            "dollars": month * float(shares[k]),
        }

    drawn = np.random.default_rng(0)
    gains = {name: gain(sure, own, cloud) for name, sure in sures.items()}
    resampled: dict[str, list[float]] = {name: [] for name in sures}
    for _ in range(RESAMPLES):
        rows = drawn.integers(0, len(own), len(own))
        for name, sure in sures.items():
            resampled[name].append(gain(sure[rows], own[rows], cloud[rows]))
    mine = np.asarray(resampled["confidence"])
    measured = {
        name: {
            "gain": gains[name],
            "low": float(np.percentile(found, 2.5)),
            "high": float(np.percentile(found, 97.5)),
            "behind": gains["confidence"] - gains[name],
            "behind_low": float(np.percentile(mine - found, 2.5)),
            "behind_high": float(np.percentile(mine - found, 97.5)),
        }
        for name, found in resampled.items()
    }
    some = np.unique(np.linspace(0, len(own), min(len(own), 400) + 1).astype(int))
    oracle = curve(own - cloud, own, cloud)
    return {
        "records": len(own), "student": float(own.mean()), "cloud": float(cloud.mean()), "month": month,
        "price": config.price, "per_day": config.per_day, "measures": measured,
        "as_good_as_the_cloud": point(int(even[0])) if len(even) else None, "best": point(top),
        "points": [point(round(share * len(own))) for share in SHARES],
        "curves": {
            "share": shares[some].tolist(), "oracle": oracle[some].tolist(),
            **{name: curve(sure, own, cloud)[some].tolist() for name, sure in sures.items()},
        },
    }  # fmt: skip


def verdict(table: Mapping[str, Any]) -> str:
    """What a cascade is worth, in a sentence or two."""
    alone, cloud, even = table["student"], table["cloud"], table["as_good_as_the_cloud"]
    start = (
        f"Alone the student is right in {100 * alone:.1f}% of the requests, the model elsewhere in {100 * cloud:.1f}%"
    )
    if alone >= cloud:
        return f"{start}: nothing needs to be asked elsewhere."
    if even is None or even["share"] > 0.98:
        half = next(own for own in table["points"] if own["share"] >= 0.2)
        return (
            f"{start}. Asking elsewhere what the student is least sure of, a fifth of the requests, makes it"
            f" {100 * half['accuracy']:.1f}% for ${half['dollars']:.2f} a month instead of ${table['month']:.2f}."
        )
    saved = 1 - even["share"]
    return (
        f"{start}. Asking elsewhere only what the student is least sure of, {100 * even['share']:.0f}% of the requests"
        f" (confidence below {even['below']:.2f}), is as good as asking everything there, for ${even['dollars']:.2f} a"
        f" month instead of ${table['month']:.2f}: {100 * saved:.0f}% less."
    )
