"""A value for a JSON Schema, drawn from one random source: what a request about a declared argument may be about."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from needle.data.speech.values import Values
from needle.text.records import Call, Tool
from needle.text.validity import call_errors

OPTIONAL = 0.4  # chance that an optional member is given
NAMED = {
    "email": "email", "phone": "phone", "city": "city", "location": "city", "place": "city", "country": "country",
        "address": "street", "street": "street", "zip": "zip",
    "person": "person", "contact": "person", "recipient": "person", "name": "person", "artist": "artist",
        "song": "song", "playlist": "playlist", "album": "song", "company": "company",
    "date": "day", "day": "day", "when": "day", "time": "clock", "title": "event", "event": "event", "subject": "event",
        "product": "product", "item": "grocery", "food": "food",
    "dish": "food", "file": "filename", "folder": "folder", "path": "folder", "code": "code", "message": "remark",
        "text": "remark", "task": "chore", "reminder": "chore",
}  # fmt: skip

Text = Callable[[Mapping[str, Any], tuple[str, ...], random.Random], str]
"""A text for the schema at a path."""


def value_for(schema: Mapping[str, Any], source: random.Random, text: Text, path: tuple[str, ...] = ()) -> Any:
    """A value that a schema allows, as `text` has its strings."""
    kind = schema.get("type")
    kind = next((one for one in kind if one != "null"), "string") if isinstance(kind, list) else kind
    if "enum" in schema:
        return source.choice([value for value in schema["enum"] if value is not None] or [None])
    if kind == "null":
        return None
    if "anyOf" in schema:
        solid = next(sub for sub in schema["anyOf"] if sub.get("type") != "null")
        return value_for(solid, source, text, path)
    if kind == "boolean":
        return source.random() < 0.5
    if kind in ("integer", "number"):
        return number_for(schema, kind, source)
    if kind == "array" and "prefixItems" in schema:
        return [value_for(sub, source, text, path) for sub in schema["prefixItems"]]
    if kind == "array" and schema.get("items") is False:
        return []
    if kind == "array":
        inner = schema.get("items") or {"type": "string"}
        count = max(schema.get("minItems", 1), source.choice((1, 2, 2, 3)))
        values = [value_for(inner, source, text, path) for _ in range(count)][: schema.get("maxItems", 3)]
        return [value for number, value in enumerate(values) if value not in values[:number]]
    if kind == "object" and not schema.get("properties") and schema.get("additionalProperties"):
        inner = schema["additionalProperties"] if isinstance(schema["additionalProperties"], Mapping) else {}
        return {text({}, path, source): value_for(inner, source, text, path)}
    if kind == "object":
        return members_for(schema, source, text, path)
    return text(schema, path, source)


def members_for(
    schema: Mapping[str, Any],
    source: random.Random,
    text: Text,
    path: tuple[str, ...] = (),
    left_out: str | None = None,
) -> dict[str, Any]:
    """An object's members: the required ones and some of the others, but for the one that is `left_out`."""
    required = schema.get("required", [])
    given = {
        name: sub
        for name, sub in schema.get("properties", {}).items()
        if name != left_out and (name in required or source.random() < OPTIONAL)
    }
    return {name: value_for(sub, source, text, (*path, name)) for name, sub in given.items()}


def number_for(schema: Mapping[str, Any], kind: str, source: random.Random) -> int | float:
    """A number within the bounds of a schema; up to a hundred where it has none."""
    low: float = schema.get("minimum", schema.get("exclusiveMinimum", 1))
    high: float | None = schema.get("maximum", schema.get("exclusiveMaximum"))
    high = high if high is not None else max(low + 1, 100)
    step: float | None = schema.get("multipleOf")
    if step:
        return source.randrange(0, int((high - low) // step) + 1) * step + (-(-low // step) * step)
    if kind == "integer":
        return source.randint(int(low) + ("exclusiveMinimum" in schema), int(high) - ("exclusiveMaximum" in schema))
    return round(source.uniform(low, high), source.choice((0, 1, 2)))


def text_for(schema: Mapping[str, Any], name: str, values: Values, source: random.Random) -> str:
    """Words that an argument's name suggests; where the schema wants a form of its own, the first usual form that
    fits."""
    suggested: str = values.draw(
        next((kind for word, kind in NAMED.items() if word in name.lower()), "phrase"), "", source
    )[1]
    day = f"{source.randint(2026, 2028)}-{source.randint(1, 12):02d}-{source.randint(1, 28):02d}"
    time = f"{source.randint(0, 23):02d}:{source.choice((0, 15, 30, 45)):02d}"
    digits = str(source.randint(10000, 99999))
    others: list[str] = [values.draw(kind, "", source)[1] for kind in ("email", "phone", "code", "city", "person")]
    link, unique = f"https://example.com/{digits}", str(uuid.UUID(int=source.getrandbits(128)))
    wanted = {
        "date": day,
        "time": time,
        "date-time": f"{day}T{time}:00",
        "email": others[0],
        "uri": link,
        "uuid": unique,
    }
    first = wanted.get(str(schema.get("format")), suggested)
    forms = (time, day, f"{day}T{time}:00", f"{day}T{time}:00Z", digits, digits[:3].upper(), link, unique, *others)
    probe = (Tool("probe", "", {"type": "object", "properties": {"value": schema}}),)
    return next((form for form in (first, *forms) if not call_errors(Call("probe", {"value": form}), probe)), first)
