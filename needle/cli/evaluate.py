"""`needle evaluate`: judges a checkpoint. `needle evaluate checkpoint=DIR data=jsonl data.path=FILE
output=metrics.json`, or, within a budget, a hosted model: `needle evaluate service=gemini collect.budget_usd=1 …`"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from needle.cli.app import launch
from needle.cli.say import AnsweringProgress, console
from needle.config import Settings, build_engine, records_to_evaluate
from needle.engine.decode import Engine
from needle.judging.bfcl import evaluate_bfcl
from needle.judging.evaluate import evaluate, summary_of, write_predictions
from needle.judging.metrics import METRICS, score
from needle.text.files import write_json

ORDER = (  # what a narrow terminal shows first
    *("exact_call", "tool_name", "false_call_rate", "argument_f1", "missed_call_rate", "schema_valid"),
    *("argument_precision", "argument_recall"),
)
CELL = len("100.0–100.0")  # an interval


def run(config: Settings, words: Sequence[str]) -> None:
    if config.service.kind != "none":
        _hosted(config)
        return
    engine = build_engine(config)
    if config.data.kind == "bfcl":
        _leaderboard(engine, config)
        return
    records, skipped = records_to_evaluate(config)
    for message in skipped:
        console.print(f"skipped: {message}", markup=False)
    predictions = Path(config.predictions) if config.predictions else None
    summary = evaluate(engine, records, predictions, config.max_tokens, report=AnsweringProgress())
    summary["skipped"] = len(skipped)
    _store(summary, str(engine.model.folder), config.decoding, config)
    _print(summary)


def _hosted(config: Settings) -> None:
    """Judges a hosted model as a checkpoint is judged."""
    from needle.collect.judged import hosted_answers  # needs what collecting needs
    from needle.collect.money import find_price
    from needle.collect.services.build import build_service

    service, options = config.service, config.collect
    if config.data.kind == "bfcl":
        raise ValueError(f"data=bfcl is judged by its own checker, of checkpoints alone; service is {service.kind}")
    if options.budget_usd is None:
        raise ValueError("a hosted model costs money: set collect.budget_usd, the most that may be spent, in dollars")
    records, skipped = records_to_evaluate(config)
    for message in skipped:
        console.print(f"skipped: {message}", markup=False)
    price = find_price(service.provider, str(service.model), options.price)
    folder = Path(config.cache) / "hosted" / re.sub(r"[^\w.-]+", "_", f"{service.kind}-{service.model}")
    started = time.perf_counter()
    answers, stopped, known = asyncio.run(
        hosted_answers(
            records,
            lambda: build_service(service, options.concurrency),
            price,
            folder,
            options,
            lambda text: console.print(text, markup=False),
        )
    )
    scores = [score(record, answer.calls) for record, answer in zip(records, answers, strict=True)]
    if config.predictions:
        write_predictions(Path(config.predictions), records, answers, scores)
    summary = summary_of(answers, scores, time.perf_counter() - started)
    summary |= {"skipped": len(skipped), "stopped": stopped, "books": known}
    _store(summary, f"{service.kind}: {service.model}", "its own", config)
    _print(summary)
    console.print(f"${known['dollars']:.4f} in all, answers kept in {folder}", markup=False)


def _store(summary: dict[str, Any], judged: str, decoding: str, config: Settings) -> None:
    summary["checkpoint"], summary["decoding"] = judged, decoding
    if config.output:
        Path(config.output).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(config.output), summary)


def _leaderboard(engine: Engine, config: Settings) -> None:
    progress: dict[str, AnsweringProgress] = {}

    def report(category: str, done: int, every: int) -> None:
        progress.setdefault(category, AnsweringProgress(f"{category}: "))(done, every)

    summary = evaluate_bfcl(
        engine,
        config.category,
        Path(config.predictions) if config.predictions else None,
        config.max_tokens,
        report=report,
    )
    _store(summary, str(engine.model.folder), config.decoding, config)
    table = Table(
        title=(
            f"Berkeley Function Calling Leaderboard, single turn, {config.decoding} decoding,"
            f" {summary['seconds']:.1f} s"
        ),
        title_justify="left",
    )
    for name in ("category", "records", "accuracy", "95% interval", "commonest error"):
        table.add_column(name, justify="left" if name in ("category", "commonest error") else "right")
    for name, row in summary["categories"].items():
        accuracy, errors = row["accuracy"], row["errors"]
        worst = max(errors, key=errors.__getitem__, default="")
        table.add_row(
            name,
            str(row["records"]),
            f"{100 * accuracy['value']:.1f}",
            f"{100 * accuracy['low']:.1f}–{100 * accuracy['high']:.1f}",
            f"{worst} ({errors[worst]})" if worst else "",
        )
    table.add_section()
    for name, value in summary["means"].items():
        table.add_row(name.replace("_", " "), "", f"{100 * value:.1f}", "", "")
    console.print(table)


def _print(summary: dict[str, Any]) -> None:
    table = Table(
        title=f"{summary['records']} records, {summary['decoding']} decoding, {summary['seconds']:.1f} s",
        title_justify="left",
    )
    table.add_column("")
    table.add_column("n", justify="right")
    shown = _fitting(summary)
    for metric in shown:
        table.add_column(metric.replace("_", " "), justify="right")
    _row(table, "all", summary, shown)
    for group, members in summary["groups"].items():
        table.add_section()
        for member, row in members.items():
            _row(table, f"{group}: {member}", row, shown)
    console.print(table)
    if len(shown) < len(METRICS):
        left = ", ".join(metric.replace("_", " ") for metric in METRICS if metric not in shown)
        console.print(f"no room for {left}: output=FILE has them", markup=False)
    for what, how in (("tools_left_out", "left out"), ("tools_shortened", "shortened")):
        if summary.get(what):
            console.print(f"{how} for the student: {summary[what]:,} tools; predictions=FILE names those left out")
    broken = {name: count for name, count in summary["finish"].items() if count and name != "stop"}
    if broken:
        console.print("without an answer: " + ", ".join(f"{count} {name}" for name, count in broken.items()))


def _fitting(summary: dict[str, Any]) -> list[str]:
    """The metrics that there is room for, the ones that say most first."""
    names = [f"{group}: {member}" for group, members in summary["groups"].items() for member in members]
    left = console.width - max(len(name) for name in ("all", *names)) - len(str(summary["records"])) - 7
    shown = []
    for metric in ORDER:
        left -= max(*(len(word) for word in metric.split("_")), CELL) + 3
        if left < 0:
            break
        shown.append(metric)
    return shown or [ORDER[0]]


def _row(table: Table, name: str, row: dict[str, Any], shown: Sequence[str]) -> None:
    cells = []
    for metric in shown:
        value = row[metric]
        cells.append(
            "–"
            if value["value"] is None
            else f"{100 * value['value']:.1f}\n[dim]{100 * value['low']:.1f}–{100 * value['high']:.1f}[/]"
        )
    table.add_row(name, str(row["records"]), *cells)


def main() -> None:
    launch("evaluate", run)
