"""Judges the released student: every test set, changed tools, the time of a call. See README.md.

python -m experiments.005_needle_26m.judge CHECKPOINT --split test --output results.json --predictions DIR
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from needle.data.augment import Pools, add_strangers
from needle.data.invented.requests import invented
from needle.data.rename import Strength, rename
from needle.data.sources import subset
from needle.engine.decode import Engine, hold
from needle.judging.evaluate import judge, write_predictions
from needle.judging.metrics import interval, summarise
from needle.students.batch import Batch
from needle.students.checkpoint import load_checkpoint
from needle.students.pointer.batch import find_sources
from needle.students.pointer.student import PointerState, PointerStudent
from needle.text.files import write_json
from needle.text.formats import read_records
from needle.text.grammar import Matcher
from needle.text.prompt import render_record
from needle.text.records import Call, Record

SETS = ("snips", "hwu64", "mixed_calls", "sgd", "ha_intents")
CHANGED = ("snips", "hwu64")
JOINT = re.compile(r" and then | and also |, then |; |\. Also, | and ")  # how mixed_calls joins requests
MADE_UP, UNDRAWN = 2000, 999  # records, and a seed that no part of the recipe trains with
NOTHING = Strength(opaque=0, astray=0, other_words=0, recase=0, bare=0, synonym=0, shuffle=0, tests=True)


def records_of(data: Path, name: str, split: str) -> list[Record]:
    return list(read_records(data / name / f"{split}.jsonl.gz"))


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


def elsewhere(engine: Engine, records: Sequence[Record]) -> float:
    """The share of records with a value whose first token stands earlier in the request, too, so that it doesn't tell
    where to copy from."""
    checkpoint, found = engine.checkpoint, 0
    for record in records:
        example = render_record(checkpoint.renderer, checkpoint.codec, record)
        _, aims = find_sources(
            example.query,
            example.target,
            checkpoint.tokenizer.first_tool_label,
            checkpoint.tokenizer.joined(example.query),
        )
        begins = [aim for before, aim in itertools.pairwise([-1, *aims]) if aim >= 0 and aim != before + 1]
        found += any(example.query.index(example.query[aim]) < aim for aim in begins)
    return found / len(records)


class Ensemble(torch.nn.Module):
    """Students of one tokenizer as one: the mean of their probabilities, token by token. Not one student's answers, but
    what more of its kind could give."""

    layout = "split"

    def __init__(self, students: Sequence[PointerStudent]) -> None:
        super().__init__()
        self.students = torch.nn.ModuleList(students)

    def start(self, batch: Batch, cache: Any = None) -> EnsembleState:
        return EnsembleState([student.start(batch) for student in self.students])  # type: ignore[operator]

    def step(self, state: EnsembleState, tokens: Tensor, open_tool: Tensor) -> Tensor:
        scores = [
            student.step(own, tokens, open_tool).float().log_softmax(-1)
            for student, own in zip(self.students, state.states, strict=True)
        ]  # type: ignore[operator]
        return torch.stack(scores).logsumexp(0)


@dataclass
class EnsembleState:
    states: list[PointerState]

    def select(self, rows: Tensor) -> None:
        for state in self.states:
            state.select(rows)


def latency(engine: Engine, records: Sequence[Record], calls: int) -> dict[str, Any]:
    """Milliseconds of one call with five tools that the engine has met before."""
    chosen = subset([record for record in records if len(record.tools) == 5 and record.answers], calls, 0)
    for record in chosen[:20]:
        engine.answer(record.query, record.tools)
    whole, tokens = [], []
    for record in chosen:
        engine.answer(record.query, record.tools)  # its tools are known from here on
        started = time.perf_counter()
        answer = engine.answer(record.query, record.tools)
        whole.append(1000 * (time.perf_counter() - started))
        tokens.append(answer.tokens)
    figures = {
        "calls": len(whole),
        "p50": float(np.percentile(whole, 50)),
        "p95": float(np.percentile(whole, 95)),
        "tokens_p50": float(np.percentile(tokens, 50)),
    }
    return {**figures, "shares": shares(engine, chosen)}


def shares(engine: Engine, records: Sequence[Record]) -> dict[str, float]:
    """What part of the time of these calls each stage takes; `rest` is choosing tokens, moving tensors, Python."""
    student, spent = engine.student, Counter[str]()
    assert isinstance(student, PointerStudent)
    assert engine.grammar is not None
    stages = {
        "tokenising": (engine, "_read"),
        "grammar": (engine.grammar, "matcher"),
        "allowed tokens": (Matcher, "allowed"),
        "encoding the request": (student, "encode_requests"),
        "looking up the tools": (student, "_kept_tools"),
        "pointing keys": (student, "keys"),
        "decoder": (student, "_advance"),
        "output layer": (student, "distribution"),
    }

    def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                spent[stage] += time.perf_counter() - started  # type: ignore[assignment]

        return call

    with ExitStack() as stack:
        for stage, (owner, name) in stages.items():
            stack.enter_context(mock.patch.object(owner, name, timed(stage, getattr(owner, name)), create=True))
        started = time.perf_counter()
        for record in records:
            engine.answer(record.query, record.tools)
        whole = time.perf_counter() - started
    return {
        **{stage: round(spent[stage] / whole, 3) for stage in stages},
        "rest": round(1 - sum(spent.values()) / whole, 3),
    }


def judge_sets(engine: Engine, data: Path, split: str, most: int | None, predictions: Path | None) -> dict[str, Any]:
    """Every set: the metrics, the errors by kind, and the figure without requests that training met."""
    found: dict[str, Any] = {}
    training = [record for name in (*SETS, "seal_tools", "clinc150") for record in records_of(data, name, "train")]
    for name in SETS:
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
    """The sets of `CHANGED` under each change of their tools, and what it costs, record by record."""
    found: dict[str, Any] = {}
    for name in CHANGED:
        records = subset(records_of(data, name, split), most, 0)
        plain = [s.exact for s in judge(engine, records)[1]]
        found[name] = {"as they are": sum(plain) / len(plain)}
        for change, make in changes(data).items():
            exact = [s.exact for s in judge(engine, [make(record) for record in records])[1]]
            lost = interval([(float(b) - float(a), 1.0) for a, b in zip(plain, exact, strict=True)], 0)
            found[name][change] = {"exact_call": sum(exact) / len(exact), "difference": lost}
            print(
                name,
                change,
                f"{100 * sum(exact) / len(exact):.1f}",
                f"difference {100 * lost['value']:.1f} ({100 * lost['low']:.1f} to {100 * lost['high']:.1f})",
                flush=True,
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("NEEDLE_DATA", "data")))
    parser.add_argument(
        "--beside",
        type=Path,
        nargs="*",
        default=[],
        help="further checkpoints: the parts but latency and elsewhere judge the mean of all their probabilities",
    )
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--predictions", type=Path)
    parser.add_argument("--records", type=int, help="at most so many of each set")
    parser.add_argument("--parts", default="sets,changes,pieces,made_up,latency", help="also: elsewhere")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--precision", default="auto", help="as `needle evaluate` and, for latency, `needle serve` have it"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    checkpoint = load_checkpoint(arguments.checkpoint)
    hold(checkpoint.student, arguments.precision)
    engine = Engine(checkpoint)
    if arguments.beside:
        others = [load_checkpoint(folder).student for folder in arguments.beside]
        for other in others:
            hold(other, arguments.precision)
        engine.student = Ensemble([checkpoint.student, *others])  # type: ignore[assignment,list-item]
    out: dict[str, Any] = {"split": arguments.split}
    if "sets" in arguments.parts:
        out["sets"] = judge_sets(engine, arguments.data, arguments.split, arguments.records, arguments.predictions)
    if "changes" in arguments.parts:
        out["changes"] = judge_changes(engine, arguments.data, arguments.split, arguments.records)
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
    if "elsewhere" in arguments.parts:
        asked = {name: records_of(arguments.data, name, arguments.split) for name in SETS} | {
            "made up": invented(MADE_UP, UNDRAWN)
        }
        out["elsewhere"] = {name: elsewhere(engine, records) for name, records in asked.items()}
        print({name: f"{100 * share:.1f}" for name, share in out["elsewhere"].items()}, flush=True)
    if "latency" in arguments.parts:
        alone = load_checkpoint(arguments.checkpoint)
        hold(alone.student, arguments.precision, alone=True)
        engine = Engine(alone)
        out["latency"] = {
            name: latency(engine, records_of(arguments.data, name, arguments.split), 100)
            for name in ("snips", "hwu64", "sgd")
        }
        print(out["latency"])
    if arguments.output:
        write_json(arguments.output, out)


if __name__ == "__main__":
    main()
