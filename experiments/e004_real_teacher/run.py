"""Students of gold calls, of Gemini's recorded calls, of those that the verifier keeps, and of both, judged on gold
calls and on Gemini's.

    python -m experiments.e004_real_teacher.run --output outputs/004

Writes results.json and table.md.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from needle.cli.train import train_words
from needle.collect.pipeline import judge_traffic
from needle.data.sources import subset
from needle.engine.decode import Engine
from needle.judging.compare import Arm, Run, holm, paired, seeds_interval
from needle.judging.evaluate import judge
from needle.judging.study import Plan, Study
from needle.students.checkpoint import load_checkpoint
from needle.text.files import write_json
from needle.text.folder import released
from needle.text.formats import read_records
from needle.text.records import Record, write_jsonl

VERIFIED, AS_MANY = "ha_gemini_verified", "ha_gemini_as_many"
ARMS = {
    "gold": ["ha_intents"],
    "Gemini": ["ha_gemini"],
    "Gemini, verified": [VERIFIED],
    "Gemini, as many": [AS_MANY],
    "gold and Gemini": ["ha_intents", "ha_gemini"],
}
CONTRASTS = (("Gemini", "gold"), ("Gemini, verified", "Gemini, as many"), ("gold and Gemini", "gold"))
TESTS = {"gold": "ha_intents", "Gemini": "ha_gemini"}
SMALL = [
    "student=pointer_tiny",
    "student.lexical=true",
    "optim.lr=2e-3",
    "optim.warmup=30",
    "train.steps=300",
    "data.augment.copies=3",
]
RELEASED = [
    "student=pointer_pretrained_26m",
    "optim.lr=2e-4",
    "optim.pretrained=0.5",
    "optim.warmup=20",
    "train.steps=120",
    "data.augment.copies=1",
    "hardware=cpu_bf16",
]
COMMON = [
    "data=jsonl",
    "train.batch_size=64",
    "train.micro_batch=64",
    "train.eval_every=100000",
    "train.save_every=100000",
]


def write_sets(data: Path, folder: Path) -> None:
    """Gemini's calls that the rules of `needle collect` keep, and as many drawn from all of them."""
    for split in ("train", "validation"):
        every = list(read_records(data / "ha_gemini" / f"{split}.jsonl.gz"))
        kept = [found.verdict.record for found in judge_traffic(every, "en") if found.verdict.record]
        write_jsonl(folder / VERIFIED / f"{split}.jsonl.gz", kept)
        write_jsonl(folder / AS_MANY / f"{split}.jsonl.gz", subset(every, len(kept), 0))
        print(f"{split}: {len(kept)} of {len(every)} verified")


def plan(name: str, kind: str, words: Sequence[str], arguments: argparse.Namespace) -> Plan:
    """An arm: the files of its sets."""
    folders = [(arguments.output if own in (VERIFIED, AS_MANY) else arguments.data) / own for own in ARMS[name]]
    files = [
        f"data.{split}=[{','.join(str(folder / f'{split}.jsonl.gz') for folder in folders)}]"
        for split in ("train", "validation")
    ]
    size = sum(1 for folder in folders for _ in read_records(folder / "train.jsonl.gz"))
    return Plan(name, (*words, *files), size, f"{kind}-{name}".replace(" ", "_").replace(",", ""))


def rows_of(kind: str, arms: Mapping[str, Sequence[Arm]]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for test, own in arms.items():
        for arm in own:
            row = {"kind": kind, "arm": arm.name, "records": arm.data_size, "seeds": len(arm.runs)}
            rates = {metric: seeds_interval(arm.rates(metric)) for metric in ("exact_call", "tool_name")}
            found.setdefault(arm.name, row)[test] = rates
    return list(found.values())


def table(results: Mapping[str, Any]) -> str:
    def cell(value: Mapping[str, float]) -> str:
        return f"{100 * value['mean']:.1f} ({100 * value['low']:.1f}–{100 * value['high']:.1f})"

    lines = [
        (
            "| student | trained on | records | seeds | exact call, gold test | tool, gold test | same call as Gemini |"
            " same tool as Gemini |"
        ),
        "| --- | --- |" + " ---: |" * 6,
    ]
    for row in results["rows"]:
        cells = [cell(row[test][metric]) for test in TESTS for metric in ("exact_call", "tool_name")]
        lines.append(
            f"| {row['kind']} | {row['arm']} | {row['records'] or '–'} | {row['seeds']} | " + " | ".join(cells) + " |"
        )
    lines += [
        "",
        "| student | difference in exact call | test | points | p, corrected |",
        "| --- | --- | --- | ---: | ---: |",
    ]
    for pair in results["paired"]:
        points = f"{100 * pair['difference']:+.1f} ({100 * pair['low']:+.1f} to {100 * pair['high']:+.1f})"
        lines.append(
            f"| {pair['kind']} | {pair['a']} − {pair['b']} | {pair['test']} | {points} | {pair['p_holm']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, default=Path("outputs/004"))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("NEEDLE_DATA", "data")))
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    start = released()
    write_sets(arguments.data, arguments.output)
    tests: dict[str, list[Record]] = {
        test: list(read_records(arguments.data / folder / f"{arguments.split}.jsonl.gz"))
        for test, folder in TESTS.items()
    }
    engine = Engine(load_checkpoint(start))
    plain = {
        test: [Arm("as it is", {}, 0, [Run(judge(engine, records)[1], [], 0, {}, 0.0, start)])]
        for test, records in tests.items()
    }
    rows, pairs = rows_of("released", plain), []
    kinds = {
        "small": (SMALL, range(arguments.seeds)),
        "released, trained on": ([*RELEASED, f"train.start={start}"], range(1)),
    }
    common = [*COMMON, f"tokenizer.path={start}", f"hardware.threads={arguments.threads}"]
    for kind, (words, seeds) in kinds.items():
        plans = [plan(name, kind, words, arguments) for name in ARMS]
        results = Study(arguments.output, tests, train_words, arms=plans, seeds=list(seeds), common=common).run()
        arms = {test: {arm.name: arm for arm in own} for test, own in results.arms.items()}
        rows += rows_of(kind, {test: [own[name] for name in ARMS] for test, own in arms.items()})
        pairs += [
            {"kind": kind, "test": test, **paired(own[a], own[b])} for test, own in arms.items() for a, b in CONTRASTS
        ]
    pairs = [{**pair, "p_holm": p} for pair, p in zip(pairs, holm([pair["p"] for pair in pairs]), strict=True)]
    results_ = {"split": arguments.split, "rows": rows, "paired": pairs}
    write_json(arguments.output / "results.json", results_)
    (arguments.output / "table.md").write_text(table(results_), encoding="utf-8")
    print(table(results_))


if __name__ == "__main__":
    main()
