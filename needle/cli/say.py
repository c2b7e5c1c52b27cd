"""What commands print: errors in one line, and progress."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from needle.text.files import write_json

RANK = int(os.environ.get("RANK", "0"))  # of several processes of one run, only the first talks
console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=RANK > 0)


EXTRAS = {  # which extra of setup.cfg brings a package that not every command needs
    **dict.fromkeys(("faker", "pyarrow"), "data"),
    **dict.fromkeys(("matplotlib", "jinja2"), "report"),
    **dict.fromkeys(
        ("aiohttp", "aiolimiter", "genai_prices", "zstandard", "datasketch", "text_to_num"),
        "collect",
    ),
    "wandb_workspaces": "wandb",
    "ray": "sweep",
    "mcp": "mcp",
}


def missing_package(error: ModuleNotFoundError, command: str = "") -> str:
    """One line about a package that isn't installed: the extra that brings it, and what else the command needs."""
    package = str(error.name).partition(".")[0]
    extra = "collect" if command == "collect" and package in EXTRAS else EXTRAS.get(package)
    return f"this needs the package {package}: pip install " + (f"'.[{extra}]' in the clone" if extra else package)


def write_page(table: Mapping[str, Any], page: str, folder: Path, name: str) -> None:
    """A table as JSON and as a page."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", dict(table))
    (folder / f"{name}.html").write_text(page, encoding="utf-8")
    console.print(f"{folder / name}.html", markup=False)


def fail(message: str) -> NoReturn:
    """Prints the error and ends the program with exit code 2."""
    if RANK:
        print(f"error in process {RANK}: {message}", file=sys.stderr)
    console.print("[bold red]error:[/] ", end="")
    console.print(message, markup=False)
    sys.exit(2)


class TrainingProgress:
    """Prints what training reports: one line at a time, at most every few seconds, so that a log file reads as well as
    a screen."""

    def __init__(self, name: str = "", every: float = 5.0) -> None:
        self.name, self.every = name, every
        self.last = 0.0
        self.started = time.perf_counter()

    def __call__(self, values: Mapping[str, Any]) -> None:
        if "note" in values:
            console.print(f"{self.name}{values['note']}", markup=False)
            return
        step, steps = values["step"], values["steps"]
        if "validation/exact_call" in values:
            parts = [
                f"{name.removeprefix('validation/').replace('_', ' ')} {100 * value:.1f}%"
                for name, value in values.items()
                if name.startswith("validation/") and value is not None
            ]
            console.print(f"{self.name}[bold]step {step}/{steps}[/]  [green]validation: {', '.join(parts)}[/]")
            return
        now = time.perf_counter()
        if now - self.last < self.every and step != steps:
            return
        self.last = now
        left = values["seconds"] / step * (steps - step)
        soft = f" (soft {values['soft']:.3f}, hard {values['hard']:.3f})" if values.get("soft") else ""
        console.print(
            f"{self.name}step {step}/{steps}  loss {values['loss']:.3f}{soft}  {values['records_per_second']:.0f}"
            f" records/s  {values['tokens_per_second']:.0f} target tokens/s  {_clock(left)} left"
        )


class AnsweringProgress:
    """Prints how many requests are answered, at most every few seconds; nothing for what is done before that."""

    def __init__(self, name: str = "", every: float = 5.0) -> None:
        self.name, self.every = name, every
        self.started = self.last = time.perf_counter()

    def __call__(self, done: int, requests: int) -> None:
        now = time.perf_counter()
        if now - self.last < self.every:
            return
        self.last = now
        rate = done / (now - self.started)
        console.print(
            f"{self.name}{done:,} of {requests:,} answered  {rate:.0f}/s  {_clock((requests - done) / rate)} left",
            markup=False,
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
