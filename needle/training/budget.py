"""How many optimiser steps fit a budget of processor time."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from needle.text.files import write_json
from needle.training.loop import Job, train

WARM, MEASURED = 6, 20


def steps_within(minutes: float, build: Callable[[], Job], path: Path) -> int:
    """How many steps of a run fit: timed once on a short run, the first steps left out, and kept at `path`.

    The time is the process's own, which waiting for other processes isn't part of.
    """
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if found.get("minutes") != minutes:
        job = build()
        short = replace(job.train, steps=WARM + MEASURED, log_every=1, eval_every=10**6, save_every=10**6)
        spent: dict[int, float] = {}
        shutil.rmtree(path.parent / "trial", ignore_errors=True)
        trial = replace(job, train=short, output=path.parent / "trial", config={**job.config, "train": vars(short)})

        def note(values: Mapping[str, Any]) -> None:
            spent.setdefault(values.get("step", 0), time.process_time())

        train(trial, note)
        each = (spent[WARM + MEASURED] - spent[WARM]) / MEASURED
        found = {"minutes": minutes, "seconds": each, "steps": max(int(60 * minutes / each), 1)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
    return int(found["steps"])
