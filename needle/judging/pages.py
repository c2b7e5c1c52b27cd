"""The pages of a calibration and of a cascade: whether a confidence is true, how much may be answered at which risk,
and what it costs to ask elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from needle.judging import cascade
from needle.judging.calibrate import BINS
from needle.judging.report import COLORS, INK, environment, svg, tidy

RAW = "#8c959f"


def render_calibration(table: Mapping[str, Any], command: str) -> str:
    """HTML that stands alone; `table` is that of `calibrate` with `checkpoint` and `precision`."""
    page = environment(autoescape=True)
    page.filters["two"] = lambda value: "–" if value is None else f"{value:.3f}"
    rows = [("all", table), *((name, row) for name, row in table["groups"].items() if "ece" in row["calibrated"])]
    return page.get_template("calibration.html.j2").render(
        t=table, rows=rows, verdict=verdict(table), reliability=_reliability(table), risk=_risk(table), bins=BINS,
        command=command,
    )  # fmt: skip


def verdict(table: Mapping[str, Any]) -> str:
    """What to do with it, in a sentence or two."""
    level, covered = table["threshold"][str(table["bound"]["risk"])], table["calibrated"]["coverage"]
    risk = f"{100 * table['bound']['risk']:.0f}%"
    if level is None:
        return (
            f"No threshold keeps wrong answers under {risk} on tools like these: let it answer with a look at the"
            " reasons, or give what it answers to somebody else as well."
        )
    return (
        f"Answers with a confidence of {level:.2f} or more may go unchecked: at most {risk} of them are wrong on tools"
        f" like these. The surest {100 * covered['0.05']:.0f}% of all answers have 5% wrong, the surest"
        f" {100 * covered['0.1']:.0f}% have 10%."
    )


def _reliability(table: Mapping[str, Any]) -> str:
    figure, axes = plt.subplots(figsize=(4.6, 4.1))
    axes.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle=(0, (2, 3)))
    right = np.asarray(table["curve"]["right"])
    for name, key, color in (("raw product", "raw", RAW), ("calibrated", "confidence", COLORS[0])):
        sure = np.asarray(table["curve"][key])
        parts = np.array_split(np.argsort(sure, kind="stable"), min(BINS, len(right)))
        x, y = ([100 * float(own[part].mean()) for part in parts] for own in (sure, right))
        axes.plot(x, y, color=color, linewidth=1.6, marker="o", markersize=5, label=name)
    tidy(axes)
    axes.set(xlabel="confidence, %", ylabel="right, %", xlim=(-2, 102), ylim=(-2, 102))
    axes.legend(frameon=False, loc="upper left")
    return svg(figure)


def _risk(table: Mapping[str, Any]) -> str:
    figure, axes = plt.subplots(figsize=(4.6, 4.1))
    right = np.asarray(table["curve"]["right"])
    answered = 100 * np.arange(1, len(right) + 1) / len(right)
    for name, key, color in (("raw product", "raw", RAW), ("calibrated", "confidence", COLORS[0])):
        order = np.argsort(-np.asarray(table["curve"][key]), kind="stable")
        axes.plot(answered, 100 * np.cumsum(1 - right[order]) / np.arange(1, len(right) + 1), color=color, label=name)
    best = np.cumsum(np.sort(1 - right)) / np.arange(1, len(right) + 1)
    axes.plot(answered, 100 * best, color=INK, linewidth=1, linestyle=(0, (2, 3)), label="if it knew")
    tidy(axes)
    axes.set(xlabel="answered, % of all", ylabel="wrong among the answered, %", xlim=(0, 100), ylim=(0, None))
    axes.legend(frameon=False, loc="upper left")
    return svg(figure)


def render_cascade(table: Mapping[str, Any], command: str) -> str:
    """HTML that stands alone; `table` is that of `cascade` with `checkpoint` and `elsewhere`."""
    point = table["as_good_as_the_cloud"] or table["best"]
    return environment(autoescape=True).get_template("cascade.html.j2").render(
        t=table, verdict=cascade.verdict(table), figure=_costs(table), command=command,
        threshold=1.0 if point["below"] is None else max(point["below"], 0.0),
        budget=max(np.ceil(point["dollars"]), 1.0),
    )  # fmt: skip


def _costs(table: Mapping[str, Any]) -> str:
    figure, axes = plt.subplots(figsize=(7.2, 4.1))
    curves = table["curves"]
    x = table["month"] * np.asarray(curves["share"])
    names = [name for name in curves if name not in ("share", "oracle", "confidence")]
    colors = dict(zip(("confidence", *names), (COLORS[0], RAW, *COLORS[1:]), strict=False))
    ends = [100 * table["student"], 100 * table["cloud"]]
    axes.plot(x, 100 * np.asarray(curves["oracle"]), color=INK, linewidth=1, linestyle=(0, (2, 3)), label="oracle")
    for name in (*names, "confidence"):
        wide = 2.2 if name == "confidence" else 1.2
        axes.plot(x, 100 * np.asarray(curves[name]), color=colors[name], linewidth=wide, label=name)
    axes.plot([0, table["month"]], ends, color=INK, linewidth=1, linestyle=(0, (1, 2)), label="random")
    tidy(axes)
    axes.set(xlabel="dollars a month", ylabel="right, %", xlim=(0, table["month"]))
    axes.legend(frameon=False, loc="lower right")
    return svg(figure)
