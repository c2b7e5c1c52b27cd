"""`needle data check`: sizes, duplicates and leaks of what `needle train` would read. `needle data show FILE`: a few
records as people read them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from needle.cli.app import launch
from needle.cli.say import console, fail
from needle.config import Settings, build_splits
from needle.data.check import as_people_read_it, problems, sizes
from needle.data.sources import SPLITS, read_files
from needle.text.folder import released
from needle.text.formats import Skipped
from needle.text.tokenizer import TextTokenizer

SHOWN = 5
USAGE = """usage: needle data check FILE ... | key=value ...   what training would read, in figures
       needle data show FILE [data.test_size=5]      a few records as people read them"""


def check(config: Settings, words: Sequence[str]) -> None:
    """Prints the table, then what is probably a mistake, then what was left out and why."""
    splits = build_splits(config)
    tokenizer = TextTokenizer.load(released() if config.tokenizer.path is None else Path(config.tokenizer.path))
    found = [sizes(getattr(splits, split), lambda text: len(tokenizer.encode(text))) for split in SPLITS]
    table = Table(*("", *SPLITS), caption="lengths in tokens; a tool's is that of its JSON", caption_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in (
        ("records", [f"{own.records:,}" for own in found]),
        ("without a call", [f"{own.without_call:,}" for own in found]),
        ("several calls", [f"{own.several_calls:,}" for own in found]),
        ("distinct tools", [f"{own.tools:,}" for own in found]),
        ("tools offered, mean", [f"{own.offered:.1f}" for own in found]),
        ("request, mean", [f"{own.request[0]:.1f}" for own in found]),
        ("request, longest", [f"{own.request[1]:,}" for own in found]),
        ("tool, longest", [f"{own.longest_tool:,}" for own in found]),
        ("repeated records", [f"{own.repeated:,}" for own in found]),
    ):
        table.add_row(name, *row)
    console.print(table)
    files = {split: config.data.files(split) for split in SPLITS}
    odd = problems({split: getattr(splits, split) for split in SPLITS}, files)
    for problem in odd:
        console.print(f"[yellow]look:[/] {problem}", highlight=False)
    say_left_out(splits.skipped, splits.reasons)
    if not odd and not splits.skipped:
        console.print("nothing odd was found")


def say_left_out(skipped: Sequence[str], reasons: Counter[str]) -> None:
    """What was left out of files, by reason; of bad lines the first ones."""
    for message in skipped[:SHOWN]:
        console.print(f"left out: {message}", markup=False)
    if len(skipped) > SHOWN:
        console.print(f"left out: {len(skipped) - SHOWN} further lines")
    for reason, count in reasons.most_common():
        console.print(f"left out {count:,} times: {reason}", markup=False)


def show(config: Settings, words: Sequence[str]) -> None:
    path = config.data.path or next(iter(config.data.files("train")), None)
    if path is None:
        fail(f"which file?\n{USAGE}")
    note = Skipped()
    records = read_files([path], config.data, note)
    for record in records[: config.data.test_size or SHOWN]:
        console.print(as_people_read_it(record), markup=False, highlight=False)
    console.print(f"[bold]{path}[/]: {len(records):,} records")
    say_left_out(note.messages, note.reasons)


def main() -> None:
    wanted = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if wanted not in ("check", "show"):
        print(USAGE, file=sys.stdout if wanted in ("", "-h", "--help") else sys.stderr)
        sys.exit(0 if wanted in ("", "-h", "--help") else 2)
    files = [word for word in sys.argv[1:] if "=" not in word and not word.startswith("-")]
    if files:
        quoted = ",".join("'" + file.replace("\\", "\\\\").replace("'", "\\'") + "'" for file in files)
        rest = [word for word in sys.argv[1:] if word not in files]
        given = f"data.path={quoted}" if wanted == "show" else f"data.train=[{quoted}]"
        sys.argv[1:] = ["data=jsonl", given, *rest]
    launch(f"data {wanted}", check if wanted == "check" else show)
