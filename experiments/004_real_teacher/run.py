"""Students of gold calls, of Gemini's recorded calls, of those that the verifier keeps, and of both, judged on gold calls and on Gemini's.

Writes results.json and table.md.

python -m experiments.004_real_teacher.run --output outputs/004
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from needle.checkpoint import load_checkpoint, write_json
from needle.cli.app import TrainingProgress, compose
from needle.collect.pipeline import judge_traffic
from needle.config import build_job, released, settings
from needle.engine.decode import Engine
from needle.evaluate import judge
from needle.formats import read_records
from needle.metrics import Score, interval
from needle.records import write_jsonl
from needle.train import train

VERIFIED = "ha_gemini_verified"
ARMS = {"gold": ["ha_intents"], "Gemini": ["ha_gemini"], "Gemini, verified": [VERIFIED], "gold and Gemini": ["ha_intents", "ha_gemini"]}
TESTS = {"gold": "ha_intents", "Gemini": "ha_gemini"}
SMALL = ["student=pointer_tiny", "student.lexical=true", "tokenizer.size=4096", "optim.lr=2e-3", "optim.warmup=30", "train.steps=300", "data.augment.copies=3"]
RELEASED = ["student=pointer_pretrained_26m", "optim.lr=2e-4", "optim.pretrained=0.5", "optim.warmup=20", "train.steps=120", "data.augment.copies=1", "hardware=cpu_bf16"]
COMMON = ["train.batch_size=64", "train.micro_batch=64", "train.eval_every=100000", "train.save_every=100000"]


def verify(data: Path, folder: Path) -> None:
    """Gemini's calls that the rules of `needle collect` keep, as a set of its own."""
    for split in ("train", "validation"):
        kept = [found.verdict.record for found in judge_traffic(read_records(data / "ha_gemini" / f"{split}.jsonl.gz"), "en") if found.verdict.record]
        write_jsonl(folder / f"{split}.jsonl.gz", kept)
        print(f"verified, {split}: {len(kept)} kept")


def scores_of(engine: Engine, data: Path, split: str) -> dict[str, list[Score]]:
    return {name: judge(engine, list(read_records(data / folder / f"{split}.jsonl.gz")))[1] for name, folder in TESTS.items()}


def row(runs: list[list[Score]], metric: str) -> dict[str, Any]:
    """The mean over seeds, with an interval over records (each record's mean over seeds)."""
    means = np.asarray([[score.rates[metric] for score in scores] for scores in runs]).mean(0)
    return interval([(float(hits), float(cases)) for hits, cases in means], 0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, default=Path("outputs/004"))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("NEEDLE_DATA", "data")))
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    sys.argv = sys.argv[:1]
    start = released()
    verify(arguments.data, arguments.output / VERIFIED)
    results: dict[str, Any] = {}
    plain = scores_of(Engine(load_checkpoint(start)), arguments.data, arguments.split)
    results["the released student as it is"] = {name: {metric: row([found], metric) for metric in ("exact_call", "tool_name")} for name, found in plain.items()}
    for kind, words, seeds in (
        ("small, from random weights", SMALL, arguments.seeds),
        ("the released student, trained on", [*RELEASED, f"train.start={start}", f"tokenizer.path={start}"], 1),
    ):
        for arm, sets in ARMS.items():
            runs: dict[str, list[list[Score]]] = {name: [] for name in TESTS}
            for seed in range(seeds):
                folder = arguments.output / f"{kind}-{arm}-{seed}".replace(" ", "_").replace(",", "")
                folders = [(arguments.output if name == VERIFIED else arguments.data) / name for name in sets]
                files = ["data=jsonl", *(f"data.{part}=[{','.join(str(own / f'{part}.jsonl.gz') for own in folders)}]" for part in ("train", "validation"))]
                job = build_job(settings(compose([*words, *COMMON, *files, f"hardware.threads={arguments.threads}", f"train.seed={seed}", f"output={folder}"])))
                train(job, TrainingProgress(f"{kind}, {arm}, seed {seed}: "))
                for name, found in scores_of(Engine(load_checkpoint(folder)), arguments.data, arguments.split).items():
                    runs[name].append(found)
            results[f"{kind}: {arm}"] = {name: {metric: row(found, metric) for metric in ("exact_call", "tool_name")} for name, found in runs.items()}
            write_json(arguments.output / "results.json", results)
    lines = ["| trained on | exact call, gold test | tool, gold test | same call as Gemini | same tool as Gemini |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, found in results.items():
        cells = [found[test][metric] for test in TESTS for metric in ("exact_call", "tool_name")]
        lines.append(f"| {name} | " + " | ".join(f"{100 * cell['value']:.1f} ({100 * cell['low']:.1f}–{100 * cell['high']:.1f})" for cell in cells) + " |")
    (arguments.output / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), json.dumps({"split": arguments.split}))


if __name__ == "__main__":
    main()
