"""Draws a comparison: learning curves, and the report as HTML that stands alone and as Markdown."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import jinja2
import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

COLORS = ("#1f6feb", "#d9822b", "#2da44e", "#8250df", "#bf3989", "#1b7c83", "#6e7781", "#b35900")
INK, PALE = "#24292f", "#d0d7de"


def render_html(report: Mapping[str, Any]) -> str:
    return (
        environment(autoescape=True)
        .get_template("report.html.j2")
        .render(r=report, curves=curves(report), forest=forest(report), color=_colors(report))
    )


def render_markdown(report: Mapping[str, Any]) -> str:
    return environment(autoescape=False).get_template("report.md.j2").render(r=report)


def environment(autoescape: bool) -> jinja2.Environment:
    """What pages are rendered with."""
    loader = jinja2.FunctionLoader(
        lambda name: (files("needle.judging") / "templates" / name).read_text(encoding="utf-8")
    )
    made = jinja2.Environment(
        loader=loader, autoescape=autoescape, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    made.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.1f}%"
    made.filters["points"] = lambda value: f"{100 * value:+.1f}"
    made.filters["range"] = lambda row: (
        "–" if row["mean"] is None else f"{100 * row['low']:.1f}–{100 * row['high']:.1f}"
    )
    made.filters["compact"] = lambda value: json.dumps(value, ensure_ascii=False, separators=(", ", ": "))
    made.filters["size"] = _size
    made.filters["minutes"] = lambda seconds: f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"
    return made


def _size(value: int | None, row: Mapping[str, Any]) -> str:
    """A number of records as `worth` gives it, in words where the curve ends."""
    if value is None:
        return f"more than {row['largest']:,}"
    return f"{value:,} or fewer" if value <= row["smallest"] else f"{value:,}"


def _colors(report: Mapping[str, Any]) -> dict[str, str]:
    names = list(dict.fromkeys(arm["name"] for arm in report["arms"]))
    return {name: COLORS[index % len(COLORS)] for index, name in enumerate(names)}


def curves(report: Mapping[str, Any]) -> str:
    """Exact call against training records, one line a loss, with 95% intervals and each seed as a dot; the teacher as a
    line across."""
    colors = _colors(report)
    figure, axes = plt.subplots(figsize=(7.2, 4.1))
    shift = dict(zip(colors, (1 + 0.012 * (i - (len(colors) - 1) / 2) for i in range(len(colors))), strict=True))
    for name, color in colors.items():
        arms = sorted((arm for arm in report["arms"] if arm["name"] == name), key=lambda arm: arm["data_size"])
        sizes = [arm["data_size"] * shift[name] for arm in arms]
        means = [100 * arm["metrics"]["exact_call"]["mean"] for arm in arms]
        low = [100 * arm["metrics"]["exact_call"]["low"] for arm in arms]
        high = [100 * arm["metrics"]["exact_call"]["high"] for arm in arms]
        axes.fill_between(sizes, low, high, color=color, alpha=0.13, linewidth=0)
        axes.plot(sizes, means, color=color, linewidth=2, marker="o", markersize=6, label=name)
        for size, arm in zip(sizes, arms, strict=True):
            axes.plot(
                [size] * len(arm["per_seed"]),
                [100 * value for value in arm["per_seed"]],
                ".",
                color=color,
                alpha=0.55,
                markersize=5,
            )
    if report["teacher"]:
        level = 100 * report["teacher"]["metrics"]["exact_call"]["mean"]
        axes.axhline(level, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label=f"teacher ({level:.1f}%)")
    axes.set_xscale("log")
    sizes = sorted({arm["data_size"] for arm in report["arms"]})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlim(sizes[0] / 1.25, sizes[-1] * 1.25)
    axes.set_xlabel("training records")
    axes.set_ylabel("exact call, %")
    tidy(axes)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=4)
    return svg(figure)


def forest(report: Mapping[str, Any]) -> str:
    """The paired differences with their intervals; left of zero the first arm is worse."""
    pairs = report["paired"]
    figure, axes = plt.subplots(figsize=(7.2, 0.9 + 0.5 * max(len(pairs), 1)))
    colors = _colors(report)
    for row, pair in enumerate(reversed(pairs)):
        axes.plot(
            [100 * pair["low"], 100 * pair["high"]],
            [row, row],
            color=colors[pair["a"]],
            linewidth=3,
            solid_capstyle="round",
        )
        axes.plot(100 * pair["difference"], row, "o", color=colors[pair["a"]], markersize=8)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(
        range(len(pairs)), [f"{pair['a']} − {pair['b']}, {pair['data_size']:,}" for pair in reversed(pairs)]
    )
    axes.set_ylim(-0.6, max(len(pairs), 1) - 0.4)
    axes.set_xlabel("difference in exact call, percentage points")
    tidy(axes)
    return svg(figure)


def tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(colors=INK, length=3)
    axes.grid(axis="y", color=PALE, linewidth=0.6, alpha=0.6)
    axes.set_axisbelow(True)


def svg(figure: Any) -> str:
    out = io.StringIO()
    with plt.rc_context({"svg.hashsalt": "needle"}):
        figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]
