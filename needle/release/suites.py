"""Suites of plain requests for real declarations that no student was trained on, with phrasings that training never
has: what a function requires and the one argument that a suite is about, no corrections.

    python -m needle.release.suites DATA FOLDER

writes each as JSON lines, of the declarations in DATA: chains of three calls, enum members with their enum and without
it, lists of objects and maps, flags that are to be false, number words, odd texts, and required values that nobody
says.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable, Iterator, Mapping
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
MOST = 3  # arguments of a plain request
Make = Callable[[Asker, Tool], "tuple[str, Wish] | None"]


def declarations(data: Path) -> list[tuple[str, Tool]]:
    """Those in the folder of the sets."""
    return read_declarations([str(data / "schemas" / name) for name in ("tools.jsonl.gz", "rest.jsonl.gz")])


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


def _askers(name: str, families: Families) -> Iterator[tuple[Asker, list[Tool]]]:
    """One after another, each with a family to ask of."""
    for number in itertools.count(1):
        asker = Asker(random.Random(f"suite:{name}:{number}"), families, held_out=True, plain=True)
        yield asker, asker.one(families.tools)


def _some(name: str, make: Make, families: Families, count: int) -> Iterator[Record]:
    """Requests for one call of which one argument is of a kind."""
    made = 0
    for asker, family in _askers(name, families):
        tool = asker.one(family)
        found = make(asker, tool)
        if found is None or call_errors(found[1].call(), (tool,)):
            continue
        made += 1
        offered = _offered(asker, family, [tool])
        yield Record(f"{name}-{made}", found[0], offered, (found[1].call(),), name)
        if made == count:
            return


def _offered(asker: Asker, family: list[Tool], used: list[Tool]) -> tuple[Tool, ...]:
    others = {tool.name: tool for tool in [*family, *asker.source.sample(asker.families.every, 4)]}
    names = {tool.name for tool in used}
    picked = [tool for name, tool in others.items() if name not in names]
    offered = [*used, *asker.source.sample(picked, min(len(picked), 3))]
    asker.source.shuffle(offered)
    return tuple(offered)


def _plain(asker: Asker, tool: Tool, given: Mapping[str, Spoken] | None = None) -> Wish | None:
    """A wish of few arguments."""
    wish = asker.wish(tool, given)
    return wish if wish is not None and len(wish.said) <= MOST else None


def _with(asker: Asker, tool: Tool, fits: Callable[[str, Any], Spoken | None]) -> tuple[str, Wish] | None:
    """A request that says an argument for which `fits` has a value."""
    for name, schema in tool.parameters.get("properties", {}).items():
        value = fits(name, schema)
        if value is not None:
            wish = _plain(asker, tool, {name: value})
            return None if wish is None else (asker.finished(asker.sentence(wish)), wish)
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
    made = 0
    for asker, family in _askers("unsaid", families):
        tool = asker.one(family)
        wish = _plain(asker, tool)
        required = [name for name in tool.parameters.get("required", ()) if wish and name in wish.said]
        if wish is None or not required:
            continue
        del wish.said[asker.one(required)]
        made += 1
        query = asker.finished(asker.sentence(wish))
        yield Record(f"unsaid-{made}", query, _offered(asker, family, [tool]), (), "unsaid")
        if made == count:
            return


def _chains(families: Families, count: int) -> Iterator[Record]:
    """Three wishes for three tools of one family or more."""
    made = 0
    for asker, family in _askers("chains", families):
        pool = list({tool.name: tool for tool in [*family, *asker.source.sample(families.every, 3)]}.values())
        tools = asker.source.sample(pool, 3)
        wishes = [wish for tool in tools if (wish := _plain(asker, tool)) is not None]
        calls = tuple(wish.call() for wish in wishes)
        if len(wishes) < 3 or any(call_errors(call, tuple(tools)) for call in calls):
            continue
        texts = [asker.sentence(wish) for wish in wishes]
        first = asker.one(("{}, {}", "{}; {}", "{}, then {}")).format(texts[0], texts[1])
        query = asker.finished(asker.one(asker.draw.said["joints"]).format(first, texts[2]))
        made += 1
        yield Record(f"chains-{made}", query, _offered(asker, family, tools), calls, "chains")
        if made == count:
            return


if __name__ == "__main__":
    target = Path(sys.argv[2])
    for name, records in suites(declarations(Path(sys.argv[1]))).items():
        print(name, write_jsonl(target / f"{name}.jsonl", records))
