"""Judges a student on everything that the second student is for.

    python -m experiments.e009_second_student.judge CHECKPOINT [--records 300] [--split validation] [--output FILE]

Real sets as they are, in lower case, in capitals and without punctuation; families that training never showed; the
suites of `suites`. Percent; NEEDLE_DATA names the folder of the sets.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.e009_second_student.suites import declarations, suites
from needle.data.rename import Strength, rename
from needle.data.sources import DataConfig, read_files, subset
from needle.data.surface import changed
from needle.engine.decode import Engine
from needle.engine.open import open_engine
from needle.judging.evaluate import judge, write_predictions
from needle.text.records import Record

SETS = ("snips", "hwu64", "sgd", "mixed_calls", "skills", "thingpedia")
SURFACES = ("lower", "upper", "bare")
ALL_RENAMED = Strength(
    opaque=0.2, astray=0.2, other_words=0.4, recase=0.2, bare=0, synonym=0.5, shuffle=0.5, tests=True
)


def surface(record: Record, kind: str) -> Record:
    """The record in another surface; as it is where values would be lost."""
    return changed(record, kind, random.Random(0)) or record


def row(
    engine: Engine, records: Sequence[Record], note: Callable[[Sequence[Record], Any, Any], None]
) -> dict[str, Any]:
    answers, scores = judge(engine, records)
    note(records, answers, scores)
    some = [score for record, score in zip(records, scores, strict=True) if record.answers]
    none = [answer for record, answer in zip(records, answers, strict=True) if not record.answers]
    order = [
        answer.calls is not None and [call.name for call in answer.calls] == [call.name for call in record.answers]
        for record, answer in zip(records, answers, strict=True)
    ]
    return {
        "records": len(records),
        "exact": _share([score.exact for score in scores]),
        "exact_called": _share([score.exact for score in some]),
        "names_in_order": _share(order),
        "false_calls": _share([bool(answer.calls) for answer in none]) if none else None,
    }


def _share(values: Sequence[bool]) -> float:
    return round(100 * sum(values) / max(len(values), 1), 1)


def judge_all(
    checkpoint: Path | None, split: str, most: int, parts: Sequence[str], predictions: Path | None
) -> dict[str, Any]:
    engine = open_engine(checkpoint, "constrained", "auto", 0)
    folder = Path(os.environ.get("NEEDLE_DATA", "data"))
    out: dict[str, Any] = {}
    started = time.perf_counter()

    def add(name: str, records: Sequence[Record]) -> None:
        def note(asked: Sequence[Record], answers: Any, scores: Any) -> None:
            if predictions:
                write_predictions(predictions / f"{name}.jsonl", asked, answers, scores)

        out[name] = row(engine, records, note)
        print(
            f"{name:28s}",
            {key: value for key, value in out[name].items() if value is not None},
            f"{time.perf_counter() - started:.0f} s",
            flush=True,
        )

    if "sets" in parts:
        for name in SETS:
            file = folder / name / f"{split}.jsonl.gz"
            if not file.is_file():
                continue
            records = subset(read_files([str(file)], DataConfig()), most, 0)
            add(name, records)
            if name == "sgd":
                add("sgd unseen", [record for record in records if record.meta.get("unseen_service")])
            if name in ("snips", "hwu64", "sgd", "mixed_calls"):
                for kind in SURFACES:
                    add(f"{name} {kind}", [surface(record, kind) for record in records])
            if name == "snips":
                add("snips renamed", [rename(record, 0, 1, ALL_RENAMED) for record in records])
    if "suites" in parts:
        for name, records in suites(declarations()).items():
            add(name, records if most > 300 else records[: max(most // 3, 30)])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--records", type=int, default=300)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--parts", nargs="+", default=["sets", "suites"])
    parser.add_argument("--predictions", type=Path)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    checkpoint = Path(given.checkpoint) if given.checkpoint else None
    found = judge_all(checkpoint, given.split, given.records, given.parts, given.predictions)
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
