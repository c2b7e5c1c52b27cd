"""Records as people type and speakers say them: without capitals, in capitals, without punctuation, with other quotes,
widths, spaces and slips, and politeness behind it.

Values that are copied from the request change with it, so that an answer stays what was said.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from needle.text.records import Call, Record, Tool
from needle.text.validity import call_errors

POLITE = ("please", "thanks", "thank you", "thanks!", ", please", " 🙏", " 👍", "...", "!!", "?", " pls", ", thx")
EDGE = re.compile(
    r"(?<![^\W_])[^\w\s$€£#@/\\+-]+|[^\w\s%/\\]+(?![^\W_])"
)  # punctuation that no word or number goes on behind
QUOTES = (("'", "’"), ('"', "“"))
WIDE = str.maketrans({chr(code): chr(code + 0xFEE0) for code in range(0x21, 0x7F)})


def resurface(record: Record, source: random.Random) -> Record:
    """The record in another surface; itself where its values wouldn't survive that."""
    kind = source.choices(
        ("lower", "upper", "bare", "lower bare", "polite", "slip", "spaces", "quotes", "wide", "title"),
        (26, 12, 14, 26, 7, 6, 3, 3, 1, 2),
    )[0]
    out = record
    for word in kind.split():
        found = changed(out, word, source)
        if found is None:
            return record
        out = found
    return out


def changed(record: Record, kind: str, source: random.Random) -> Record | None:
    """The record with one kind of change; None if a value would be lost by it."""
    if kind == "polite":
        end = source.choice(POLITE)
        return replace(record, query=f"{record.query}{'' if end[0] in ' ,.!?' else ' '}{end}")
    if kind == "slip":
        return _slip(record, source)
    change: Mapping[str, Callable[[str], str]] = {
        "lower": str.lower,
        "upper": str.upper,
        "title": lambda text: re.sub(r"\b[a-z]", lambda found: found[0].upper(), text),
        "bare": lambda text: re.sub(r" {2,}", " ", EDGE.sub("", text)).strip(" "),
        "spaces": lambda text: re.sub(r"(?<=[a-z]) (?=[a-z])", "  ", text),
        "quotes": lambda text: text.replace(*QUOTES[0]).replace(*QUOTES[1]),
        "wide": lambda text: text.translate(WIDE),
    }
    return _with(record, change[kind])


def _with(record: Record, change: Callable[[str], str]) -> Record | None:
    """Changes the request and every value that stands in it; None if a value would be lost."""
    query = change(record.query)
    named = {tool.name: tool for tool in record.tools}
    answers = []
    for call in record.answers:
        arguments = {}
        for name, value in call.arguments.items():
            schema = named[call.name].parameters.get("properties", {}).get(name, {})
            found = _value(value, schema, record.query, query, change)
            if found is None:
                return None
            arguments[name] = found
        answers.append(Call(call.name, arguments))
    if any(call_errors(call, record.tools) for call in answers):
        return None
    return replace(record, query=query, answers=tuple(answers))


def _value(value: Any, schema: Mapping[str, Any], before: str, after: str, change: Callable[[str], str]) -> Any:
    if isinstance(value, list):
        items = [_value(item, schema.get("items") or {}, before, after, change) for item in value]
        return None if any(item is None for item in items) else items
    if isinstance(value, Mapping):
        inner = schema.get("properties", {})
        found = {name: _value(own, inner.get(name, {}), before, after, change) for name, own in value.items()}
        return None if any(own is None for own in found.values()) else found
    if isinstance(value, bool) or value is None or "enum" in schema:
        return value
    if not isinstance(value, str):
        text = str(value)
        return None if text in before and text not in after else value
    if value not in before:
        return None if schema.get("type") == "string" else value
    said = change(value)
    return said if said and said in after else None


def _slip(record: Record, source: random.Random) -> Record | None:
    """One slip of the fingers in a word that is no part of a value or a member."""
    kept = " ".join(_strings([call.arguments for call in record.answers])).lower() + _members(record.tools)
    words = [found for found in re.finditer(r"\b[a-z]{4,}\b", record.query) if found[0] not in kept]
    if not words:
        return None
    word = source.choice(words)
    place = source.randrange(len(word[0]) - 1)
    letters = list(word[0])
    form = source.random()
    if form < 0.4:
        letters[place], letters[place + 1] = letters[place + 1], letters[place]
    elif form < 0.7:
        del letters[place]
    else:
        letters.insert(place, letters[place])
    return replace(record, query=record.query[: word.start()] + "".join(letters) + record.query[word.end() :])


def _strings(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for own in value.values() for text in _strings(own)]
    if isinstance(value, list):
        return [text for own in value for text in _strings(own)]
    return [str(value)]


def _members(tools: tuple[Tool, ...]) -> str:
    return " ".join(tool.declared.lower() for tool in tools if '"enum"' in tool.declared)
