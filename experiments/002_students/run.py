"""Trains every student for the same minutes of one core, judges all of them, and writes table.md, results.json and
students.png.

    python -m experiments.002_students.run --minutes 12 --output outputs/002 [--arms "pointer;llama"] [--split
    validation]

How many steps fit the minutes is measured first, in the process's own time, which waiting for other processes isn't
part of (`steps.json` of each arm, kept: with it a second run makes the same steps).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

from needle.cli.app import compose
from needle.cli.say import TrainingProgress
from needle.config import build_job, settings
from needle.data.encoding import encode_records
from needle.data.sources import subset
from needle.data.synthetic import SyntheticConfig, generate
from needle.engine.decode import Engine
from needle.judging.evaluate import judge
from needle.judging.metrics import METRICS, interval, summarise
from needle.students.checkpoint import load_checkpoint
from needle.teachers.local import LocalTeacher
from needle.text.files import write_json
from needle.text.formats import read_records
from needle.text.records import Record
from needle.training.loop import train

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
    "data=real",
    "hardware=cpu_bf16",
    "hardware.threads=1",
    "optim.warmup=30",
    "train.eval_every=100000",
    "train.save_every=100000",
    f"data.max_length={LONGEST}",
]
SETS = ("snips", "hwu64", "mixed_calls", "sgd", "ha_intents")
WARM, MEASURED = 6, 20


def folder_of(output: Path, arm: str) -> Path:
    return output / arm.replace(" ", "_").replace(",", "")


def steps_within(minutes: float, words: list[str], folder: Path) -> int:
    """How many optimiser steps of an arm fit: timed once on a short run, the first steps left out, and kept in its
    folder."""
    path = folder / "steps.json"
    if (known := kept(path, {"minutes": minutes})) is None:
        job = build_job(settings(compose([*words, f"train.steps={WARM + MEASURED}", f"output={folder / 'trial'}"])))
        job.train.log_every = 1
        spent: dict[int, float] = {}
        train(job, lambda values: spent.setdefault(values.get("step", 0), time.process_time()) and None)
        each = (spent[WARM + MEASURED] - spent[WARM]) / MEASURED
        known = {"minutes": minutes, "seconds": each, "steps": max(int(60 * minutes / each), 1)}
        write_json(path, known)
    return int(known["steps"])


def kept(path: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """What a file of an earlier run holds, if that run was asked for the same."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found if found and all(found.get(name) == value for name, value in asked.items()) else None


def trained(arm: str, words: list[str], minutes: float, folder: Path) -> dict[str, Any]:
    """One arm's run of so many minutes; its summary."""
    steps = steps_within(minutes, words, folder)
    return train(
        build_job(settings(compose([*words, f"train.steps={steps}", f"output={folder / 'run'}"]))),
        TrainingProgress(f"{arm}: "),
    )


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


def judged(folder: Path, sets: dict[str, list[Record]]) -> dict[str, Any]:
    checkpoint = load_checkpoint(folder)
    checkpoint.student.to(torch.bfloat16)
    engine = Engine(checkpoint)
    out: dict[str, Any] = {"sets": {}, "nats": nats(folder, [*sets["snips"][:NATS], *sets["hwu64"][:NATS]])}
    every = []
    for name, records in sets.items():
        _, scores = judge(engine, records, max_tokens=100, batch_size=32)
        out["sets"][name] = {metric: value for metric, value in summarise(scores).items() if metric in METRICS}
        every += [(record, score) for record, score in zip(records, scores, strict=True)]
    unseen = [s.rates["exact_call"] for r, s in every if s.groups.get("seen") == "unseen"]
    several = [s.rates["exact_call"] for r, s in every if len(r.answers) > 1]
    out["unseen tools"], out["several calls"] = interval(unseen, 0), interval(several, 0)
    out["all"] = {metric: value for metric, value in summarise([s for _, s in every]).items() if metric in METRICS}
    five = [r for r in sets["snips"] if len(r.tools) == 5 and r.answers][:30]
    times = []
    for record in five:
        engine.answer(record.query, record.tools, 60)
        started = time.perf_counter()
        engine.answer(record.query, record.tools, 60)
        times.append(1000 * (time.perf_counter() - started))
    out["latency_ms"] = float(np.median(times))
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
    parser.add_argument(
        "--arms",
        default=";".join(ARMS),
        help="some of them, joined by semicolons; several processes may each take some",
    )
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--records", type=int, help="at most so many of each set")
    arguments = parser.parse_args()
    sys.argv = sys.argv[:1]
    arguments.output.mkdir(parents=True, exist_ok=True)
    sets = test_sets(arguments.data, arguments.split, arguments.records)
    for arm in arguments.arms.split(";"):
        folder = folder_of(arguments.output, arm)
        asked = {"split": arguments.split, "records": arguments.records, "minutes": arguments.minutes}
        if kept(folder / "judged.json", asked) is None:
            summary = trained(arm, [*COMMON, *ARMS[arm]], arguments.minutes, folder)
            write_json(folder / "judged.json", {**asked, "training": summary, "judged": judged(folder / "run", sets)})
    rows = {
        arm: json.loads(path.read_text())
        for arm in ARMS
        if (path := folder_of(arguments.output, arm) / "judged.json").is_file()
    }
    write_json(arguments.output / "results.json", rows)
    (arguments.output / "table.md").write_text(table(rows))
    plot(rows, arguments.output / "students.png")
    print(table(rows))


if __name__ == "__main__":
    main()
