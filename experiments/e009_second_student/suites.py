"""Suites of made requests for real declarations that no student was trained on, with phrasings that training never has.

    python -m experiments.e009_second_student.suites FOLDER

writes each as JSON lines: chains of three calls, enum members with their enum and without it, lists of objects and
maps, flags that are to be false, number words, odd texts, and required values that nobody says.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from needle.data.declared.requests import Asker, Families, Wish
from needle.data.declared.values import Spoken
from needle.data.sources import read_declarations
from needle.data.speech.numbers import in_words
from needle.text.leaves import solid_type
from needle.text.records import Record, Tool, write_jsonl
from needle.text.validity import call_errors

SIZE = 100
CHAINS = 200
Make = Callable[[Asker, Tool], "tuple[str, Wish] | None"]


def declarations() -> list[tuple[str, Tool]]:
    folder = Path(os.environ.get("NEEDLE_DATA", "data")) / "schemas"
    return read_declarations([str(folder / "tools.jsonl.gz"), str(folder / "rest.jsonl.gz")])


def suites(tools: list[tuple[str, Tool]]) -> dict[str, list[Record]]:
    families = Families.of(tools, held_out=True)
    found = {
        name: list(_some(name, make, families, SIZE))
        for name, make in (
            ("enums", _member), ("groups", _group), ("flags", _flag), ("words", _words), ("odd", _odd),
        )
    }  # fmt: skip
    found["enums_as_strings"] = [_without_enums(record) for record in found["enums"]]
    found["unsaid"] = list(_unsaid(families, SIZE))
    found["chains"] = list(_chains(families, CHAINS))
    return found


def _some(name: str, make: Make, families: Families, count: int) -> Iterator[Record]:
    """Requests for one call of which one argument is of a kind."""
    made, number = 0, 0
    while made < count:
        number += 1
        source = random.Random(f"suite:{name}:{number}")
        asker = Asker(source, families, held_out=True)
        family = source.choice(families.tools)
        tool = source.choice(family)
        found = make(asker, tool)
        if found is None:
            continue
        query, wish = found
        call = wish.call()
        if call_errors(call, (tool,)):
            continue
        made += 1
        yield Record(f"{name}-{made}", query, _offered(source, families, family, [tool]), (call,), name)


def _offered(source: random.Random, families: Families, family: list[Tool], used: list[Tool]) -> tuple[Tool, ...]:
    others = {tool.name: tool for tool in [*family, *source.sample(families.every, 4)]}
    names = {tool.name for tool in used}
    picked = [tool for name, tool in others.items() if name not in names]
    offered = [*used, *source.sample(picked, min(len(picked), 3))]
    source.shuffle(offered)
    return tuple(offered)


def _with(asker: Asker, tool: Tool, fits: Callable[[str, Any], Spoken | None]) -> tuple[str, Wish] | None:
    """A request that says an argument for which `fits` has a value."""
    for name, schema in tool.parameters.get("properties", {}).items():
        value = fits(name, schema)
        if value is not None:
            wish = asker.wish(tool, {name: value})
            return None if wish is None else (asker.finished(asker.sentence(wish), wish), wish)
    return None


def _member(asker: Asker, tool: Tool) -> tuple[str, Wish] | None:
    def fits(name: str, schema: Any) -> Spoken | None:
        members = schema.get("enum", ())
        if solid_type(schema) != "string" or len(members) < 2:
            return None
        value = asker.one(members)
        return Spoken(value, value, "member") if isinstance(value, str) and value else None

    return _with(asker, tool, fits)


def _group(asker: Asker, tool: Tool) -> tuple[str, Wish] | None:
    def fits(name: str, schema: Any) -> Spoken | None:
        if solid_type(schema) not in ("array", "object"):
            return None
        value = asker.draw.of(name, schema)
        return value if value is not None and value.kind in ("group", "groups") else None

    return _with(asker, tool, fits)


def _flag(asker: Asker, tool: Tool) -> tuple[str, Wish] | None:
    return _with(asker, tool, lambda name, own: Spoken("", False, "flag") if solid_type(own) == "boolean" else None)


def _words(asker: Asker, tool: Tool) -> tuple[str, Wish] | None:
    def fits(name: str, schema: Any) -> Spoken | None:
        if solid_type(schema) not in ("integer", "number") or "enum" in schema:
            return None
        value = asker.source.randint(2, 99)
        return Spoken(in_words(value), value, "number")

    return _with(asker, tool, fits)


def _odd(asker: Asker, tool: Tool) -> tuple[str, Wish] | None:
    def fits(name: str, schema: Any) -> Spoken | None:
        if solid_type(schema) != "string" or set(schema) & {"enum", "format", "pattern"}:
            return None
        value = asker.draw.of(name, {"type": "string"})
        return value if value is not None and value.kind == "odd" else None

    return _with(asker, tool, fits)


def _without_enums(record: Record) -> Record:
    """The same request for the same tools, whose enums are plain strings."""
    tools = []
    for tool in record.tools:
        properties = {
            name: {key: value for key, value in schema.items() if key != "enum"}
            if solid_type(schema) == "string"
            else schema
            for name, schema in tool.parameters.get("properties", {}).items()
        }
        tools.append(Tool(tool.name, tool.description, {**tool.parameters, "properties": properties}))
    return replace(record, tools=tuple(tools), source="enums_as_strings")


def _unsaid(families: Families, count: int) -> Iterator[Record]:
    made, number = 0, 0
    while made < count:
        number += 1
        source = random.Random(f"suite:unsaid:{number}")
        asker = Asker(source, families, held_out=True)
        family = source.choice(families.tools)
        tool = source.choice(family)
        wish = asker.wish(tool)
        required = [name for name in tool.parameters.get("required", ()) if wish and name in wish.said]
        if wish is None or not required:
            continue
        del wish.said[source.choice(required)]
        made += 1
        query = asker.finished(asker.sentence(wish), wish)
        yield Record(f"unsaid-{made}", query, _offered(source, families, family, [tool]), (), "unsaid")


def _chains(families: Families, count: int) -> Iterator[Record]:
    """Three wishes for three tools of one family or more."""
    made, number = 0, 0
    while made < count:
        number += 1
        source = random.Random(f"suite:chains:{number}")
        asker = Asker(source, families, held_out=True)
        family = source.choice(families.tools)
        pool = list({tool.name: tool for tool in [*family, *source.sample(families.every, 3)]}.values())
        tools = source.sample(pool, 3)
        wishes = [wish for tool in tools if (wish := asker.wish(tool)) is not None]
        if len(wishes) < 3:
            continue
        texts = [asker.sentence(wish) for wish in wishes]
        first = source.choice(("{}, {}", "{}; {}", "{}, then {}")).format(texts[0], texts[1])
        query = asker.finished(asker.one(asker.draw.said["joints"]).format(first, texts[2]), wishes[0])
        calls = tuple(wish.call() for wish in wishes)
        if any(call_errors(call, tuple(tools)) for call in calls):
            continue
        made += 1
        yield Record(f"chains-{made}", query, _offered(source, families, family, tools), calls, "chains")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    for name, records in suites(declarations()).items():
        print(name, write_jsonl(target / f"{name}.jsonl", records))
