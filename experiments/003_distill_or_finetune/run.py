"""Fine-tuning against everything that a teacher can give, on SNIPS and HWU64: teacher, labels, trials, arms, report.
See README.md.

    python -m experiments.003_distill_or_finetune.run teacher --output outputs/003
    python -m experiments.003_distill_or_finetune.run label   --output outputs/003
    python -m experiments.003_distill_or_finetune.run tune    --output outputs/003 [--part 1/2]
    python -m experiments.003_distill_or_finetune.run train   --output outputs/003 [--part 1/2] [--arms
    "finetune;distill" --sizes "500;2000" --seeds 3]
    python -m experiments.003_distill_or_finetune.run report  --output outputs/003

The training records are cut in two: the teacher learns from one half, and every arm draws its records from the other,
whose gold answers the teacher never saw. `tune` and `train` may run in several processes, each with its part; what is
done is kept. Where no trial was run, the learning rates are those of the trials.json beside this file. With `--rate
0.004`, `train` and `report` take that rate for every arm; runs that had it anyway are the same ones.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from needle.cli.app import compose
from needle.cli.say import TrainingProgress
from needle.cli.sweep import arm_folder
from needle.config import build_job, settings
from needle.data.sources import subset
from needle.engine.decode import Answer, Engine, Request
from needle.judging.compare import Arm, Run, build_report, write_report
from needle.judging.evaluate import judge, write_predictions
from needle.judging.metrics import score
from needle.judging.report import curves
from needle.students.checkpoint import load_checkpoint, student_config
from needle.text.files import write_json
from needle.text.formats import read_records
from needle.text.records import Call, Record, write_jsonl
from needle.training.loop import train
from needle.training.runidentity import SUMMARY

STAGES = ("teacher", "label", "tune", "train", "report")
EVERY = ("finetune", "argmax", "distill", "unlabelled", "unlabelled_argmax", "label_smoothing", "placebo")
SETS = ("snips", "hwu64")
POOL = 10_065  # the half that the arms draw from; less what the teacher couldn't answer
ARMS = {
    500: ("finetune", "distill", "unlabelled", "unlabelled_argmax"),
    2000: EVERY,
    POOL: ("finetune", "argmax", "distill"),
}
Cells = list[tuple[str, int]]  # arms at numbers of records
TEACHER = ["student=pointer_pretrained_26m", "tokenizer.size=8192", "hardware=cpu_bf16", "hardware.threads=1",
           "train.batch_size=96", "train.micro_batch=48", "train.group=source",
           "optim.lr=6e-4", "optim.pretrained=0.3", "optim.warmup=50", "optim.schedule=wsd", "optim.decay=0.4",
           "optim.ema=0.995", "train.save_every=100",
           "data.augment={copies: 1, rename: 0, join: 0, strangers: 0, shuffle: 1}"]  # fmt: skip
CONTRASTS = [
    ("distill", "label_smoothing"),
    ("distill", "placebo"),
    ("unlabelled", "distill"),
    ("unlabelled", "unlabelled_argmax"),
]
RATES = (2e-3, 4e-3)
TRIED, TRIAL_STEPS = 2000, 400  # records and steps of a trial
JUDGED = "judged.json"


def words_of(output: Path, arm: str, size: int, seed: int, rate: float | None, folder: Path) -> list[str]:
    """The settings of a run; its seed draws the records as well."""
    words = [
        "experiment=distill_or_finetune",
        f"data.train=[{output / 'labelled.jsonl.gz'}]",
        "hardware.threads=1",
        f"cache={output / 'cache'}",
        f"loss={arm}",
    ]
    words += ["teacher=local", f"teacher.checkpoint={output / 'teacher'}", f"tokenizer.path={output / 'teacher'}"]
    return [
        *words,
        f"data.size={'null' if size == POOL else size}",
        f"data.seed={seed}",
        f"train.seed={seed}",
        f"output={folder}",
        *([f"optim.lr={rate}"] if rate else []),
    ]


def halves(output: Path, data: Path) -> None:
    """teacher.jsonl.gz and pool.jsonl.gz: a seeded half of the training records each."""
    records = [record for name in SETS for record in read_records(data / name / "train.jsonl.gz")]
    pool = {record.id for record in subset(records, POOL, 0)}
    write_jsonl(output / "pool.jsonl.gz", [record for record in records if record.id in pool])
    write_jsonl(output / "teacher.jsonl.gz", [record for record in records if record.id not in pool])


def teach(output: Path, data: Path, steps: int) -> None:
    """The teacher: a student from a pretrained encoder, 21M parameters, trained on its half."""
    halves(output, data)
    files = [
        f"data.train=[{output / 'teacher.jsonl.gz'}]",
        f"data.validation=[{','.join(str(data / name / 'validation.jsonl.gz') for name in SETS)}]",
    ]
    words = [
        "data=jsonl",
        *TEACHER,
        *files,
        f"train.steps={steps}",
        "train.eval_every=250",
        "train.eval_records=400",
        f"cache={output / 'cache'}",
        f"output={output / 'teacher'}",
    ]
    train(build_job(settings(compose(words))), TrainingProgress("teacher: "))


def label(output: Path, cells: Cells, seeds: int) -> None:
    """The teacher's answers beside the gold ones, and its distributions into the cache."""
    path = output / "labelled.jsonl.gz"
    if not path.is_file():
        records = list(read_records(output / "pool.jsonl.gz"))
        answers = Engine(load_checkpoint(output / "teacher")).answer_all(
            [Request(record.query, record.tools, record.id) for record in records]
        )
        rows = [
            replace(record, teacher={"answers": [{"calls": [call.to_json() for call in answer.calls], "count": 1}]})
            for record, answer in zip(records, answers, strict=True)
            if answer.calls is not None
        ]
        write_jsonl(path, rows)
        right = sum(score(record, answer.calls).exact for record, answer in zip(records, answers, strict=True))
        print(f"{len(rows):,} of {len(records):,} records labelled; {100 * right / len(records):.1f}% as gold has them")
    for seed in range(seeds):
        for arm, size in cells:
            if arm in ("distill", "unlabelled"):
                build_job(settings(compose(words_of(output, arm, size, seed, None, output / "unused"))), print)


def tune(output: Path, part: int, parts: int) -> None:
    """The same trials for every arm, judged on validation records."""
    trials = [(arm, rate) for arm in EVERY for rate in RATES]
    for arm, rate in trials[part::parts]:
        folder = output / "trials" / f"{arm}-{rate}"
        words = [
            *words_of(output, arm, TRIED, 0, rate, folder),
            f"train.steps={TRIAL_STEPS}",
            f"train.eval_every={TRIAL_STEPS}",
        ]
        train(build_job(settings(compose(words))), TrainingProgress(f"{arm}, {rate}: "))


def trials(output: Path) -> dict[str, dict[float, float]]:
    """Validation exact call of each arm at each learning rate."""
    if not (output / "trials").is_dir():
        kept = json.loads((Path(__file__).parent / "trials.json").read_text())
        return {arm: {float(rate): value for rate, value in rates.items()} for arm, rates in kept.items()}
    found: dict[str, dict[float, float]] = {}
    for arm in EVERY:
        summaries = {rate: json.loads((output / "trials" / f"{arm}-{rate}" / SUMMARY).read_text()) for rate in RATES}
        found[arm] = {rate: summary["validation_exact_call"] for rate, summary in summaries.items()}
    return found


def best_rates(output: Path) -> dict[str, float]:
    """The learning rate of each arm's best trial."""
    return {arm: max(rates, key=lambda rate: rates[rate]) for arm, rates in trials(output).items()}


def folder_of(output: Path, arm: str, size: int, seed: int, rate: float | None = None) -> Path:
    """Of a run at its arm's best learning rate, or at `rate`."""
    own = output if rate in (None, best_rates(output)[arm]) else output / f"rate-{rate}"
    return arm_folder(own, [f"loss={arm}", f"data.size={size}", f"train.seed={seed}"])


def train_all(output: Path, data: Path, part: int, parts: int, cells: Cells, seeds: int, rate: float | None) -> None:
    """Every arm at its best learning rate or at `rate`, then its answers to the test requests; seed by seed, so that a
    stopped run has whole seeds."""
    best = best_rates(output)
    runs = [(arm, size, seed) for seed in range(seeds) for arm, size in cells]
    for arm, size, seed in runs[part::parts]:
        folder = folder_of(output, arm, size, seed, rate)
        train(
            build_job(settings(compose(words_of(output, arm, size, seed, rate or best[arm], folder)))),
            TrainingProgress(f"{arm}, {size}, {seed}: "),
        )
        answered(folder, data)


def answered(folder: Path, data: Path) -> tuple[list[Record], list[Answer], float]:
    """The test records and a model's answers to them, asked for once; `JUDGED` is written last."""
    records = [record for name in SETS for record in read_records(data / name / "test.jsonl.gz")]
    path = folder / "answers.jsonl"
    if not (folder / JUDGED).is_file():
        started = time.perf_counter()
        answers, scores = judge(Engine(load_checkpoint(folder)), records)
        write_predictions(path, records, answers, scores)
        write_json(folder / JUDGED, {"seconds": time.perf_counter() - started})
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    calls = [
        None if row["predicted"] is None else tuple(Call(call["name"], call["arguments"]) for call in row["predicted"])
        for row in rows
    ]
    found = [Answer(own, row["confidence"], row["finish"]) for own, row in zip(calls, rows, strict=True)]
    return records, found, float(json.loads((folder / JUDGED).read_text())["seconds"])


def run_of(folder: Path, data: Path, seed: int, summary: dict[str, Any]) -> Run:
    records, answers, seconds = answered(folder, data)
    return Run(
        [score(record, answer.calls) for record, answer in zip(records, answers, strict=True)],
        answers,
        seed,
        summary,
        seconds,
        folder,
    )


def report(output: Path, data: Path, cells: Cells, seeds: int, rate: float | None) -> None:
    """report.html, report.md, report.json, curves.svg, trials.json and seeds.json (exact call of every run) in
    `output`, or in its folder of `rate`."""
    arms, missing = [], []
    for arm, size in cells:
        done = [seed for seed in range(seeds) if (folder_of(output, arm, size, seed, rate) / JUDGED).is_file()]
        missing += [
            {"arm": f"{arm}, {size:,} records, seed {seed}", "reason": "not trained"}
            for seed in range(seeds)
            if seed not in done
        ]
        folders = [(seed, folder_of(output, arm, size, seed, rate)) for seed in done]
        runs = [run_of(folder, data, seed, json.loads((folder / SUMMARY).read_text())) for seed, folder in folders]
        loss = settings(compose(words_of(output, arm, size, 0, None, output / "unused"))).loss
        if runs:
            arms.append(Arm(arm, {"alpha": loss.alpha, "beta": loss.beta, "temperature": loss.temperature}, size, runs))
    known = json.loads((output / "teacher" / SUMMARY).read_text())
    teacher = run_of(
        output / "teacher",
        data,
        0,
        {**known, "training_records": sum(1 for _ in read_records(output / "teacher.jsonl.gz"))},
    )
    config = settings(compose(words_of(output, "finetune", POOL, 0, None, output / "unused")))
    records = answered(output / "teacher", data)[0]
    facts = {
        "title": "Distil or fine-tune?",
        "subtitle": (
            f"SNIPS and HWU64, {config.train.steps} steps of {config.train.batch_size}; the teacher never saw their"
            f" gold answers; {len(arms)} arms under one harness"
        ),
        "commands": [
            f"python -m experiments.003_distill_or_finetune.run {stage} --output outputs/003" for stage in STAGES
        ],
        "student": asdict(student_config(config.student)),
        "missing": missing,
    }
    seconds = sum(run.summary["seconds"] for arm in arms for run in arm.runs)
    found = build_report(
        arms,
        teacher,
        records,
        seconds,
        facts,
        contrasts=[pair for pair in CONTRASTS if set(pair) <= {arm for arm, _ in cells}],
    )
    target = output / f"rate-{rate}" if rate else output
    write_report(target, found)
    (target / "curves.svg").write_text(curves(found), encoding="utf-8")
    write_json(
        output / "trials.json",
        {arm: {str(rate): value for rate, value in rates.items()} for arm, rates in trials(output).items()},
    )
    write_json(target / "seeds.json", {f"{arm['name']}, {arm['data_size']}": arm["per_seed"] for arm in found["arms"]})
    print((target / "report.md").read_text())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--output", type=Path, default=Path("outputs/003"))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("NEEDLE_DATA", "data")))
    parser.add_argument("--steps", type=int, default=900, help="of the teacher")
    parser.add_argument("--part", default="1/1", help="which of how many processes this one is")
    parser.add_argument("--arms", default=";".join(EVERY), help="which of them")
    parser.add_argument("--sizes", default=";".join(str(size) for size in ARMS), help="which numbers of records")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rate", type=float, help="learning rate of every arm, in place of its best trial's")
    arguments = parser.parse_args()
    cells = [
        (arm, size)
        for size, arms in ARMS.items()
        for arm in arms
        if arm in arguments.arms.split(";") and str(size) in arguments.sizes.split(";")
    ]
    for option, names in (("arms", EVERY), ("sizes", [str(size) for size in ARMS])):
        if unknown := set(getattr(arguments, option).split(";")) - set(names):
            parser.error(f"--{option}: no {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    sys.argv = sys.argv[:1]
    part, parts = (int(number) for number in arguments.part.split("/"))
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.stage == "teacher":
        teach(arguments.output, arguments.data, arguments.steps)
    elif arguments.stage == "label":
        label(arguments.output, cells, arguments.seeds)
    elif arguments.stage == "tune":
        tune(arguments.output, part - 1, parts)
    elif arguments.stage == "train":
        train_all(arguments.output, arguments.data, part - 1, parts, cells, arguments.seeds, arguments.rate)
    else:
        report(arguments.output, arguments.data, cells, arguments.seeds, arguments.rate)


if __name__ == "__main__":
    main()
