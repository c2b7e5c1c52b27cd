"""Trains every student for the same minutes of one core, judges all of them, and writes table.md, results.json and
students.png.

python -m experiments.e002_students.run --minutes 12 --output outputs/002 [--arms "pointer;llama"] [--split validation]

How many steps fit the minutes is measured first (`training.budget`) and kept, so that a second run makes the same
steps.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

from needle.cli.app import compose
from needle.cli.train import train_words
from needle.config import build_job, settings
from needle.data.encoding import encode_records
from needle.data.sources import subset
from needle.data.synthetic import SyntheticConfig, generate
from needle.engine.decode import Engine
from needle.engine.open import open_engine
from needle.judging.compare import Run
from needle.judging.metrics import METRICS, interval, summarise
from needle.judging.study import Plan, Study
from needle.teachers.local import LocalTeacher
from needle.text.files import write_json
from needle.text.formats import read_records
from needle.text.records import Record
from needle.training.budget import steps_within

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

FLAT = ["train.batch_size=32", "train.micro_batch=16", "optim.lr=1e-3"]
SPLIT = ["train.batch_size=64", "train.micro_batch=32", "train.group=source", "optim.lr=6e-4"]
ARMS: dict[str, list[str]] = {
    "seed, JSON": ["student=seed_26m", "codec=json", *FLAT],
    "llama, JSON": ["student=llama_26m", "codec=json", *FLAT],
    "llama": ["student=llama_26m", *FLAT],
    "san": ["student=san_26m", *FLAT],
    "san with feed-forward": ["student=san_mlp_26m", *FLAT],
    "pointer, JSON": ["student=pointer_26m", "codec=json", "student.tool_gradient=0.25", *SPLIT],
    "pointer": ["student=pointer_26m", "student.tool_gradient=0.25", *SPLIT],
    "pointer, pretrained, untrusted": [
        "student=pointer_pretrained_26m",
        "student.pool=false",
        "tokenizer.size=20480",
        "optim.pretrained=0.3",
        *SPLIT,
    ],
    "pointer, pretrained": ["student=pointer_pretrained_26m", "tokenizer.size=20480", "optim.pretrained=0.3", *SPLIT],
}
LONGEST, NATS = 1024, 250  # the tokens of a record, as in training; records of each of two sets
COMMON = [
    *("data=real", "hardware=cpu_bf16", "hardware.threads=1", "optim.warmup=30", f"data.max_length={LONGEST}"),
    *("train.eval_every=100000", "train.save_every=100000"),
]
SETS = ("snips", "hwu64", "mixed_calls", "sgd", "ha_intents")


def plan(arm: str, words: list[str], common: list[str], minutes: float, output: Path) -> Plan:
    """An arm with as many steps as fit the minutes."""
    name = arm.replace(" ", "_").replace(",", "")
    path = output / "steps" / name / "steps.json"
    steps = steps_within(minutes, lambda: build_job(settings(compose([*common, *words]))), path)
    return Plan(arm, (*words, f"train.steps={steps}"), folder=name)


def test_sets(data: Path, split: str, most: int | None) -> dict[str, list[Record]]:
    sets = {name: subset(list(read_records(data / name / f"{split}.jsonl.gz")), most, 0) for name in SETS}
    sets["synthetic, unseen tools"] = list(generate(SyntheticConfig(train=0, validation=0, test=0, unseen=300))[2])[
        :most
    ]
    return sets


def nats(folder: Path, records: list[Record]) -> dict[str, float | None]:
    """How unlikely a student finds a whole gold answer, -ln p, over what one codec or another writes: it tells apart
    students that answer nothing right yet."""
    student = LocalTeacher([folder])
    found = student.checkpoints[0]
    examples = encode_records(records, found.renderer, found.codec, LONGEST).examples
    costs = []
    for start in range(0, len(examples), 16):
        batch = examples[start : start + 16]
        for own, example in zip(student.log_probs(batch, torch.device("cpu")), batch, strict=True):
            costs.append(-float(own[torch.arange(len(example.target)), torch.tensor(example.target)].sum()))
    return interval([(cost, 1.0) for cost in costs], 0)


def latency(engine: Engine, records: list[Record]) -> float:
    """Milliseconds of a call with five known tools, in the median of thirty."""
    times = []
    for record in [r for r in records if len(r.tools) == 5 and r.answers][:30]:
        engine.answer(record.query, record.tools, 60)
        started = time.perf_counter()
        engine.answer(record.query, record.tools, 60)
        times.append(1000 * (time.perf_counter() - started))
    return float(np.median(times))


def judged(runs: dict[str, Run], sets: dict[str, list[Record]]) -> dict[str, Any]:
    """What the table tells of one student, from its scores on each set."""
    out: dict[str, Any] = {"sets": {}}
    every = []
    for name, run in runs.items():
        out["sets"][name] = {metric: value for metric, value in summarise(run.scores).items() if metric in METRICS}
        every += list(zip(sets[name], run.scores, strict=True))
    folder = next(iter(runs.values())).folder
    out["nats"] = nats(folder, [*sets["snips"][:NATS], *sets["hwu64"][:NATS]])
    unseen = [s.rates["exact_call"] for _, s in every if s.groups.get("seen") == "unseen"]
    several = [s.rates["exact_call"] for r, s in every if len(r.answers) > 1]
    out["unseen tools"], out["several calls"] = interval(unseen, 0), interval(several, 0)
    out["all"] = {metric: value for metric, value in summarise([s for _, s in every]).items() if metric in METRICS}
    out["latency_ms"] = latency(open_engine(folder, precision="bfloat16"), sets["snips"])
    return out


def table(rows: dict[str, Any]) -> str:
    def share(cell: dict[str, Any]) -> str:
        return "–" if cell["value"] is None else f"{100 * cell['value']:.1f}"

    columns = [*SETS, "synthetic, unseen tools"]
    lines = [
        "| student | parameters | minutes | records seen | "
        + " | ".join(columns)
        + " | unseen tools | several calls | tool name | argument F1 | false calls | -ln p of the answer | a call, ms |"
    ]
    lines.append("| --- " + "| ---: " * (len(columns) + 10) + "|")
    for arm, row in rows.items():
        found, summary = row["judged"], row["training"]
        cells = [
            arm,
            f"{summary['parameters'] / 1e6:.1f}M",
            f"{summary['seconds'] / 60:.1f}",
            f"{summary['records']:,}",
        ]
        cells += [share(found["sets"][name]["exact_call"]) for name in columns]
        cells += [
            share(found["unseen tools"]),
            share(found["several calls"]),
            *(share(found["all"][metric]) for metric in ("tool_name", "argument_f1", "false_call_rate")),
        ]
        lines.append("| " + " | ".join([*cells, f"{found['nats']['value']:.1f}", f"{found['latency_ms']:.0f}"]) + " |")
    return "\n".join(lines) + "\n"


def plot(rows: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(9, 0.5 * len(rows) + 1.6), layout="constrained")
    names = list(rows)[::-1]
    for offset, (name, colour) in enumerate((("snips", "#0969da"), ("hwu64", "#1a7f37"), ("sgd", "#bf8700"))):
        cells = [rows[arm]["judged"]["sets"][name]["exact_call"] for arm in names]
        values = np.asarray([100 * cell["value"] for cell in cells])
        spread = np.asarray(
            [[100 * (cell["value"] - cell["low"]), 100 * (cell["high"] - cell["value"])] for cell in cells]
        ).T
        axes.barh(
            np.arange(len(names)) + 0.25 * (1 - offset),
            values,
            0.23,
            xerr=spread,
            color=colour,
            label=name,
            error_kw={"elinewidth": 1, "ecolor": "#57606a"},
        )
    axes.set_yticks(np.arange(len(names)), names)
    axes.set_xlabel("exact call, % (95% intervals)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--output", type=Path, default=Path("outputs/002"))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("NEEDLE_DATA", "data")))
    parser.add_argument("--arms", default=";".join(ARMS), help="some of them, joined by semicolons")
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--records", type=int, help="at most so many of each set")
    arguments = parser.parse_args()
    sets = test_sets(arguments.data, arguments.split, arguments.records)
    names = arguments.arms.split(";")
    plans = [plan(arm, ARMS[arm], COMMON, arguments.minutes, arguments.output) for arm in names]
    study = Study(arguments.output, sets, train_words, arms=plans, common=COMMON, max_tokens=100)
    results = study.run()
    path = arguments.output / "results.json"
    rows: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for arm in names:
        runs = {test: next(own.runs[0] for own in arms if own.name == arm) for test, arms in results.arms.items()}
        rows[arm] = {"training": dict(next(iter(runs.values())).summary), "judged": judged(runs, sets)}
    rows = {arm: rows[arm] for arm in ARMS if arm in rows}
    write_json(path, rows)
    (arguments.output / "table.md").write_text(table(rows))
    plot(rows, arguments.output / "students.png")
    print(table(rows))


if __name__ == "__main__":
    main()
