"""Judges a student before its release: every set, families of tools that training never showed, changed requests and
tools, suites of made requests, the time of a call.

python -m needle.release.judge CHECKPOINT --split test --output results.json --predictions DIR
"""

from __future__ import annotations

import argparse
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from needle.data.augment import Pools, add_strangers
from needle.data.invented.requests import invented
from needle.data.rename import Strength, rename
from needle.data.sources import subset
from needle.data.surface import changed
from needle.engine.decode import Engine
from needle.engine.open import open_engine, set_precision
from needle.judging.evaluate import judge, write_predictions
from needle.judging.metrics import interval, summarise
from needle.release.ensemble import Ensemble
from needle.release.latency import latency
from needle.release.suites import declarations, suites
from needle.students.checkpoint import load_checkpoint
from needle.text.files import write_json
from needle.text.formats import read_records
from needle.text.records import Call, Record

SETS = ("snips", "hwu64", "mixed_calls", "sgd", "ha_intents")
FAMILIES = ("skills", "thingpedia")  # validation shows families that training never does; they have no test split
CHANGED = ("snips", "hwu64")
WRITTEN = ("snips", "hwu64", "sgd", "mixed_calls")  # judged in other surfaces
SURFACES = {"in lower case": "lower", "in capitals": "upper", "without punctuation": "bare"}
JOINT = re.compile(r" and then | and also |, then |; |\. Also, | and ")  # how mixed_calls joins requests
MADE_UP, UNDRAWN = 2000, 999  # records, and a seed that no part of the recipe trains with
NOTHING = Strength(opaque=0, astray=0, other_words=0, recase=0, bare=0, synonym=0, shuffle=0, tests=True)


def records_of(data: Path, name: str, split: str) -> list[Record]:
    there = "validation" if name in FAMILIES and split == "test" else split
    return list(read_records(data / name / f"{there}.jsonl.gz"))


def surface(record: Record, kind: str) -> Record:
    """The record in another surface; as it is where a value would be lost."""
    return changed(record, kind, random.Random(0)) or record


def changes(data: Path) -> dict[str, Callable[[Record], Record]]:
    """Each changes a record's tools and nothing else: what is asked and what is right stay."""
    train = [record for name in (*SETS, "seal_tools") for record in records_of(data, name, "train")]
    pools = Pools(train)

    def renamed(record: Record) -> Record:
        new = rename(record, 0, 0, replace(NOTHING, other_words=1))
        names = {tool.name: other.name for tool, other in zip(record.tools, new.tools, strict=True)}
        answers = tuple(replace(call, name=names[call.name]) for call in record.answers)
        return replace(
            record, tools=tuple(replace(tool, name=names[tool.name]) for tool in record.tools), answers=answers
        )

    def turned(record: Record) -> Record:
        tools = list(rename(record, 0, 0, replace(NOTHING, shuffle=1)).tools)
        random.Random(record.id).shuffle(tools)
        return replace(record, tools=tuple(tools))

    def padded(record: Record) -> Record:
        source = random.Random(record.id)
        return add_strangers(record, source.sample(pools.every, 200), 20, pools, source)

    return {
        "renamed": renamed,
        "renamed, arguments too": lambda record: rename(record, 0, 0, replace(NOTHING, other_words=1)),
        "reordered": turned,
        "described in other words": lambda record: rename(record, 0, 0, replace(NOTHING, synonym=1)),
        "without descriptions": lambda record: rename(record, 0, 0, replace(NOTHING, bare=1)),
        "with 20 strangers": padded,
    }


def kind_of_error(record: Record, predicted: Sequence[Call] | None) -> str:
    """One word for what is wrong with an answer."""
    if predicted is None:
        return "no answer"
    # The wrong functions, or too many or few of them.
    gold, mine = Counter(call.name for call in record.answers), Counter(call.name for call in predicted)
    if gold != mine:
        if not record.answers:
            return "false call"
        return (
            "missed call"
            if not predicted
            else "number of calls"
            if sum(gold.values()) != sum(mine.values())
            else "wrong tool"
        )
    # The right functions with other arguments.
    expected = Counter((call.name, key) for call in record.answers for key in call.arguments)
    given = Counter((call.name, key) for call in predicted for key in call.arguments)
    if expected != given:
        return (
            "extra argument"
            if not expected - given
            else "missing argument"
            if not given - expected
            else "other argument"
        )
    # The right arguments with other values.
    values = [str(value) for call in record.answers for value in call.arguments.values()]
    others = [str(value) for call in predicted for value in call.arguments.values()]
    pairs = [(a, b) for a, b in zip(sorted(set(values) - set(others)), sorted(set(others) - set(values)), strict=False)]
    return "longer or shorter value" if pairs and all(a in b or b in a for a, b in pairs) else "other value"


def met(records: Sequence[Record], training: Sequence[Record]) -> set[str]:
    """The ids of records whose request stands, word by word, in a training request: mixed_calls joins requests of other
    sets."""
    texts = "".join(f" {_words(record.query)} \n" for record in training)
    return {record.id for record in records if f" {_words(record.query)} " in texts}


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def pieces(engine: Engine, records: Sequence[Record]) -> dict[str, Any]:
    """Requests for several calls cut at their joints: exact calls of the pieces, of the requests whose pieces are all
    right, and of the same requests asked whole."""
    cut = [(record, JOINT.split(record.query)) for record in records if record.answers]
    cut = [(record, found) for record, found in cut if len(found) == len(record.answers)]
    asked = [
        replace(record, query=text, answers=(call,))
        for record, found in cut
        for text, call in zip(found, record.answers, strict=True)
    ]
    exact = iter([score.exact for score in judge(engine, asked)[1]])
    parts = [[next(exact) for _ in found] for _, found in cut]
    whole = [score.exact for score in judge(engine, [record for record, _ in cut])[1]]
    shares = {
        "pieces": [one for own in parts for one in own],
        "requests": [all(own) for own in parts],
        "asked whole": whole,
    }
    return {
        "records": len(cut),
        **{name: interval([(float(one), 1.0) for one in found], 0) for name, found in shares.items()},
    }


def made_up(engine: Engine) -> dict[str, Any]:
    """Exact calls on made-up requests that training never drew, by the number of calls and, of a single one, of its
    arguments."""
    records = invented(MADE_UP, UNDRAWN)
    scores = judge(engine, records)[1]
    groups: dict[str, list[bool]] = {}
    for record, score in zip(records, scores, strict=True):
        calls = len(record.answers)
        kind = (
            f"one call, {min(len(record.answers[0].arguments), 4)} arguments"
            if calls == 1
            else "several calls"
            if calls
            else "no call"
        )
        for group in ("all", kind):
            groups.setdefault(group, []).append(score.exact)
    return {
        group: {"records": len(own), "exact_call": interval([(float(one), 1.0) for one in own], 0)}
        for group, own in sorted(groups.items())
    }


def judge_suites(engine: Engine, data: Path, most: int | None, predictions: Path | None) -> dict[str, Any]:
    """Every suite: exact calls, the right names in the right order, and, where no call is right, how often one is
    made."""
    found: dict[str, Any] = {}
    for name, records in suites(declarations(data)).items():
        asked = records[:most]
        answers, scores = judge(engine, asked)
        if predictions:
            write_predictions(predictions / f"{name}.jsonl", asked, answers, scores)
        shares = {
            "exact_call": [score.exact for score in scores],
            "names_in_order": [
                answer.calls is not None and [call.name for call in answer.calls] == [call.name for call in one.answers]
                for one, answer in zip(asked, answers, strict=True)
            ],
            "any_call": [bool(answer.calls) for answer in answers],
        }
        cells = {share: interval([(float(one), 1.0) for one in own], 0) for share, own in shares.items()}
        found[name] = {"records": len(asked), **cells}
        print("suite", name, {share: f"{100 * (cell['value'] or 0):.1f}" for share, cell in cells.items()}, flush=True)
    return found


def judge_sets(engine: Engine, data: Path, split: str, most: int | None, predictions: Path | None) -> dict[str, Any]:
    """Every set: the metrics, the errors by kind, and the figure without requests that training met."""
    found: dict[str, Any] = {}
    training = [
        record for name in (*SETS, *FAMILIES, "seal_tools", "clinc150") for record in records_of(data, name, "train")
    ]
    for name in (*SETS, *FAMILIES):
        records = subset(records_of(data, name, split), most, 0)
        answers, scores = judge(engine, records, batch_size=64)
        if predictions:
            write_predictions(predictions / f"{name}.jsonl", records, answers, scores)
        errors = Counter(
            kind_of_error(r, a.calls) for r, a, s in zip(records, answers, scores, strict=True) if not s.exact
        )
        found[name] = {**summarise(scores), "errors": dict(errors.most_common())}
        row = found[name]
        known = met(records, training)
        others = [
            (float(score.exact), 1.0) for record, score in zip(records, scores, strict=True) if record.id not in known
        ]
        row["met"] = {"records": len(known), "exact_call_of_the_others": interval(others, 0)}
        print(
            "   ",
            f"{len(known)} met in training; of the others"
            f" {100 * sum(right for right, _ in others) / max(len(others), 1):.1f}",
        )
        print(
            name,
            f"{100 * row['exact_call']['value']:.1f}",
            "tool",
            f"{100 * row['tool_name']['value']:.1f}",
            "false calls",
            row["false_call_rate"]["value"],
            dict(errors.most_common()),
            flush=True,
        )
        for group, members in row["groups"].items():
            if group in ("seen", "calls"):
                print(
                    "   ",
                    group,
                    {
                        member: f"{100 * own['exact_call']['value']:.1f} of {own['records']}"
                        for member, own in members.items()
                    },
                )
    return found


def judge_changes(engine: Engine, data: Path, split: str, most: int | None) -> dict[str, Any]:
    """The sets of `WRITTEN` in other surfaces and those of `CHANGED` under each change of their tools, and what it
    costs, record by record."""
    found: dict[str, Any] = {}
    surfaces = {name: partial(surface, kind=kind) for name, kind in SURFACES.items()}
    for name in WRITTEN:
        records = subset(records_of(data, name, split), most, 0)
        plain = [s.exact for s in judge(engine, records)[1]]
        found[name] = {"as they are": sum(plain) / len(plain)}
        for change, make in (surfaces | changes(data) if name in CHANGED else surfaces).items():
            exact = [s.exact for s in judge(engine, [make(record) for record in records])[1]]
            lost = interval([(float(b) - float(a), 1.0) for a, b in zip(plain, exact, strict=True)], 0)
            points = {key: 100 * (value or 0.0) for key, value in lost.items()}
            found[name][change] = {"exact_call": sum(exact) / len(exact), "difference": lost}
            print(
                name,
                change,
                f"{100 * sum(exact) / len(exact):.1f}",
                f"difference {points['value']:.1f} ({points['low']:.1f} to {points['high']:.1f})",
                flush=True,
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("NEEDLE_DATA", "data")))
    parser.add_argument(
        "--beside",
        type=Path,
        nargs="*",
        default=[],
        help="further checkpoints: the parts but latency judge the mean of all their probabilities",
    )
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--predictions", type=Path)
    parser.add_argument("--records", type=int, help="at most so many of each set")
    parser.add_argument("--parts", default="sets,changes,suites,pieces,made_up,latency")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--precision", default="auto", help="as `needle evaluate` and, for latency, `needle serve` have it"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    engine = open_engine(arguments.checkpoint, precision=arguments.precision)
    if arguments.beside:
        first, *others = [load_checkpoint(folder) for folder in (arguments.checkpoint, *arguments.beside)]
        for one in (first, *others):
            set_precision(one.student, arguments.precision)
        engine = Engine(replace(first, student=Ensemble([one.student for one in (first, *others)])))
    out: dict[str, Any] = {"split": arguments.split}
    if "sets" in arguments.parts:
        out["sets"] = judge_sets(engine, arguments.data, arguments.split, arguments.records, arguments.predictions)
    if "changes" in arguments.parts:
        out["changes"] = judge_changes(engine, arguments.data, arguments.split, arguments.records)
    if "suites" in arguments.parts:
        out["suites"] = judge_suites(engine, arguments.data, arguments.records, arguments.predictions)
    if "pieces" in arguments.parts:
        out["pieces"] = pieces(
            engine, subset(records_of(arguments.data, "mixed_calls", arguments.split), arguments.records, 0)
        )
        print(out["pieces"], flush=True)
    if "made_up" in arguments.parts:
        out["made_up"] = made_up(engine)
        print(
            {
                group: f"{100 * row['exact_call']['value']:.1f} of {row['records']}"
                for group, row in out["made_up"].items()
            },
            flush=True,
        )
    if "latency" in arguments.parts:
        engine = open_engine(arguments.checkpoint, precision=arguments.precision, alone=True)
        out["latency"] = {
            name: latency(engine, records_of(arguments.data, name, arguments.split), 100)
            for name in ("snips", "hwu64", "sgd")
        }
        print(out["latency"])
    if arguments.output:
        write_json(arguments.output, out)


if __name__ == "__main__":
    main()
