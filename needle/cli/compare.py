"""`needle compare`: a teacher, every arm of a sweep, and the report. `needle compare experiment=demo`"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from needle.cli.app import compose, given_settings, launch, sweep_grid
from needle.cli.say import console
from needle.cli.sweep import arm_folder
from needle.cli.train import trained
from needle.config import Settings, build_splits, run_folder, settings
from needle.engine.decode import Engine
from needle.judging.compare import Arm, Run, build_report, write_report
from needle.judging.evaluate import judge
from needle.students.checkpoint import load_checkpoint, student_config
from needle.text.records import Record
from needle.training.runidentity import SUMMARY

UNTOLD = {
    "seconds": 0.0,
    "steps": 0,
    "training_records": 0,
    "parameters": 0,
    "records_per_second": 0.0,
}  # of a teacher without a training summary


def run(config: Settings) -> None:
    started = time.perf_counter()
    given = given_settings()
    output = Path(config.output or "outputs/compare")
    records = build_splits(config).test
    if not records:
        raise ValueError("the data has no test records to compare on; set data.test, or data=synthetic")
    console.rule("[bold]teacher")
    missing: list[dict[str, str]] = []
    teacher_words = [*given, *config.compare.teacher, f"output={output / 'teacher'}"]
    folder = Path(config.compare.checkpoint or output / "teacher")
    if config.compare.checkpoint:
        known = json.loads((folder / SUMMARY).read_text(encoding="utf-8")) if (folder / SUMMARY).is_file() else {}
        teacher: Run | None = _judged(folder, config, records, 0, "teacher  ", {**UNTOLD, **known, "resumed": "given"})
    else:
        teacher = _run(teacher_words, records, 0, "teacher  ", config.compare.train)
    if teacher is None:
        missing.append({"arm": "teacher", "reason": "not trained"})
    arms: dict[tuple[str, int], Arm] = {}
    grid = sweep_grid([*given, f"sweep={config.compare.sweep}"])
    for name in _names(sweep_grid([f"sweep={config.compare.sweep}"])) - _names(grid):
        console.print(
            f"{name} is given, in place of the values that sweep={config.compare.sweep} has for it", markup=False
        )
    if config.compare.seeds:
        others = dict.fromkeys(tuple(word for word in choice if not word.startswith("train.seed=")) for choice in grid)
        grid = [[*choice, f"train.seed={seed}"] for choice in others for seed in config.compare.seeds]
    for number, choice in enumerate(grid, 1):
        console.rule(f"[bold]arm {number} of {len(grid)}:[/] {' '.join(choice)}")
        words = [
            *given,
            "teacher=local",
            f"teacher.checkpoint={folder}",
            f"tokenizer.path={folder}",
            *choice,
            f"output={arm_folder(output, choice)}",
        ]
        arm = settings(compose(words))
        try:
            done = _run(words, records, arm.train.seed, f"arm {number}/{len(grid)}  ", config.compare.train)
        except ValueError as error:
            console.print(f"failed: {error}", style="red", markup=False)
            missing.append({"arm": " ".join(choice), "reason": str(error)})
            continue
        if done is None:
            missing.append({"arm": " ".join(choice), "reason": "not trained"})
            continue
        label, size = arm_label(choice), arm.data.size or done.summary["training_records"]
        loss = {"alpha": arm.loss.alpha, "beta": arm.loss.beta, "temperature": arm.loss.temperature}
        arms.setdefault((label, size), Arm(label, loss, size, [])).runs.append(done)
    if not arms:
        raise ValueError(f"no arm of {len(grid)} is trained in {output}: {missing[-1]['reason']}")
    ordered = sorted(arms.values(), key=lambda arm: (arm.data_size, arm.name))
    plain = [word for word in given if not word.startswith(("output=", "compare.seeds="))]
    if config.compare.seeds:
        plain.append(f"train.seed={','.join(map(str, config.compare.seeds))}")
    facts = {
        "title": "Distillation against fine-tuning",
        "subtitle": (
            f"{_describe(config)}; teacher:"
            f" {folder if config.compare.checkpoint else _describe(settings(compose(teacher_words)))}; {len(grid)} arms"
            " under one harness"
        ),
        "commands": [
            f"needle compare {' '.join(given)}",
            f"needle train -m {' '.join(plain)} sweep={config.compare.sweep} teacher.checkpoint={folder}",
        ],
        "student": asdict(student_config(config.student)),
        "missing": missing,
    }
    trained = [*([teacher] if teacher else []), *(run for arm in ordered for run in arm.runs)]
    reused = sum(run.summary["seconds"] for run in trained if run.summary.get("resumed"))
    report = build_report(
        ordered, teacher, records, time.perf_counter() - started + reused, facts, config.compare.samples
    )
    write_report(output, report)
    _keep_best(trained, output)
    console.rule("[bold]report")
    console.print((output / "report.md").read_text(encoding="utf-8"), markup=False)
    console.print(
        f"[bold]{output}/report.html[/] shows all of this with pictures; [bold]{output}/best[/] is the best model, the"
        f" teacher included: needle serve checkpoint={output}/best"
    )


def _names(grid: Sequence[Sequence[str]]) -> set[str]:
    return {word.partition("=")[0] for word in grid[0]}


def arm_label(choice: Sequence[str]) -> str:
    """Names an arm by everything that varies besides data size and seed; a loss by its name alone."""
    varied = [word for word in choice if not word.startswith(("data.size=", "train.seed="))]
    return " ".join(word.removeprefix("loss=") for word in varied) or "arm"


def _run(words: Sequence[str], records: Sequence[Record], seed: int, name: str, may_train: bool) -> Run | None:
    """Trains if need be, then judges on the test records; None for an arm that isn't trained and may not be."""
    config = settings(compose(words))
    if not may_train and not (run_folder(config) / SUMMARY).exists():
        console.print(f"{name}isn't trained")
        return None
    output, summary = trained(config, words, name)
    if summary.get("resumed"):
        console.print(f"{name}was finished already, {summary['seconds']:.0f} s of training")
    return _judged(output, config, records, seed, name, summary)


def _judged(
    folder: Path, config: Settings, records: Sequence[Record], seed: int, name: str, summary: dict[str, Any]
) -> Run:
    start = time.perf_counter()
    answers, scores = judge(Engine(load_checkpoint(folder), config.decoding), records, config.max_tokens)
    seconds = time.perf_counter() - start
    exact = sum(score.exact for score in scores) / len(scores)
    console.print(f"{name}[bold green]exact call {100 * exact:.1f}%[/] on {len(records)} test records, {seconds:.1f} s")
    return Run(scores, answers, seed, summary, seconds, folder)


def _describe(config: Settings) -> str:
    student = asdict(student_config(config.student))
    layers = student.get("layers") or f"{student.get('encoder_layers')}+{student.get('decoder_layers')}"
    return (
        f"{student['family']} student, width {student['width']}, {layers} layers, {config.train.steps} steps of"
        f" {config.train.batch_size}"
    )


def _keep_best(runs: Sequence[Run], output: Path) -> None:
    """Copies the checkpoint, the teacher's included, that was best on validation; test isn't used to choose."""
    best = max(runs, key=lambda run: run.summary.get("validation_exact_call") or 0.0)
    shutil.rmtree(output / "best", ignore_errors=True)
    (output / "best").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy2(best.folder / name, output / "best" / name)


def main() -> None:
    launch("compare", run)
