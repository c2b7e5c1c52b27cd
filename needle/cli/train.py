"""`needle train`: one student, or with -m a sweep. `needle train student=llama_tiny loss=finetune data=snips`"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from needle.cli.app import compose, launch
from needle.cli.say import TrainingProgress, console
from needle.cli.sweep import launch_processes
from needle.config import Settings, build_job, run_folder, settings
from needle.judging.study import Trained
from needle.release.recipe import run_recipe
from needle.training.loop import leave_processes, train
from needle.training.runidentity import SUMMARY


def trained(config: Settings, words: Sequence[str], name: str = "") -> tuple[Path, dict[str, Any]]:
    """Trains the run that `words` compose to, in as many processes as its hardware says; returns its folder and its
    summary."""
    processes = config.hardware.processes or max(torch.cuda.device_count(), 1)
    if processes > 1 and "RANK" not in os.environ:
        output = run_folder(config)
        finished = {"resumed": "finished"} if (output / SUMMARY).exists() else {}
        launch_processes([*words, f"output={output}"], processes)
        return output, {**json.loads((output / SUMMARY).read_text(encoding="utf-8")), **finished}
    job = build_job(config, lambda text: console.print(name + text, markup=False))
    summary = train(job, TrainingProgress(name))
    if processes > 1:
        leave_processes()
    return job.output, summary


def train_words(words: Sequence[str], name: str = "", may_train: bool = True) -> Trained | None:
    """What `needle train` with these words comes to, for a `Study`; None for a run that isn't done if it may not be
    trained."""
    config = settings(compose(words))
    if not may_train and not (run_folder(config) / SUMMARY).exists():
        return None
    folder, summary = trained(config, words, name)
    loss = {"alpha": config.loss.alpha, "beta": config.loss.beta, "temperature": config.loss.temperature}
    return Trained(folder, summary, loss)


def run(config: Settings, words: Sequence[str]) -> float | None:
    """Trains, and returns exact call on validation: what a sweeper maximises."""
    if config.recipe.parts:
        return _recipe(config, words)
    output, summary = trained(config, words)
    best: float | None = summary["validation_exact_call"]
    known = f", exact call {100 * best:.1f}% on validation at step {summary['best_step']}" if best is not None else ""
    state = (
        "was finished already"
        if summary.get("resumed")
        else f"trained {summary['steps']} steps in {summary['seconds']:.0f} s"
    )
    console.print(f"[bold]{output}[/] {state}{known}")
    _print_groups(summary.get("validation", {}))
    return best


def _print_groups(groups: Mapping[str, Any]) -> None:
    """A line for each source, and for tools that training showed and didn't show."""
    if len(groups) < 2:
        return
    for name, row in groups.items():
        wrong = row["false_call_rate"]
        false = "" if wrong is None else f", false calls {100 * wrong:.1f}%"
        console.print(f"  {name}: {100 * row['exact_call']:.1f}% of {row['records']}{false}", markup=False)


def _recipe(config: Settings, words: Sequence[str]) -> float | None:
    """Every part of a recipe, with the given words on top of its own."""
    given = [word for word in words if not word.startswith("recipe")]
    for name in ("output", "train.start", "tokenizer.path"):
        if any(word.startswith(f"{name}=") for word in given):
            raise ValueError(f"{name} is the recipe's to say, for each of its parts; give recipe.output=DIR")
    last = run_recipe(config.recipe, train_words, given, lambda text: console.print(text, markup=False))
    best: float | None = last.summary["validation_exact_call"]
    _print_groups(last.summary.get("validation", {}))
    return best


def main() -> None:
    launch("train", run)
