"""Makes a release of a trained checkpoint: bfloat16 weights, config, tokenizer, metrics, the model card, and of a span
student its export in eight bits and a confidence that is a probability, fitted on validation records of the sets in
NEEDLE_DATA: families that training never shows, and requests for declarations that it never sees.

    python -m needle.release.ship outputs/needle_26m/part_{1,2,3,4,5,6,7} --weights outputs/needle_26m/mean \\
        --results results.json --leaderboard bfcl.json

The last folder is shipped, or `--weights`; those before it are the runs that it started from, or the metrics.json of
released weights that it started from.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch

from needle.data.declared.requests import declared
from needle.data.invented.requests import invented
from needle.data.sources import subset
from needle.engine.confidence import save_calibrations
from needle.engine.open import open_engine
from needle.exports.make import SEED, make_onnx
from needle.judging.calibrate import calibrate
from needle.release.card import card
from needle.release.judge import records_of
from needle.release.suites import declarations
from needle.students.checkpoint import load_checkpoint, save_checkpoint
from needle.text.files import write_json
from needle.text.folder import EXPORT
from needle.text.records import Record

UNSEEN = {"skills": 1000, "thingpedia": 800, "sgd": 1000, "mixed_calls": 200, "snips": 200}
ASKED = 800  # requests for declarations


def summaries(run: Path) -> list[dict[str, Any]]:
    """What training said of a run, or of each part that released weights were trained in."""
    if run.is_file():
        parts: list[dict[str, Any]] = json.loads(run.read_text(encoding="utf-8"))["training"]
        return parts
    return [json.loads((run / "train.json").read_text(encoding="utf-8"))]


def unseen(data: Path) -> list[Record]:
    """What a release's confidence is fitted on."""
    sets = [subset(records_of(data, name, "validation"), most, 0) for name, most in UNSEEN.items()]
    return [*(record for own in sets for record in own), *declared(ASKED, SEED, declarations(data), held_out=True)]


def sure(target: Path) -> dict[str, Any]:
    """Fits the confidence of a release and keeps it there; how good it is."""
    engine = open_engine(target, backend="onnx", precision="int8")
    found, table = calibrate(engine, unseen(Path(os.environ.get("NEEDLE_DATA", "data"))))
    save_calibrations(target, engine.model.weights, {"int8": found})
    del table["curve"]
    return table


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--results", type=Path, required=True, help="what needle.release.judge wrote")
    parser.add_argument(
        "--weights",
        type=Path,
        help="ship this checkpoint, made of the runs' (see average.py), in place of the last run's",
    )
    parser.add_argument(
        "--leaderboard",
        type=Path,
        required=True,
        help="what `needle evaluate data=bfcl category=all` wrote of the same weights",
    )
    parser.add_argument("--check", type=int, default=500, help="made-up requests that the export is compared on")
    parser.add_argument("--target", type=Path, default=Path("models/needle-26m"))
    arguments = parser.parse_args()
    target = arguments.target
    results = {
        "weights": arguments.weights.name if arguments.weights else None,
        "training": [part for run in arguments.runs for part in summaries(run)],
        **json.loads(arguments.results.read_text(encoding="utf-8")),
        "leaderboard": json.loads(arguments.leaderboard.read_text(encoding="utf-8"))["means"],
    }
    checkpoint = load_checkpoint(arguments.weights or arguments.runs[-1])
    checkpoint.student.to(torch.bfloat16)
    save_checkpoint(target, checkpoint)
    if checkpoint.config.family == "span":
        shipped = load_checkpoint(target)
        records = invented(arguments.check, SEED)
        results["export"] = make_onnx(shipped, target / EXPORT, ["int8"], records)
        results["confidence"] = sure(target)
    write_json(target / "metrics.json", results)
    (target / "README.md").write_text(card(checkpoint, results), encoding="utf-8")
    print(f"{target}: {sum(file.stat().st_size for file in target.rglob('*') if file.is_file()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
