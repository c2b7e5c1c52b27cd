"""Tools that are too long to be read: their descriptions are cut at a sentence, and that is said."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from needle.text.records import Tool

SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
NESTED = ("properties",)  # schemas by name
ONE = ("items", "additionalProperties")
MANY = ("anyOf", "prefixItems")


def shortened(tool: Tool, fits: Callable[[Tool], bool]) -> tuple[Tool, str] | None:
    """The tool with as much of its descriptions as fits, and what was done; None if its names alone are too long."""
    for smaller, how in _ways(tool):
        if fits(smaller):
            return smaller, how
    return None


def _ways(tool: Tool) -> Iterator[tuple[Tool, str]]:
    """From a little less to nothing but names."""
    brief = _cut(tool.parameters, 1)
    sentences = SENTENCE.split(tool.description.strip())
    size = len(sentences) * 3 // 4
    while size:
        kept = " ".join(sentences[:size])
        yield Tool(tool.name, kept, tool.parameters), f"described in {size} of {len(sentences)} sentences"
        size = size // 2
    first = sentences[0]
    yield Tool(tool.name, first, brief), "described in the first sentence, its arguments too"
    yield Tool(tool.name, first, _cut(tool.parameters, 0)), "described in the first sentence, its arguments not at all"
    yield Tool(tool.name, "", _cut(tool.parameters, 0)), "not described"


def _cut(schema: Mapping[str, Any], sentences: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "description":
            text = " ".join(SENTENCE.split(value.strip())[:sentences])
            out |= {"description": text} if text else {}
        elif key in NESTED:
            out[key] = {name: _cut(sub, sentences) for name, sub in value.items()}
        elif key in ONE and isinstance(value, Mapping):
            out[key] = _cut(value, sentences)
        elif key in MANY:
            out[key] = [_cut(sub, sentences) for sub in value]
        else:
            out[key] = value
    return out
