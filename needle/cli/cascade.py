"""`needle cascade`: what it would cost and get right to ask elsewhere what a checkpoint isn't sure of. `needle cascade
checkpoint=DIR data=jsonl data.path=FILE cascade.cloud=PREDICTIONS output=DIR`"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from needle.cli.app import launch
from needle.cli.say import AnsweringProgress, console, write_page
from needle.config import Settings, build_engine, records_to_evaluate
from needle.judging.cascade import cascade, verdict
from needle.judging.evaluate import read_predictions
from needle.text.records import DataError


def run(config: Settings, words: Sequence[str]) -> None:
    engine = build_engine(config)
    records, skipped = records_to_evaluate(config)
    for message in skipped:
        console.print(f"skipped: {message}", markup=False)
    path = config.cascade.cloud
    cloud = read_predictions(Path(path).expanduser()) if path else None
    if cloud is not None and len(cloud) != len(records):
        raise DataError(
            f"{path} holds {len(cloud):,} answers, but there are {len(records):,} records: it must be of the same data,"
            " in the same order"
        )
    table = cascade(engine, records, config.cascade, cloud, AnsweringProgress())
    simulated = f"a model that is wrong in {100 * config.cascade.error:g}% of the requests"
    table |= {"checkpoint": str(engine.model.folder), "elsewhere": path or simulated}
    _print(table)
    if engine.calibration is None:
        console.print("its confidence isn't calibrated: needle calibrate makes it a probability")
    if config.output:
        from needle.judging.pages import render_cascade  # matplotlib is slow to import, and only wanted here

        command = shlex.join(["needle", "cascade", *words])
        write_page(table, render_cascade(table, command), Path(config.output), "cascade")


def _print(table: dict[str, Any]) -> None:
    console.print(verdict(table), markup=False)
    shown = Table(title=f"{table['records']:,} requests, beside {table['elsewhere']}", title_justify="left")
    for name in ("asked elsewhere", "confidence below", "right", "dollars a month"):
        shown.add_column(name, justify="right")
    for point in table["points"]:
        below = "–" if point["below"] is None else f"{point['below']:.3f}"
        cells = (f"{100 * point['share']:.0f}%", below, f"{100 * point['accuracy']:.1f}%", f"{point['dollars']:.2f}")
        shown.add_row(*cells)
    console.print(shown)
    for name, row in table["measures"].items():
        console.print(
            f"{name}: {100 * row['gain']:.1f}% of an oracle's gain ({100 * row['low']:.1f} to {100 * row['high']:.1f})",
            markup=False,
        )


def main() -> None:
    launch("cascade", run)
