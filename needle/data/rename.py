"""The same tools under other names: renamed, described in other words or not at all, their arguments in another order.

A student that has only ever seen `weather_query` learns the name; one that sees `climate_ask`, `WeatherQuery` and
`fn_12` beside the right description has to read. A variant is a function of the tool, its number and the seed, so that
all records of one augmented copy share their tools, which a pointer student then encodes once for all of them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files

from needle.text.records import Call, Record, Tool
from needle.text.validity import call_errors
from needle.text.words import WORD

SYLLABLES = re.findall("..", "babebodadedifafogagokakekilalelomamimonanenopapeporarerisasesotatetovavevizazo")
FORM = re.compile(
    r"yyyy|hh:mm|\bformat\b|percent|%|\bdecimal\b|\bfraction\b|between \d|: [^:]*, [^:]*: ", re.IGNORECASE
)  # of a description that nothing else can stand in for


@dataclass(frozen=True)
class Strength:
    """Chances. Of a name: `opaque` (a random one) and `astray` (words that mean something else), both only if a
    description tells what it means, `other_words`, `recase`; of a description: `bare` (none, if the name tells), and of
    each of its words: `synonym`; of arguments: `shuffle`. `tests` takes the synonyms that training never uses.
    """

    opaque: float = 0.25
    astray: float = 0.2
    other_words: float = 0.3
    recase: float = 0.15
    bare: float = 0.2
    synonym: float = 0.5
    shuffle: float = 0.5
    tests: bool = False


@lru_cache(maxsize=1)
def synonyms() -> Mapping[str, tuple[str, ...]]:
    """Words that tools use, each with others for it; the first of these is for tests alone."""
    lines = files("needle.data").joinpath("synonyms.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split(":", 1) for line in lines if line and not line.startswith("#"))
    return {word: tuple(others.split()) for word, others in pairs}


def rename(record: Record, variant: int, seed: int, strength: Strength | None = None) -> Record:
    """The record with variant `variant` of each of its tools; itself where two tools would share a name."""
    chances = strength or Strength()
    found = [_variant(tool, variant, seed, chances) for tool in record.tools]
    if len({tool.name for tool, _ in found}) < len(found):
        return record
    names = {old.name: (new.name, arguments) for old, (new, arguments) in zip(record.tools, found, strict=True)}
    answers = [
        Call(
            names[call.name][0], {names[call.name][1].get(name, name): value for name, value in call.arguments.items()}
        )
        for call in record.answers
    ]
    tools = tuple(tool for tool, _ in found)
    if any(call_errors(call, tools) for call in answers):
        return record
    meta, lacking = record.meta, record.missing
    if lacking is not None and lacking.name in names:
        name, arguments = names[lacking.name]
        meta = {**meta, "missing": {"name": name, "arguments": [arguments.get(own, own) for own in lacking.arguments]}}
    return replace(record, tools=tools, answers=tuple(answers), meta=meta)


@lru_cache(maxsize=8192)
def _variant(tool: Tool, variant: int, seed: int, chances: Strength) -> tuple[Tool, Mapping[str, str]]:
    """The tool in another form, and its arguments' new names by the old."""
    source = random.Random(f"{seed}:{variant}:{tool.declared}")
    style = source.choice(STYLES)
    name, opaque = _name(tool.name, bool(tool.description), style, source, chances)
    properties = dict(tool.parameters.get("properties", {}))
    names: dict[str, str] = {}
    taken = {_words(old) for old in properties}
    for old in properties:
        new, hidden = _name(old, bool(properties[old].get("description")), style, source, chances)
        if new in names.values() or (new in properties and new != old) or _words(new) in taken - {_words(old)}:
            new, hidden = old, False
        names[old] = new
        text = _described(properties[old].get("description", ""), hidden, source, chances)
        properties[old] = {
            **{key: value for key, value in properties[old].items() if key != "description"},
            **({"description": text} if text else {}),
        }
    order = list(properties)
    if source.random() < chances.shuffle:
        source.shuffle(order)
    parameters = {**tool.parameters, "properties": {names[old]: properties[old] for old in order}}
    if "required" in parameters:
        parameters["required"] = [names[old] for old in parameters["required"]]
    return Tool(name, _described(tool.description, opaque, source, chances), parameters), names


def _words(name: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in WORD.findall(name)) or (name,)


def _described(text: str, needed: bool, source: random.Random, chances: Strength) -> str:
    """A description in other words, or none; one that tells the form of a value stays as it is."""
    if FORM.search(text):
        return text
    return (
        ""
        if not needed and source.random() < chances.bare
        else other_words(text, chances.synonym, source, chances.tests)
    )


def _name(name: str, described: bool, style: str, source: random.Random, chances: Strength) -> tuple[str, bool]:
    """A name for the same thing, and whether it tells nothing by itself."""
    draw = source.random()
    if described and draw < chances.opaque:
        return styled(
            [
                "".join(source.choice(SYLLABLES) for _ in range(source.randint(1, 3)))
                for _ in range(source.randint(1, 2))
            ],
            style,
        ), True
    if described and draw < chances.opaque + chances.astray:
        return styled(source.sample(_plain_words(), source.randint(1, 2)), style), True
    words = WORD.findall(name)
    if not words:
        return name, False
    if draw < chances.opaque + chances.astray + chances.other_words:
        return styled(
            WORD.findall(other_words(" ".join(words).lower(), 1.0 if chances.tests else 0.7, source, chances.tests)),
            style,
        ), False
    return (styled(words, style), False) if source.random() < chances.recase else (name, False)


@lru_cache(maxsize=1)
def _plain_words() -> tuple[str, ...]:
    """Words that tools use, but for those that are kept for tests."""
    kept = {others[0] for others in synonyms().values()}
    return tuple(
        sorted(
            {
                word
                for key, others in synonyms().items()
                for word in (key, *others[1:])
                if "-" not in word and word not in kept
            }
        )
    )


STYLES = ("snake", "camel", "pascal", "kebab")


def styled(words: list[str], style: str) -> str:
    lower = [word.lower() for word in words]
    if style in ("snake", "kebab"):
        return ("_" if style == "snake" else "-").join(lower)
    joined = "".join(word.capitalize() for word in lower)
    return joined if style == "pascal" else joined[:1].lower() + joined[1:]


def other_words(text: str, chance: float, source: random.Random, tests: bool = False) -> str:
    """`text` with some of its words replaced; `tests` uses the synonyms that training never does, the others else."""

    def other(found: re.Match[str]) -> str:
        word = found[0]
        choices = synonyms().get(word.lower(), ())
        choices = choices[:1] if tests else choices[1:]
        if not choices or source.random() >= chance:
            return word
        new = source.choice(choices).replace("-", " ")
        return new.capitalize() if word[0].isupper() else new

    return re.sub(r"[A-Za-z]+", other, text)
