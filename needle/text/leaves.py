"""What an answer is asked for: the values that a tool's arguments are made of, each with a label of its own.

Members of objects, also of objects in lists and maps, are asked for one by one (`address.street`, `items.name`), so
that every label stands for one value. Where a tool would take more labels than there are, the innermost objects are
spelled as JSON.

| form | schema | written as |
| --- | --- | --- |
| `text` | string, and an enum of strings | the text |
| `number` | integer, number, and an enum of them | the number, as the request has it |
| `literal` | boolean, null, other enums | JSON |
| `any` | several types, or none | the text, if it reads as the value; else as JSON |
| `list` | list of the former, a tuple too | `<item>` before each |
| `items` | list of objects, or of such lists | the label again for each; an object's members behind it |
| `entries` | a map | the label again for each; the key, then the value like an item, or its members |
| `json` | what is spelled for lack of labels | JSON |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from needle.text.records import Tool
from needle.text.tokenizer import ARGUMENT_LABELS
from needle.text.validity import per_tool

ITEM, ENTRY = 0, 1  # steps of a path beside names: into a list, and into a map
Step = str | int
Path = tuple[Step, ...]
MAX_LEVELS = 6  # objects in objects that are asked for member by member


@dataclass(frozen=True)
class Leaf:
    """One value that has a label. `path` leads to it from the call's arguments."""

    path: Path
    schema: Mapping[str, Any]
    required: bool
    form: str

    @property
    def name(self) -> str:
        return ".".join(step for step in self.path if isinstance(step, str)) or "*"


@per_tool
def leaves(tool: Tool) -> tuple[Leaf, ...]:
    """The values of a tool's arguments by name: declared in any order, a tool reads the same."""
    found: list[Leaf] = []
    for levels in range(MAX_LEVELS, -1, -1):
        walk = _walk if form_of(tool.parameters) == "entries" else _members  # arguments of any name are a map
        found = list(walk(tool.parameters, (), True, levels))
        if len(found) <= ARGUMENT_LABELS:
            break
    return tuple(found)


@per_tool
def numbers(tool: Tool) -> Mapping[Path, int]:
    """The number of each leaf's label, by its path."""
    return {leaf.path: number for number, leaf in enumerate(leaves(tool))}


def by_name(schema: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The properties of an object by name."""
    return sorted(schema.get("properties", {}).items())


def _members(schema: Mapping[str, Any], path: Path, required: bool, levels: int) -> Iterator[Leaf]:
    for name, sub in by_name(schema):
        yield from _walk(sub, (*path, name), required and name in schema.get("required", ()), levels)


def _walk(schema: Mapping[str, Any], path: Path, required: bool, levels: int) -> Iterator[Leaf]:
    form = form_of(schema)
    inner = _inside(schema, form)
    if inner is None:
        yield Leaf(path, schema, required, form)
    elif not levels:
        yield Leaf(path, schema, required, "json")
    else:
        own, step = inner
        if form != "object":
            yield Leaf(path, schema, required, form)
        yield from _members(own, (*path, *step), form != "any" and (required or form != "object"), levels - 1)


def _inside(schema: Mapping[str, Any], form: str) -> tuple[Mapping[str, Any], Path] | None:
    """The object whose members have labels of their own, and the steps to it."""
    if form == "object":
        return schema, ()
    if form == "items" and form_of(schema["items"]) == "object":
        return schema["items"], (ITEM,)
    if form == "entries" and form_of(value_schema(schema)) == "object":
        return value_schema(schema), (ENTRY,)
    if form == "any":
        for branch in schema.get("anyOf", ()):
            own = form_of(branch)
            if own in ("object", "items"):
                return _inside(branch, own)
    return None


def form_of(schema: Mapping[str, Any]) -> str:
    """How a value is written, one of the forms above; `object` for one that is written member by member."""
    if "anyOf" in schema:
        return "any"
    if "enum" in schema:
        values = [value for value in schema["enum"] if value is not None]
        if values and all(isinstance(value, str) for value in values):
            return "text"
        numbers = values and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        return "number" if numbers else "literal"
    kind = solid_type(schema)
    if kind == "array":
        compound = isinstance(schema.get("items"), Mapping) and form_of(schema["items"]) in ("object", "list")
        return "items" if compound and "prefixItems" not in schema else "list"
    if kind == "object":
        if schema.get("properties"):
            return "object"
        return "entries" if schema.get("additionalProperties") else "literal"
    return {"string": "text", "integer": "number", "number": "number", "boolean": "literal", "null": "literal"}.get(
        kind or "", "any"
    )


def solid_type(schema: Mapping[str, Any]) -> str | None:
    kind = schema.get("type")
    return kind[0] if isinstance(kind, list) else kind


def nullable(schema: Mapping[str, Any]) -> bool:
    """Whether null is one of several things that a value may be."""
    kind = schema.get("type")
    if "anyOf" in schema:
        return any(nullable(branch) or branch.get("type") == "null" for branch in schema["anyOf"])
    return (isinstance(kind, list) and "null" in kind) or (kind is None and None in schema.get("enum", [None]))


def value_schema(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the values of a map are."""
    extra = schema.get("additionalProperties")
    return extra if isinstance(extra, Mapping) else {}


def item_schema(schema: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    """What the item at a place of a list is."""
    prefix = schema.get("prefixItems", ())
    if index < len(prefix):
        return prefix[index]  # type: ignore[no-any-return]
    items = schema.get("items")
    return items if isinstance(items, Mapping) else {}


def branch_of(schema: Mapping[str, Any], *forms: str) -> Mapping[str, Any] | None:
    """The branch of a union that is written in one of these forms."""
    return next((branch for branch in schema.get("anyOf", ()) if form_of(branch) in forms), None)


def choices(schema: Mapping[str, Any]) -> list[Any]:
    """The enum's members of a value, or of what a list or map is made of."""
    if "enum" in schema:
        return list(schema["enum"])
    inner = {"array": "items", "object": "additionalProperties"}.get(solid_type(schema) or "", "")
    return choices(schema[inner]) if isinstance(schema.get(inner), Mapping) else []
