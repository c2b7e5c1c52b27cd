"""A sweep's book: which arms there are, which are done, which failed, how long is left; and arms of several processes.

Each arm of a multirun writes one small file into the sweep's folder, so that any launcher's processes (the basic one,
joblib, Ray, Submitit) share the book, and the same command finds the arms that are done.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from needle.text.files import write_json

PLAN = "plan.json"


@dataclass
class Entry:
    """One arm: what it was told besides what all arms are told, and how it went."""

    choice: list[str]
    state: str  # running, finished, failed or interrupted
    output: str = ""
    seconds: float = 0.0
    result: float | None = None
    error: str = ""
    started: float = 0.0


class Book:
    """The folder of one sweep."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def plan(
        cls,
        root: Path,
        command: str,
        words: Sequence[str],
        constant: Sequence[str],
        grid: Sequence[Sequence[str]],
        total: int,
    ) -> Book:
        """The book of this command, under a name made of its words; arms of an earlier attempt stay in it.

        `constant` are the words that all arms are told.
        """
        digest = hashlib.sha256(json.dumps([command, sorted(words)]).encode()).hexdigest()[:8]
        named = next((word.partition("=")[2] for word in words if word.startswith(("sweep=", "experiment="))), "sweep")
        book = cls(root / f"{named}-{digest}")
        book.folder.mkdir(parents=True, exist_ok=True)
        write_json(
            book.folder / PLAN,
            {
                "words": list(words),
                "constant": list(constant),
                "total": total,
                "grid": [list(choice) for choice in grid],
                "started": time.time(),
            },
        )
        return book

    def read_plan(self) -> dict[str, Any]:
        plan: dict[str, Any] = json.loads((self.folder / PLAN).read_text(encoding="utf-8"))
        return plan

    def write(self, entry: Entry) -> None:
        write_json(
            self.folder / f"arm-{hashlib.sha256(json.dumps(entry.choice).encode()).hexdigest()[:12]}.json",
            asdict(entry),
        )

    def entries(self) -> list[Entry]:
        rows = [
            Entry(**json.loads(path.read_text(encoding="utf-8"))) for path in sorted(self.folder.glob("arm-*.json"))
        ]
        return sorted(rows, key=lambda entry: entry.started)

    def choice(self, overrides: Sequence[str]) -> list[str]:
        """What one arm was told beyond the words of all."""
        plan = self.read_plan()
        own = [word for word in overrides if word not in set(plan["constant"])]
        return next(
            (list(choice) for choice in plan["grid"] if sorted(choice) == sorted(own)), own
        )  # sweepers have orders of their own

    def summary(self) -> str:
        """How far the sweep is, in a line: `5 of 12 arms finished, 1 failed, about 14 min left`."""
        plan, entries = self.read_plan(), self.entries()
        finished = [entry for entry in entries if entry.state == "finished"]
        failed = sum(entry.state == "failed" for entry in entries)
        now = time.time()
        recent = [entry for entry in finished if entry.started >= plan["started"]]
        left = ""
        if recent and len(finished) + failed < plan["total"]:
            elapsed = now - min(entry.started for entry in recent)
            seconds = elapsed / len(recent) * (plan["total"] - len(finished) - failed)
            left = f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"
        return f"{len(finished)} of {plan['total']} arms finished" + (f", {failed} failed" if failed else "") + left

    def missing(self) -> list[tuple[list[str], str]]:
        """Arms of the plan that aren't finished, with the reason."""
        entries = {tuple(entry.choice): entry for entry in self.entries()}
        wanted = [tuple(choice) for choice in self.read_plan()["grid"]] or list(entries)
        out = []
        for choice in wanted:
            entry = entries.get(choice)
            if entry is None or entry.state != "finished":
                out.append((list(choice), "not started" if entry is None else entry.error or entry.state))
        return out


def launch_processes(words: Sequence[str], processes: int) -> None:
    """Runs `needle train` with these words in several processes of this machine, and waits.

    Raises:
        KeyboardInterrupt: Ctrl-C, or a signal that asks to end.
        ValueError: one of them failed or was killed; the message says which and what to do.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"needle-{time.time_ns()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "needle.cli", "train", *words, "hydra.mode=RUN")
    except SignalException as error:
        raise KeyboardInterrupt from error
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        how = (
            f"was killed ({failure.signal_name()})"
            if failure.exitcode < 0
            else f"ended with exit code {failure.exitcode}"
        )
        raise ValueError(
            f"process {rank} of {processes} {how}, so the run was stopped; the same command goes on from the last saved"
            " state"
        ) from error
