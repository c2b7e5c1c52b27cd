"""One change at a time to the released recipe, the same minutes of one core each, on validation. Writes table.md and
results.json.

python -m experiments.e006_ablations.run --minutes 8 --output outputs/006 [--arms "the recipe;tools as declared"]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from experiments.e002_students.run import plan
from needle.cli.app import compose
from needle.cli.train import train_words
from needle.config import settings
from needle.data.sources import subset
from needle.judging.compare import Run
from needle.judging.metrics import METRICS, interval, summarise
from needle.judging.study import Study
from needle.release.judge import CHANGED, SETS, changes, records_of
from needle.text.files import write_json

SHORT = [
    *("hardware.threads=1", "train.batch_size=64", "train.micro_batch=32", "optim.schedule=linear", "optim.ema=0"),
    *("optim.warmup=30", "train.eval_every=100000", "train.save_every=100000", "train.rename=0.6"),
    "data.augment={copies: 2, join: 0.35, strangers: 0.25, rename: 0, shuffle: 0}",
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


def base() -> list[str]:
    """The first part of the released student's recipe, shortened."""
    recipe = settings(compose(["recipe=needle_26m"])).recipe
    return [*recipe.parts[0], *SHORT]


def judged(runs: dict[str, Run]) -> dict[str, Any]:
    """Every set, all of them together, and those under other names."""
    scores = [score for name in SETS for score in runs[name].scores]
    renamed = [score for name in CHANGED for score in runs[f"{name}, renamed"].scores]
    return {
        **{name: summarise(runs[name].scores)["exact_call"] for name in SETS},
        "renamed": interval([score.rates["exact_call"] for score in renamed], 0),
        "all": summarise(scores),
        "exact": {"all": [score.exact for score in scores], "renamed": [score.exact for score in renamed]},
    }


def against(row: dict[str, Any], recipe: dict[str, Any], part: str) -> str:
    """The difference from the recipe in points, paired by record."""
    pairs = zip(row["exact"][part], recipe["exact"][part], strict=True)
    found = interval([(float(mine) - float(theirs), 1.0) for mine, theirs in pairs], 0)
    value, low, high = (100 * (found[name] or 0) for name in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def table(rows: dict[str, dict[str, Any]]) -> str:
    columns = [*SETS, "renamed"]
    shown = ["all", "all, against the recipe", "renamed, against the recipe", "tool name", "false calls"]
    lines = [
        f"| change | records seen | {' | '.join([*columns, *shown])} |",
        "| --- " + "| ---: " * (len(columns) + 6) + "|",
    ]
    recipe = rows.get(next(iter(ARMS)))
    for arm, row in rows.items():
        found, every = row["judged"], row["judged"]["all"]
        cells = [f"{100 * found[name]['value']:.1f}" for name in columns]
        cells.append(f"{100 * every['exact_call']['value']:.1f}")
        cells += [against(found, recipe["judged"], part) if recipe else "–" for part in ("all", "renamed")]
        cells += [f"{100 * every[metric]['value']:.1f}" for metric in ("tool_name", "false_call_rate")]
        lines.append(f"| {arm} | {row['training']['records']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--output", type=Path, default=Path("outputs/006"))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("NEEDLE_DATA", "data")))
    parser.add_argument("--arms", default=";".join(ARMS))
    parser.add_argument("--records", type=int, default=300, help="at most so many of each set")
    arguments = parser.parse_args()
    sets = {name: subset(records_of(arguments.data, name, "validation"), arguments.records, 0) for name in SETS}
    rename = changes(arguments.data)["renamed, arguments too"]
    sets |= {f"{name}, renamed": [rename(record) for record in sets[name]] for name in CHANGED}
    plans = [plan(arm, ARMS[arm], base(), arguments.minutes, arguments.output) for arm in arguments.arms.split(";")]
    results = Study(arguments.output, sets, train_words, arms=plans, common=base()).run()
    rows: dict[str, Any] = {}
    for arm in (own.name for own in plans):
        runs = {test: next(own.runs[0] for own in arms if own.name == arm) for test, arms in results.arms.items()}
        rows[arm] = {"training": dict(next(iter(runs.values())).summary), "judged": judged(runs)}
    figures = ("renamed", *SETS)
    kept = {
        arm: {
            "training": row["training"],
            "judged": {name: row["judged"][name] for name in figures}
            | {name: row["judged"]["all"][name] for name in METRICS},
        }
        for arm, row in rows.items()
    }
    write_json(arguments.output / "results.json", kept)
    (arguments.output / "table.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
