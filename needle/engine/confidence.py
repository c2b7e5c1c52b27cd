"""How sure an answer is: what was noticed while it was decoded, as features, and a model that makes them a probability.

The model is a logistic regression and a monotone map, fitted by `needle.judging.calibrate` on tools that the student
never saw, and kept beside the weights (`confidence.json`). Without it, `confidence` is the raw product.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from needle.text.files import write_json
from needle.text.folder import CheckpointError
from needle.text.leaves import leaves
from needle.text.records import Call, Missing, Tool
from needle.text.tokenizer import TextTokenizer
from needle.text.words import WORD

FILE = "confidence.json"
FORMAT = 1
LOW = 0.8  # below it an answer says what is in doubt
MOST_REASONS = 5
FLOOR = -12.0  # of a log-probability, or of the distance between two
FIRST, CALL, ARGUMENT, VALUE = range(4)  # what a decision was about; FIRST is whether anything is called, and what
NEGATION = re.compile(r"\b(?:don'?t|do not|never|no need|not|isn'?t|cancel that|forget it|without)\b", re.IGNORECASE)
WORDS = re.compile(r"\w+")
PLAIN = frozenset(
    "a an and are as at be by can could do does for from hey i in is it its like me my need of ok on or".split()  # noqa: SIM905
    + "please s that the this to want what will with would you your".split()  # noqa: SIM905
)
NAMES = (
    "raw", "first", "first margin", "call", "argument", "value", "margin", "doubt", "feasible", "none", "several",
    "tools", "arguments", "unread", "unheard", "unsaid", "negated", "length", "raw of none", "raw of several",
    "several doubt",
)  # fmt: skip


@dataclass(frozen=True)
class Decision:
    """A token that was chosen among several: what it was about, the open call and argument (-1 for none), the
    logarithms of its probability and of the next likely one's, and of how likely all allowed tokens are together."""

    kind: int
    call: int
    argument: int
    token: int
    chosen: float
    other: int  # the next likely token
    next: float
    feasible: float


@dataclass(frozen=True)
class Noticed:
    """What the features of one answer are made of."""

    decisions: Sequence[Decision]
    request: str
    tools: Sequence[Tool]
    calls: Sequence[Call]
    missing: Sequence[Missing]

    def features(self) -> NDArray[np.float64]:
        """[len(NAMES)]"""
        made = self.decisions
        chosen = [max(one.chosen, FLOOR) for one in made]

        def least(kind: int) -> float:
            return min((own for own, one in zip(chosen, made, strict=True) if one.kind == kind), default=0.0)

        raw = max(sum(chosen), 3 * FLOOR)
        doubt = sum(1 - math.exp(own) for own in chosen)
        margins = [min(one.chosen - one.next, -FLOOR) for one in made]
        none, several = float(not self.calls), float(len(self.calls) > 1)
        return np.array([
            raw,
            least(FIRST),
            next((own for own, one in zip(margins, made, strict=True) if one.kind == FIRST), -FLOOR),
            least(CALL),
            least(ARGUMENT),
            least(VALUE),
            min(margins, default=-FLOOR),
            doubt,
            min((max(one.feasible, FLOOR) for one in made), default=0.0),
            none,
            several,
            math.log(max(len(self.tools), 1)),
            math.log1p(sum(len(call.arguments) for call in self.calls)),
            len(self.unread()) / max(len(WORDS.findall(self.request)), 1),
            min(len(self.unheard()), 3),
            float(bool(self.missing)),
            float(bool(NEGATION.search(self.request))),
            math.log1p(len(self.request)),
            raw * none,
            raw * several,
            doubt * several,
        ])  # fmt: skip

    def unheard(self) -> list[str]:
        """The arguments whose texts neither stand in the request nor are declared."""
        said, found = self.request.lower(), []
        for call in self.calls:
            declared = next((tool.key for tool in self.tools if tool.name == call.name), "").lower()
            for name, value in call.arguments.items():
                own = [text.lower() for text in _texts(value)]
                if any(text not in said and json.dumps(text) not in declared for text in own):
                    found.append(name)
        return found

    def unread(self) -> list[str]:
        """Words of the request that no value was taken from and that name nothing that was called."""
        inside = np.zeros(len(self.request) + 1, bool)
        known = set(PLAIN)
        for call in self.calls:
            for start, end in (place for places in call.sources.values() for place in places):
                inside[start:end] = True
            for text in (call.name, *call.arguments, *_texts(call.arguments)):
                known |= {word.lower() for word in WORD.findall(text)}
        return [
            found[0]
            for found in WORDS.finditer(self.request)
            if not inside[found.start()] and found[0].lower() not in known
        ]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for own in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(own)


@dataclass(frozen=True)
class Map:
    """A monotone map, linear between its points."""

    x: Sequence[float]
    y: Sequence[float]

    def __call__(self, value: float) -> float:
        return float(np.interp(value, self.x, self.y))

    def to_json(self) -> dict[str, Any]:
        return {"x": list(self.x), "y": list(self.y)}


@dataclass(frozen=True)
class Calibration:
    """From features to the probability that the whole answer is right, and from the raw product of a call and of an
    argument to theirs. `facts` says what it was fitted on."""

    mean: Sequence[float]
    scale: Sequence[float]
    weights: Sequence[float]
    bias: float
    whole: Map
    call: Map
    argument: Map
    facts: Mapping[str, Any]

    def score(self, own: NDArray[np.float64]) -> float:
        """Log-odds before the monotone map."""
        return float((own - self.mean) / self.scale @ np.asarray(self.weights) + self.bias)

    def __call__(self, own: NDArray[np.float64]) -> float:
        return self.whole(self.score(own))

    def to_json(self) -> dict[str, Any]:
        parts = {name: list(getattr(self, name)) for name in ("mean", "scale", "weights")}
        maps = {name: getattr(self, name).to_json() for name in ("whole", "call", "argument")}
        return {"features": list(NAMES), **parts, "bias": self.bias, **maps, "facts": dict(self.facts)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Calibration:
        if tuple(row["features"]) != NAMES:
            raise ValueError("it was made for other features")
        maps = {name: Map(row[name]["x"], row[name]["y"]) for name in ("whole", "call", "argument")}
        return cls(
            row["mean"], row["scale"], row["weights"], row["bias"], maps["whole"], maps["call"], maps["argument"],
            row["facts"],
        )  # fmt: skip


@dataclass(frozen=True)
class Sure:
    """How sure an answer is, each of its calls, and each of their arguments, and what is in doubt."""

    whole: float
    calls: tuple[float, ...]
    arguments: tuple[Mapping[str, float], ...]
    reasons: tuple[str, ...]


def how_sure(
    noticed: Noticed, raw: float, begun: Sequence[int], tokenizer: TextTokenizer, calibration: Calibration | None
) -> Sure:
    """`raw` is the product of probabilities, and `begun` says for each call which one of those that were begun it is:
    one that lacks a value isn't among the calls."""
    whole = raw if calibration is None else calibration(noticed.features())
    if len(begun) != len(noticed.calls):  # a codec without labels: nobody knows which token belongs to which call
        same = tuple(dict.fromkeys(call.arguments, whole) for call in noticed.calls)
        return Sure(whole, (whole,) * len(noticed.calls), same, ())
    tools = {tool.name: tool for tool in noticed.tools}
    calls, arguments = [], []
    for number, call in zip(begun, noticed.calls, strict=True):
        own = [one for one in noticed.decisions if one.call == number]
        product = math.exp(sum(one.chosen for one in own))
        calls.append(product if calibration is None else calibration.call(product))
        known, parts = leaves(tools[call.name]), dict.fromkeys(call.arguments, 0.0)
        for one in own:
            name = known[one.argument].path[0] if 0 <= one.argument < len(known) else None
            if name in parts:
                parts[str(name)] += one.chosen
        products = {name: math.exp(part) for name, part in parts.items()}
        arguments.append(
            products if calibration is None else {name: calibration.argument(own) for name, own in products.items()}
        )
    reasons = _reasons(noticed, begun, tokenizer) if whole < LOW else ()
    return Sure(whole, tuple(calls), tuple(arguments), reasons)


def _reasons(noticed: Noticed, begun: Sequence[int], tokenizer: TextTokenizer) -> tuple[str, ...]:
    """What is in doubt, the worst first, then what is noticed in the request."""
    found = []
    of = dict(zip(begun, noticed.calls, strict=True))
    tools = {tool.name: tool for tool in noticed.tools}
    for one in sorted(noticed.decisions, key=lambda one: one.chosen):
        if one.chosen > math.log(LOW):
            break
        share, call = f"{math.exp(one.next):.2f}", of.get(one.call)
        if one.kind in (FIRST, CALL):
            if tokenizer.is_tool_label(one.other):
                close = noticed.tools[one.other - tokenizer.first_tool_label].name
                found.append(f"{'another' if noticed.calls else 'a'} tool is close: {close} {share}")
            elif one.other == tokenizer.eos:
                found.append(f"{'no call' if one.kind == FIRST else 'an end'} is close: {share}")
            elif call is not None and tokenizer.is_argument_label(one.other):
                number = one.other - tokenizer.first_argument_label
                found.append(f"another argument is close: {_argument(tools[call.name], number)} {share}")
        elif call is not None and one.argument >= 0:
            what = "argument" if one.kind == ARGUMENT else "value"
            found.append(f"{what} in doubt: {_argument(tools[call.name], one.argument)}")
    found += [f"unsaid: {name}" for one in noticed.missing for name in one.arguments]
    found += [f"value not in the request: {name}" for name in noticed.unheard()]
    negated = NEGATION.search(noticed.request)
    if negated:
        found.append(f"negation: {negated[0]}")
    unread = noticed.unread()
    if noticed.calls and 2 * len(unread) > len(WORDS.findall(noticed.request)):
        found.append(f"unread: {' '.join(unread[:8])}")
    return tuple(dict.fromkeys(found))[:MOST_REASONS]


def _argument(tool: Tool, number: int) -> str:
    known = leaves(tool)
    return known[number].name if number < len(known) else "?"


def save_calibrations(folder: Path, weights: str, found: Mapping[str, Calibration]) -> None:
    """Those of a model with these weights, by the precision in which it answers."""
    rows = {precision: one.to_json() for precision, one in found.items()}
    write_json(folder / FILE, {"format": FORMAT, "weights": weights, "precisions": rows})


def load_calibration(folder: Path | None, weights: str, precision: str) -> Calibration | None:
    """That of a precision, or of another one where it has none; None where there is none of these weights. Raises as
    `load_calibrations` does."""
    known = load_calibrations(folder, weights)
    return known.get(precision) or next(iter(known.values()), None)


def load_calibrations(folder: Path | None, weights: str) -> dict[str, Calibration]:
    """Those that are kept of a model with these weights, by precision.

    Raises:
        CheckpointError: the file is broken, or of another version.
    """
    file = folder / FILE if folder else None
    if file is None or not file.is_file():
        return {}
    try:
        row = json.loads(file.read_text(encoding="utf-8"))
        if row["format"] != FORMAT:
            raise ValueError(f"format {row['format']}; this version reads {FORMAT}")
        if row["weights"] != weights:
            return {}
        return {precision: Calibration.from_json(own) for precision, own in row["precisions"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file} can't be used: {error}; make it again with needle calibrate checkpoint={folder}"
        ) from error
