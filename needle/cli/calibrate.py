"""`needle calibrate`: makes a checkpoint's confidence a probability. `needle calibrate checkpoint=DIR data=jsonl
data.path=FILE output=DIR`"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from needle.cli.app import launch
from needle.cli.say import AnsweringProgress, console, write_page
from needle.config import Settings, build_engine, records_to_evaluate
from needle.engine.confidence import FILE, load_calibrations, save_calibrations
from needle.judging.calibrate import calibrate
from needle.text.folder import weights_fingerprint


def run(config: Settings, words: Sequence[str]) -> None:
    engine = build_engine(config)
    records, skipped = records_to_evaluate(config)
    for message in skipped:
        console.print(f"skipped: {message}", markup=False)
    folder, precision = engine.model.folder, engine.backend.precision
    assert folder is not None
    found, table = calibrate(engine, records, AnsweringProgress())
    weights = engine.model.weights or weights_fingerprint(folder)
    save_calibrations(folder, weights, {**load_calibrations(folder, weights), precision: found})
    table |= {"checkpoint": str(folder), "precision": precision}
    _print(table)
    console.print(f"{folder / FILE}: from now on its answers carry this confidence", markup=False)
    if config.output:
        from needle.judging.pages import render_calibration  # matplotlib is slow to import, and only wanted here

        command = shlex.join(["needle", "calibrate", *words])
        write_page(table, render_calibration(table, command), Path(config.output), "calibration")


def _print(table: dict[str, Any]) -> None:
    shown = Table(
        title=f"{table['records']:,} answers of {table['families']} families, each judged by what the others fitted",
        title_justify="left",
    )
    shown.add_column("")
    for name in ("n", "right", "AUROC", "error", "5% wrong", "10% wrong"):
        shown.add_column(name, justify="right")
    _row(shown, "raw product", table["raw"])
    _row(shown, "calibrated", table["calibrated"])
    for name, row in table["groups"].items():
        _row(shown, name, row["calibrated"])
    console.print(shown)
    bound, level = table["bound"], table["threshold"][str(table["bound"]["risk"])]
    where = "no threshold keeps it" if level is None else f"at a confidence of {level:.2f} and more"
    console.print(
        f"at most {100 * bound['risk']:.0f}% wrong {where}; the bound held in {100 * bound['held']:.1f}% of"
        f" {bound['resplits']:,} resplits by family, answering {100 * bound['answered']:.1f}%",
        markup=False,
    )


def _row(table: Table, name: str, row: dict[str, Any]) -> None:
    if "ece" not in row:
        return
    numbers = (row["right"], row["auroc"], row["ece"], row["coverage"]["0.05"], row["coverage"]["0.1"])
    cells = [
        "–" if one is None else f"{one:.3f}" if place == 1 else f"{100 * one:.1f}%" for place, one in enumerate(numbers)
    ]
    table.add_row(name, f"{row['records']:,}", *cells)


def main() -> None:
    launch("calibrate", run)
