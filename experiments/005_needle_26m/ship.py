"""Puts a trained checkpoint into models/needle-26m: bfloat16 weights, config, tokenizer, metrics and the model card.

python -m experiments.005_needle_26m.ship outputs/needle_26m outputs/needle_26m_more outputs/needle_26m_names
outputs/needle_26m_invented --results results.json

The last folder is shipped; those before it are the runs that it started from, or the metrics.json of released weights
that it started from.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from needle.students.base import count_parameters
from needle.students.checkpoint import WEIGHTS, load_checkpoint, save_checkpoint
from needle.text.files import write_json

HERE = Path(__file__).parent
TARGET = HERE.parents[1] / "models" / "needle-26m"
LICENCES = {
    "snips": "CC0", "hwu64": "CC BY 4.0", "mixed_calls": "as its parts (CC0, CC BY 4.0)", "sgd": "CC BY-SA 4.0",
        "clinc150": "CC BY 3.0", "seal_tools": "Apache-2.0",
    "ha_intents": "CC BY 4.0", "synthetic": "Apache-2.0 (this project)", "invented": "Apache-2.0 (this project)",
}  # fmt: skip
SPLITS = {
    "test": "The test splits took no part in training or in any choice.",
    "validation": (
        "These are validation splits: not trained on, but the recipe was chosen by them, so that the figures flatter it"
        " a little. This student hasn't been judged on the test splits."
    ),
}


def share(cell: dict[str, Any]) -> str:
    return (
        "–"
        if cell["value"] is None
        else f"{100 * cell['value']:.1f} ({100 * cell['low']:.1f}–{100 * cell['high']:.1f})"
    )


def summaries(run: Path) -> list[dict[str, Any]]:
    """What training said of a run, or of each part that released weights were trained in."""
    if run.is_file():
        parts: list[dict[str, Any]] = json.loads(run.read_text(encoding="utf-8"))["training"]
        return parts
    return [json.loads((run / "train.json").read_text(encoding="utf-8"))]


def card(checkpoint: Any, results: dict[str, Any]) -> str:
    """The model card, from what metrics.json holds."""
    training, leaderboard = results["training"], results["leaderboard"]
    rows = [
        (
            f"| {results['split']} set | records | exact call | tool name | argument F1 | false calls, of records"
            " without a fitting tool |"
        ),
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in results["sets"].items():
        unfit = row["groups"]["calls"].get("0", {}).get("records", 0)
        false = f"{share(row['false_call_rate'])} of {unfit}" if unfit else "–"
        rows.append(
            f"| {name} | {row['records']:,} | {share(row['exact_call'])} | {share(row['tool_name'])} |"
            f" {share(row['argument_f1'])} | {false} |"
        )
        for member, part in row["groups"].get("seen", {}).items():
            if name == "sgd":
                rows.append(
                    f"| – {member} tools | {part['records']:,} | {share(part['exact_call'])} |"
                    f" {share(part['tool_name'])} | {share(part['argument_f1'])} | |"
                )
    changed = ["| tools | SNIPS | HWU64 |", "| --- | ---: | ---: |"]
    for change in results["changes"]["snips"]:
        cells = [results["changes"][name][change] for name in ("snips", "hwu64")]
        changed.append(
            f"| {change} | "
            + " | ".join(f"{100 * (cell if isinstance(cell, float) else cell['exact_call']):.1f}" for cell in cells)
            + " |"
        )
    met = [
        f"{row['met']['records']} of {name}'s requests (without them {share(row['met']['exact_call_of_the_others'])})"
        for name, row in results["sets"].items()
        if row.get("met", {}).get("records")
    ]
    inside = (
        "Some requests stand word by word in training requests, short ones by chance, others because mixed_calls joins"
        f" requests of other sets: {', '.join(met)}.\n\n"
        if met
        else ""
    )
    made = f" These are the weights that it calls `{results['weights']}`." if results["weights"] else ""
    sources = "\n".join(f"| {name} | {LICENCES[name]} |" for name in LICENCES if name in checkpoint.data["sources"])
    return f"""# needle-26m

A tool caller of {count_parameters(checkpoint.student) / 1e6:.1f}M parameters: it reads a request and the functions you declare, and answers with schema-valid calls, or with none. English only, one turn.

```
needle serve                     # this model
needle evaluate data=jsonl data.path=yours.jsonl
```

Weights in bfloat16 (`{WEIGHTS}`), Apache-2.0. A pointer student: encoder of six layers that starts from all-MiniLM-L6-v2 (Apache-2.0), decoder of two layers, byte-level vocabulary of
{checkpoint.tokenizer.size:,}. Trained by `make release` in {len(training)} parts: {sum(part["records"] for part in training):,} records in {sum(part["steps"] for part in training):,} steps, {sum(part["seconds"] for part in training) / 3600:.1f} hours on one or two CPU cores.{made}

## How good it is

Constrained decoding, 95% bootstrap intervals over records, percent. {SPLITS[results["split"]]}

{chr(10).join(rows)}

{inside}With changed tools (exact call; the synonyms are ones that training never uses):

{chr(10).join(changed)}

`metrics.json` holds all figures. What the remaining errors are is told in [experiments/005_needle_26m](../../experiments/005_needle_26m/README.md).

## What it learned from

| source | licence |
| --- | --- |
{sources}

SGD is share-alike: whoever must not depend on CC BY-SA data should train without it. Copies with other values, other distractors, and tools under other names were added.

## Limits

- On the Berkeley Function Calling Leaderboard, single turn, it has {100 * leaderboard["non_live_ast"]:.1f}% (non-live AST) and {100 * leaderboard["live_ast"]:.1f}% (live AST) right: requests with several numbers, lists or optional arguments are mostly wrong. It was never trained on, but errors there led to the made-up tools.
- Values that have to be worked out (dates, sums, unit conversions, codes) are mostly wrong; it copies from the request or from the declared members.
- It knows nothing of earlier turns, of the state of a home or an account, or of facts.
- It leans on the names of arguments more than on their descriptions: see SNIPS renamed above.
- `confidence` is the product of its own probabilities; it isn't calibrated.
- Unseen tools cost accuracy (see above); so do languages other than English and requests unlike short commands.

Not for calls that can't be undone without asking back: payments, messages, locks, medication, anything where a wrong or missing call does harm.
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--results", type=Path, required=True, help="what experiments.005_needle_26m.judge wrote")
    parser.add_argument(
        "--weights",
        type=Path,
        help="ship this checkpoint, made of the runs' (see average.py), in place of the last run's",
    )
    parser.add_argument(
        "--leaderboard",
        type=Path,
        default=HERE / "bfcl.json",
        help="what `needle evaluate data=bfcl category=all` wrote of the same weights",
    )
    arguments = parser.parse_args()
    results = {
        "weights": arguments.weights.name if arguments.weights else None,
        "training": [part for run in arguments.runs for part in summaries(run)],
        **json.loads(arguments.results.read_text(encoding="utf-8")),
        "leaderboard": json.loads(arguments.leaderboard.read_text(encoding="utf-8"))["means"],
    }
    checkpoint = load_checkpoint(arguments.weights or arguments.runs[-1])
    checkpoint.student.to(torch.bfloat16)
    save_checkpoint(TARGET, checkpoint)
    write_json(TARGET / "metrics.json", results)
    (TARGET / "README.md").write_text(card(checkpoint, results), encoding="utf-8")
    print(f"{TARGET}: {sum(file.stat().st_size for file in TARGET.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
