"""Do a few tools chosen among thousands hold the right one? The student's own encoder against BM25. Writes results.json
and table.md.

    python -m experiments.e008_retrieval.run --output experiments/e008_retrieval

A set's requests are asked once with all tools of their own set to choose from and once with the tools of all sets.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from needle.config import released
from needle.data.sources import subset
from needle.engine.bm25 import Bm25Retriever
from needle.engine.decode import Engine
from needle.engine.eager import EagerBackend
from needle.engine.retrieve import EncoderRetriever, MergedRetriever, Retriever, recall_at
from needle.judging.evaluate import judge
from needle.judging.metrics import interval
from needle.students.checkpoint import load_checkpoint
from needle.students.pointer.student import PointerStudent
from needle.text.files import write_json
from needle.text.formats import read_records
from needle.text.records import Record, Tool

SETS = {
    "snips": "validation",
    "hwu64": "validation",
    "clinc150": "validation",
    "sgd": "validation",
    "seal_tools": "train",
}
KS = (1, 4, 8, 16, 32)
ANSWERED = ("snips", "hwu64", "sgd")
SHOWN = 16


def tools_of(sets: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, Tool]]:
    """The tools that each set's requests call, by name, as its first record declares them; a name that an earlier set
    has is left out."""
    taken: set[str] = set()
    out = {}
    for name, records in sets.items():
        called = {call.name for record in records for call in record.answers} - taken
        found: dict[str, Tool] = {}
        for record in records:
            for tool in record.tools:
                if tool.name in called:
                    found.setdefault(tool.name, tool)
        taken |= called
        out[name] = found
    return out


def table(results: Mapping[str, Any]) -> str:
    lines = [
        "| requests | tools to choose from | records | by | " + " | ".join(f"among the first {k}" for k in KS) + " |",
        "| --- | ---: | ---: | --- |" + " ---: |" * len(KS),
    ]
    for row in results["recall"]:
        lines.append(
            f"| {row['set']} | {row['tools']:,} | {row['records']} | {row['by']} | "
            + " | ".join(f"{100 * row['recall'][str(k)]:.1f}" for k in KS)
            + " |"
        )
    lines += [
        "",
        f"| requests | exact call, own tools | with all {results['tools']:,} declared, {SHOWN} shown |",
        "| --- | ---: | ---: |",
    ]
    for name, row in results["exact_call"].items():
        lines.append(
            f"| {name} | "
            + " | ".join(
                f"{100 * row[kind]['value']:.1f} ({100 * row[kind]['low']:.1f}–{100 * row[kind]['high']:.1f})"
                for kind in ("own", "all")
            )
            + " |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, default=Path("outputs/008"))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("NEEDLE_DATA", "data")))
    parser.add_argument("--checkpoint", type=Path, default=None, help="the released student unless told")
    parser.add_argument("--records", type=int, default=500, help="at most so many of each set")
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(arguments.checkpoint or released())
    student = checkpoint.student
    assert isinstance(student, PointerStudent), "only a pointer student ranks tools by itself"
    encoder, words = EncoderRetriever(EagerBackend(checkpoint)), Bm25Retriever()
    retrievers: dict[str, Retriever] = {
        "its encoder": encoder,
        "BM25": words,
        "both in turn": MergedRetriever(encoder, words),
    }
    sets = {name: list(read_records(arguments.data / name / f"{split}.jsonl.gz")) for name, split in SETS.items()}
    pools = tools_of(sets)
    every = [tool for pool in pools.values() for tool in pool.values()]
    recall: list[dict[str, Any]] = []
    asked = {
        name: subset(
            [
                record
                for record in records
                if record.answers and all(call.name in pools[name] for call in record.answers)
            ],
            arguments.records,
            0,
        )
        for name, records in sets.items()
    }
    for name, records in asked.items():
        for tools in (list(pools[name].values()), every):
            for by, retriever in retrievers.items():
                found = recall_at(retriever, records, tools, KS)
                recall.append(
                    {
                        "set": name,
                        "tools": len(tools),
                        "records": len(records),
                        "by": by,
                        "recall": {str(k): value for k, value in found.items()},
                    }
                )
                print(recall[-1])
    engine, exact = Engine(checkpoint, max_tools=SHOWN), {}
    for name in ANSWERED:
        kinds = {"own": asked[name], "all": [replace(record, tools=tuple(every)) for record in asked[name]]}
        exact[name] = {
            kind: interval([score.rates["exact_call"] for score in judge(engine, records, batch_size=16)[1]], 0)
            for kind, records in kinds.items()
        }
    results = {
        "checkpoint": checkpoint.data.get("fingerprint"),
        "tools": len(every),
        "recall": recall,
        "exact_call": exact,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output / "results.json", results)
    (arguments.output / "table.md").write_text(table(results), encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
