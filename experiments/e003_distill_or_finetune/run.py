"""Fine-tuning against everything that a teacher can give, on SNIPS and HWU64: teacher, labels, trials, arms, report.
See README.md.

    python -m experiments.e003_distill_or_finetune.run teacher --output outputs/003
    python -m experiments.e003_distill_or_finetune.run label   --output outputs/003
    python -m experiments.e003_distill_or_finetune.run tune    --output outputs/003 [--part 1/2]
    python -m experiments.e003_distill_or_finetune.run train   --output outputs/003 [--part 1/2] [--arms
    "finetune;distill" --sizes "500;2000" --seeds 3]
    python -m experiments.e003_distill_or_finetune.run report  --output outputs/003

The training records are cut in two: the teacher learns from one half, and every arm draws its records from the other,
whose gold answers the teacher never saw. `tune` and `train` may run in several processes, each with its part; what is
done is kept. Where no trial was run, the learning rates are those of the trials.json beside this file. With `--rate
0.004`, `train` and `report` take that rate for every arm; runs that had it anyway are the same ones.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from needle.cli.app import compose
from needle.cli.train import train_words
from needle.config import build_job, settings
from needle.data.sources import subset
from needle.engine.decode import Engine, Request
from needle.judging.compare import build_report, write_report
from needle.judging.metrics import score
from needle.judging.report import curves
from needle.judging.study import Plan, Study
from needle.students.checkpoint import load_checkpoint, student_config
from needle.text.files import write_json
from needle.text.formats import read_records
from needle.text.records import Record, write_jsonl
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


def common(output: Path) -> list[str]:
    """The settings of every arm; a run's seed draws its records as well."""
    teacher = output / "teacher"
    return [
        *("experiment=distill_or_finetune", f"data.train=[{output / 'labelled.jsonl.gz'}]", "hardware.threads=1"),
        *(f"cache={output / 'cache'}", "teacher=local", f"teacher.checkpoint={teacher}", f"tokenizer.path={teacher}"),
        "data.seed=${train.seed}",
    ]


def words_of(arm: str, size: int) -> list[str]:
    return [f"loss={arm}", f"data.size={'null' if size == POOL else size}"]


def plan(arm: str, size: int, rate: float, default: float) -> Plan:
    """An arm at a learning rate; one that isn't its best trial's has folders of its own."""
    folder = f"loss-{arm}_data.size-{size}" + ("" if rate == default else f"_rate-{rate}")
    return Plan(arm, (*words_of(arm, size), f"optim.lr={rate}"), size, folder)


def halves(output: Path, data: Path) -> None:
    """teacher.jsonl.gz and pool.jsonl.gz: a seeded half of the training records each."""
    records = [record for name in SETS for record in read_records(data / name / "train.jsonl.gz")]
    pool = {record.id for record in subset(records, POOL, 0)}
    write_jsonl(output / "pool.jsonl.gz", [record for record in records if record.id in pool])
    write_jsonl(output / "teacher.jsonl.gz", [record for record in records if record.id not in pool])


def teach(output: Path, data: Path, steps: int) -> None:
    """The teacher: a student from a pretrained encoder, 21M parameters, trained on its half."""
    halves(output, data)
    validation = ",".join(str(data / name / "validation.jsonl.gz") for name in SETS)
    words = [
        *("data=jsonl", *TEACHER, f"data.train=[{output / 'teacher.jsonl.gz'}]", f"data.validation=[{validation}]"),
        *(f"train.steps={steps}", "train.eval_every=250", "train.eval_records=400"),
        *(f"cache={output / 'cache'}", f"output={output / 'teacher'}"),
    ]
    train_words(words, "teacher: ")


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
                words = [*common(output), *words_of(arm, size), f"train.seed={seed}", f"output={output / 'unused'}"]
                build_job(settings(compose(words)), print)


def tune(output: Path, part: int, parts: int) -> None:
    """The same trials for every arm, judged on validation records."""
    short = [f"train.steps={TRIAL_STEPS}", f"train.eval_every={TRIAL_STEPS}", "train.seed=0"]
    for arm, rate in [(arm, rate) for arm in EVERY for rate in RATES][part::parts]:
        words = [*common(output), *words_of(arm, TRIED), f"optim.lr={rate}", *short]
        train_words([*words, f"output={output / 'trials' / f'{arm}-{rate}'}"], f"{arm}, {rate}: ")


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


def study(
    output: Path, data: Path, cells: Cells, seeds: int, rate: float | None, may_train: bool = True
) -> tuple[Study, Sequence[Record]]:
    """Every arm at its best learning rate, or at `rate`."""
    best = best_rates(output)
    records = [record for name in SETS for record in read_records(data / name / "test.jsonl.gz")]
    return Study(
        output,
        {"test": records},
        partial(train_words, may_train=may_train),
        arms=[plan(arm, size, rate or best[arm], best[arm]) for arm, size in cells],
        seeds=list(range(seeds)),
        teacher=output / "teacher",
        common=common(output),
    ), records


def report(output: Path, data: Path, cells: Cells, seeds: int, rate: float | None) -> None:
    """report.html, report.md, report.json, curves.svg, trials.json and seeds.json (exact call of every run) in
    `output`, or in its folder of `rate`."""
    own, records = study(output, data, cells, seeds, rate, may_train=False)
    results = own.run()
    arms, teacher = results.arms["test"], results.teacher["test"]
    known = json.loads((output / "teacher" / SUMMARY).read_text())
    seen = sum(1 for _ in read_records(output / "teacher.jsonl.gz"))
    teacher = replace(teacher, summary={**known, "training_records": seen})
    config = settings(compose([*common(output), *words_of("finetune", POOL)]))
    facts = {
        "title": "Distil or fine-tune?",
        "subtitle": (
            f"SNIPS and HWU64, {config.train.steps} steps of {config.train.batch_size}; the teacher never saw their"
            f" gold answers; {len(arms)} arms under one harness"
        ),
        "commands": [
            f"python -m experiments.e003_distill_or_finetune.run {stage} --output outputs/003" for stage in STAGES
        ],
        "student": asdict(student_config(config.student)),
        "missing": results.missing,
    }
    seconds = sum(run.summary["seconds"] for arm in arms for run in arm.runs)
    named = {arm for arm, _ in cells}
    contrasts = [pair for pair in CONTRASTS if set(pair) <= named]
    found = build_report(arms, teacher, records, seconds, facts, contrasts=contrasts)
    target = output / f"rate-{rate}" if rate else output
    write_report(target, found)
    (target / "curves.svg").write_text(curves(found), encoding="utf-8")
    write_json(
        output / "trials.json",
        {arm: {str(own): value for own, value in rates.items()} for arm, rates in trials(output).items()},
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
    given = parser.parse_args()
    for option, names in (("arms", EVERY), ("sizes", [str(size) for size in ARMS])):
        if unknown := set(getattr(given, option).split(";")) - set(names):
            parser.error(f"--{option}: no {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    wanted, sizes = given.arms.split(";"), given.sizes.split(";")
    cells = [(arm, size) for size, arms in ARMS.items() for arm in arms if arm in wanted and str(size) in sizes]
    part, parts = (int(number) for number in given.part.split("/"))
    given.output.mkdir(parents=True, exist_ok=True)
    if given.stage == "teacher":
        teach(given.output, given.data, given.steps)
    elif given.stage == "label":
        label(given.output, cells, given.seeds)
    elif given.stage == "tune":
        tune(given.output, part - 1, parts)
    elif given.stage == "train":
        study(given.output, given.data, cells, given.seeds, given.rate)[0].run(part - 1, parts)
    else:
        report(given.output, given.data, cells, given.seeds, given.rate)


if __name__ == "__main__":
    main()
