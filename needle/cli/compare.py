"""`needle compare`: a teacher, every arm of a sweep, and the report. `needle compare experiment=demo`"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from needle.cli.app import compose, launch, sweep_grid
from needle.cli.say import console
from needle.cli.train import train_words
from needle.config import Settings, build_splits, settings
from needle.judging.compare import Run, build_report, write_report
from needle.judging.study import Plan, Study
from needle.students.checkpoint import student_config

SEED = "train.seed="


def run(config: Settings, words: Sequence[str]) -> None:
    started = time.perf_counter()
    output = Path(config.output or "outputs/compare")
    records = build_splits(config).test
    if not records:
        raise ValueError("the data has no test records to compare on; set data.test, or data=synthetic")
    given = [word for word in words if not word.startswith("output=")]
    folder = Path(config.compare.checkpoint or output / "teacher")
    teacher = folder if config.compare.checkpoint else Plan("teacher", tuple(config.compare.teacher))
    arms, seeds = plans(config, given)
    taught = ["teacher=local", f"teacher.checkpoint={folder}", f"tokenizer.path={folder}"]
    study = Study(
        output,
        {"test": records},
        partial(train_words, may_train=config.compare.train),
        arms=arms,
        seeds=seeds,
        teacher=teacher,
        common=given,
        taught=taught,
        decoding=config.decoding,
        max_tokens=config.max_tokens,
        say=lambda text: console.print(text, markup=False),
    )
    results = study.run()
    found = results.arms["test"]
    if not found:
        raise ValueError(f"no arm of {len(arms) * len(seeds)} is trained in {output}: {results.missing[-1]['reason']}")
    own = settings(compose([*given, *config.compare.teacher]))
    about = str(folder) if config.compare.checkpoint else _describe(own)
    plain = [word for word in given if not word.startswith("compare.seeds=")]
    if config.compare.seeds:
        plain.append(f"{SEED}{','.join(map(str, config.compare.seeds))}")
    facts = {
        "title": "Distillation against fine-tuning",
        "subtitle": f"{_describe(config)}; teacher: {about}; {len(arms) * len(seeds)} arms under one harness",
        "commands": [
            f"needle compare {' '.join(words)}",
            f"needle train -m {' '.join(plain)} sweep={config.compare.sweep} teacher.checkpoint={folder}",
        ],
        "student": asdict(student_config(config.student)),
        "missing": results.missing,
    }
    reused = sum(run.summary["seconds"] for run in results.runs if run.summary.get("resumed"))
    seconds = time.perf_counter() - started + reused
    report = build_report(found, results.teacher.get("test"), records, seconds, facts, config.compare.samples)
    write_report(output, report)
    _keep_best(results.runs, output)
    console.rule("[bold]report")
    console.print((output / "report.md").read_text(encoding="utf-8"), markup=False)
    console.print(
        f"[bold]{output}/report.html[/] shows all of this with pictures; [bold]{output}/best[/] is the best model, the"
        f" teacher included: needle serve checkpoint={output}/best"
    )


def plans(config: Settings, given: Sequence[str]) -> tuple[list[Plan], list[int]]:
    """The arms and seeds of the sweep that a comparison names, with what is given in place of its own values."""
    sweep = f"sweep={config.compare.sweep}"
    grid = sweep_grid([*given, sweep])
    for name in _names(sweep_grid([sweep])) - _names(grid):
        console.print(f"{name} is given, in place of the values that {sweep} has for it", markup=False)
    seeds = list(dict.fromkeys(int(word.removeprefix(SEED)) for choice in grid for word in choice if SEED in word))
    choices = dict.fromkeys(tuple(word for word in choice if SEED not in word) for choice in grid)
    sizes = {choice: settings(compose([*given, *choice])).data.size for choice in choices}
    arms = [Plan(arm_label(choice), choice, sizes[choice]) for choice in choices]
    return arms, config.compare.seeds or seeds or [config.train.seed]


def _names(grid: Sequence[Sequence[str]]) -> set[str]:
    return {word.partition("=")[0] for word in grid[0]}


def arm_label(choice: Sequence[str]) -> str:
    """Names an arm by everything that varies besides data size and seed; a loss by its name alone."""
    varied = [word for word in choice if not word.startswith(("data.size=", SEED))]
    return " ".join(word.removeprefix("loss=") for word in varied) or "arm"


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
