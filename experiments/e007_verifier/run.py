"""What the verifier of `needle collect` drops of the calls that Gemini really made, and why.

    python -m experiments.e007_verifier.run --data $NEEDLE_DATA --output experiments/e007_verifier

Each record of ha_gemini goes through the rules as a labelled request does, with Gemini's answer as its only sample.
`sample.md` shows 20 drops and 20 keeps, drawn with a seed, to be read by eye.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from pathlib import Path

from needle.collect.pipeline import Judged, judge_traffic
from needle.text.formats import read_records

SHOWN = 20


def line(number: int, judged: Judged, calls: list[str]) -> str:
    said = "; ".join(calls) or "no call"
    return f"| {number} | {judged.case.query} | `{said}` | {judged.verdict.detail or '–'} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds ha_gemini")
    parser.add_argument("--output", type=Path, default=Path("outputs/007"))
    options = parser.parse_args()
    records = [
        record
        for split in ("train", "validation", "test")
        for record in read_records(options.data / "ha_gemini" / f"{split}.jsonl.gz")
    ]
    answers = {
        record.id: [f"{call.name}({json.dumps(call.arguments)})" for call in record.answers] for record in records
    }
    judged = list(judge_traffic(records, "en"))
    reasons = Counter(one.verdict.reason or "kept" for one in judged)
    arguments = Counter(
        one.verdict.detail.split(" = ")[0].split(".")[-1] for one in judged if one.verdict.reason == "ungrounded"
    )
    doubt = sum(one.verdict.doubt for one in judged if one.verdict.record)
    silent = sum(not one.verdict.record.answers for one in judged if one.verdict.record)
    options.output.mkdir(parents=True, exist_ok=True)
    figures = {
        "records": len(judged),
        "reasons": dict(reasons.most_common()),
        "ungrounded_arguments": dict(arguments.most_common()),
        "kept_in_doubt": doubt,
        "kept_without_a_call": silent,
    }
    (options.output / "results.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    random.Random(0).shuffle(judged)
    parts = ["# Drawn by `run.py`, seed 0", ""]
    for title, wanted in (("Dropped", True), ("Kept", False)):
        chosen = [one for one in judged if bool(one.verdict.reason) == wanted][:SHOWN]
        rows = [line(number, one, answers[one.case.id]) for number, one in enumerate(chosen, 1)]
        parts += [f"## {title}", "", "| | request | Gemini's answer | why |", "| ---: | --- | --- | --- |", *rows, ""]
    (options.output / "sample.md").write_text("\n".join(parts), encoding="utf-8")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
