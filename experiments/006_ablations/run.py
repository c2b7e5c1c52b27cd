"""One change at a time to the released recipe, the same minutes of one core each, on validation. Writes table.md and
results.json.

python -m experiments.006_ablations.run --minutes 8 --output outputs/006 [--arms "the recipe;tools as declared"]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from needle.data.sources import subset
from needle.engine.decode import Engine
from needle.judging.evaluate import judge
from needle.judging.metrics import METRICS, interval, summarise
from needle.students.checkpoint import load_checkpoint
from needle.text.files import write_json

students = importlib.import_module("experiments.002_students.run")
released = importlib.import_module("experiments.005_needle_26m.judge")

SHORT = [
    "hardware.threads=1",
    "train.batch_size=64",
    "train.micro_batch=32",
    "optim.schedule=linear",
    "optim.ema=0",
    "optim.warmup=30",
]
NEVER = ["train.eval_every=100000", "train.save_every=100000"]
BASE = [
    "experiment=needle_26m",
    "data.augment={copies: 2, join: 0.35, strangers: 0.25, rename: 0, shuffle: 0}",
    "train.rename=0.6",
    *SHORT,
    *NEVER,
]
ARMS: dict[str, list[str]] = {
    "the recipe": [],
    "tools as declared": ["train.rename=0"],
    "renamed once for each copy": ["train.rename=0", "data.augment.rename=1"],  # two of three, against 60% of passes
    "no joined requests": ["data.augment.join=0"],
    "no strangers": ["data.augment.strangers=0"],
    "no copies, joins or strangers": ["data.augment.copies=0"],
    "every tool has a gradient": ["student.tool_gradient=1.0"],
    "no blind records": ["student.blind=0"],
    "names weigh 2, values 2": ["loss.weights.name=2", "loss.weights.value=2"],
    "encoder at the full rate": ["optim.pretrained=1.0"],
    "encoder at a tenth": ["optim.pretrained=0.1"],
    "markers instead of means": ["student.pool=false"],
    "8,192 tokens, three decoder layers": ["tokenizer.size=8192", "student.decoder_layers=3", "student.hidden=1536"],
    "words dropped from the request": ["student.token_dropout=0.1"],
}


def judged(folder: Path, data: Path, most: int) -> dict[str, Any]:
    checkpoint = load_checkpoint(folder)
    checkpoint.student.to(torch.bfloat16)
    engine = Engine(checkpoint)
    out: dict[str, Any] = {}
    every = []
    for name in released.SETS:
        scores = judge(engine, subset(released.records_of(data, name, "validation"), most, 0))[1]
        out[name] = summarise(scores)["exact_call"]
        every += scores
    renamed = released.changes(data)["renamed, arguments too"]
    scores = [
        score
        for name in released.CHANGED
        for score in judge(
            engine, [renamed(record) for record in subset(released.records_of(data, name, "validation"), most, 0)]
        )[1]
    ]
    out["renamed"] = interval([score.rates["exact_call"] for score in scores], 0)
    out["all"] = summarise(every)
    out["exact"] = {"all": [score.exact for score in every], "renamed": [score.exact for score in scores]}
    return out


def against(row: dict[str, Any], base: dict[str, Any], part: str) -> str:
    """The difference from the recipe in points, paired by record."""
    pairs = zip(row["judged"]["exact"][part], base["judged"]["exact"][part], strict=True)
    found = interval([(float(mine) - float(theirs), 1.0) for mine, theirs in pairs], 0)
    return f"{100 * (found['value'] or 0):+.1f} ({100 * (found['low'] or 0):+.1f} to {100 * (found['high'] or 0):+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--output", type=Path, default=Path("outputs/006"))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("NEEDLE_DATA", "data")))
    parser.add_argument("--arms", default=";".join(ARMS))
    parser.add_argument("--records", type=int, default=300, help="at most so many of each set")
    arguments = parser.parse_args()
    sys.argv = sys.argv[:1]
    arguments.output.mkdir(parents=True, exist_ok=True)
    for arm in arguments.arms.split(";"):
        folder = students.folder_of(arguments.output, arm)
        asked = {"records": arguments.records, "minutes": arguments.minutes}
        if students.kept(folder / "judged.json", asked) is None:
            summary = students.trained(arm, [*BASE, *ARMS[arm]], arguments.minutes, folder)
            write_json(
                folder / "judged.json",
                {**asked, "training": summary, "judged": judged(folder / "run", arguments.data, arguments.records)},
            )
    rows = {
        arm: json.loads(path.read_text())
        for arm in ARMS
        if (path := students.folder_of(arguments.output, arm) / "judged.json").is_file()
    }
    kept = {
        arm: {name: row["judged"][name] for name in (*released.SETS, "renamed")}
        | {name: row["judged"]["all"][name] for name in METRICS}
        for arm, row in rows.items()
    }
    write_json(
        arguments.output / "results.json", {arm: {**rows[arm], "judged": figures} for arm, figures in kept.items()}
    )
    base = rows.get(next(iter(ARMS)))
    columns = [*released.SETS, "renamed"]
    lines = [
        "| change | records seen | "
        + " | ".join(columns)
        + " | all | all, against the recipe | renamed, against the recipe | tool name | false calls |",
        "| --- " + "| ---: " * (len(columns) + 6) + "|",
    ]
    for arm, row in rows.items():
        found = row["judged"]
        cells = [f"{100 * found[name]['value']:.1f}" for name in columns]
        every = found["all"]
        differences = [against(row, base, part) if base else "–" for part in ("all", "renamed")]
        cells += [
            f"{100 * every['exact_call']['value']:.1f}",
            *differences,
            f"{100 * every['tool_name']['value']:.1f}",
            f"{100 * every['false_call_rate']['value']:.1f}",
        ]
        lines.append(f"| {arm} | {row['training']['records']:,} | " + " | ".join(cells) + " |")
    (arguments.output / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
