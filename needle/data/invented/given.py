"""Made-up requests about given tools: what a call needs is read off their names, types, members and descriptions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from needle.data.invented.arguments import Part, Said
from needle.data.invented.draw import Draw
from needle.data.speech.numbers import plain
from needle.data.speech.times import clock, spoken
from needle.text.records import Tool
from needle.text.words import WORD

READ = {"type", "description", "enum", "items", "default", "minimum", "maximum"}  # the keys that are understood
EXAMPLES = re.compile(r"\((?:e\.g\.|for example|such as|like),? ([^)]*)\)", re.IGNORECASE)
PLACEHOLDER = re.compile(
    r"yyyy|hh|mm\b|etc|^(city|country|state|string|name|date|time|number|id)\b| for ", re.IGNORECASE
)
RANGE = re.compile(r"(?<![\w.-])(-?\d+(?:\.\d+)?) ?(?:-|–|to) ?(\d+(?:\.\d+)?)(?![\w-])")
DATE_FORMS = {"yyyy-mm-dd": "%Y-%m-%d", "mm/dd/yyyy": "%m/%d/%Y", "dd/mm/yyyy": "%d/%m/%Y", "dd-mm-yyyy": "%d-%m-%Y"}
Drawn = tuple[Any, str]


def parts_of(tool: Tool, draw: Draw) -> list[Part] | None:
    """The arguments that can be said; None where a required one can't."""
    required = tool.parameters.get("required", [])
    parts = []
    for name, schema in tool.parameters.get("properties", {}).items():
        part = _part(name, schema, draw)
        if part:
            part.required = name in required
            parts.append(part)
        elif name in required:
            return None
    return parts


def _part(name: str, schema: Mapping[str, Any], draw: Draw) -> Part | None:
    words = " ".join(word.lower() for word in WORD.findall(name)) or name
    make = _drawn(words, schema, draw)
    if make is None:
        return None
    kind = draw.words["kind_of"].get(_head(words))

    def say() -> Said:
        value, shown = make()
        if isinstance(value, bool):
            return Said(
                draw.one((f"with {words}", words) if value else (f"without {words}", f"no {words}")), {name: value}
            )
        if isinstance(value, str) and kind and _head(words) == words and draw.chance(0.4):
            return Said(f"{draw.words['kinds'][kind][1][0]} {shown}", {name: value}, bare=True)
        return Said(draw.phrase(words, shown), {name: value})

    return Part(words, {name: dict(schema)}, say)


def _head(words: str) -> str:
    """What an argument's name is about: "date" of "date of appointment", "id" of "patient id"."""
    return re.split(r" (?:of|for|to|from|by|in) ", words)[0].split()[-1]


def _drawn(words: str, schema: Mapping[str, Any], draw: Draw) -> Callable[[], Drawn] | None:
    """Draws a value of a declared argument, and how it is said; None for a schema or a form that takes more than is
    read here."""
    about, kind = schema.get("description", ""), schema.get("type")
    if set(schema) - READ or not isinstance(kind, str):
        return None
    if kind == "array":
        return _several(words, schema.get("items"), draw)
    if "enum" in schema:
        members = [str(member) for member in schema["enum"] if isinstance(member, str)]
        return (lambda: _member(members, draw)) if len(members) == len(schema["enum"]) else None
    if kind == "boolean":
        return lambda: (draw.chance(0.6), "")
    if kind in ("integer", "number"):
        return lambda: _number(words, schema, draw)
    return _text(words, about, draw) if kind == "string" else None


def _several(words: str, items: Any, draw: Draw) -> Callable[[], Drawn] | None:
    inner = (
        _drawn(words, items, draw)
        if isinstance(items, Mapping) and items.get("type") not in ("array", "boolean")
        else None
    )
    if inner is None:
        return None

    def say() -> Drawn:
        made = {
            str(value): (value, shown) for value, shown in (inner() for _ in range(draw.source.randint(1, 4)))
        }.values()
        return [value for value, _ in made], draw.listed([shown for _, shown in made])

    return say


def _member(members: Sequence[str], draw: Draw) -> Drawn:
    value = draw.one(members)
    return value, draw.one((value, value.lower().replace("_", " ")))


def _number(words: str, schema: Mapping[str, Any], draw: Draw) -> Drawn:
    about, whole = schema.get("description", ""), schema["type"] == "integer"
    found = RANGE.search(about)
    low, high = (float(found[1]), float(found[2])) if found else (None, None)
    if re.search(r"\byear\b", words) and not re.search("years", words):
        low, high, whole = 1950, 2030, True
    elif re.search(r"\bage\b", words):
        low, high, whole = 1, 95, True
    elif re.search("latitude|longitude", words):
        low, high = -90, 90
    low, high = schema.get("minimum", low), schema.get("maximum", high)
    if re.search(r"0\.\d+ for|decimal|fraction", about):
        percent = draw.source.randint(1, 99)
        return percent / 100, draw.one((f"{percent}%", str(percent / 100)))
    if low is None and high is None:
        value = draw.figure(whole)
    else:
        least = low if low is not None else min(0, high)
        most = high if high is not None else least + draw.one((10, 100, 1000))
        value = (
            draw.source.randint(int(least), int(most))
            if whole
            else plain(round(draw.source.uniform(least, most), draw.one((1, 2, 2, 4))))
        )
        value = min(max(value, least), most)
    return value, str(value) if low == 1950 else draw.written(value)


def _text(words: str, about: str, draw: Draw) -> Callable[[], Drawn] | None:
    # A form that the description asks for: known dates, or nothing.
    for form, code in DATE_FORMS.items():
        if form in about.lower():
            return lambda: _date(code, draw)
    if re.search("yyyy|format|hh:|iso", about, re.IGNORECASE):
        return None
    # Examples in the description are values that fit.
    examples = [
        text.strip(" '\"")
        for found in EXAMPLES.findall(about)
        for text in ([found] if re.search(r"\d", found) else found.split(","))
    ]
    examples = [text for text in examples if text and "," not in text and not PLACEHOLDER.search(text)]
    if examples and draw.chance(0.6):
        return lambda: _quoted(draw.one(examples), draw)
    # What the name is about: a date, a time, a span, any name.
    head = _head(words)
    if head in ("date", "day", "birthday", "deadline"):
        return lambda: _quoted(draw.one(spoken(draw.day())), draw)
    if head == "time":
        return lambda: _quoted(draw.one(clock(draw.source.randint(0, 23), draw.one((0, 15, 30)))), draw)
    if head in ("duration", "period", "timeline", "frame", "term"):
        return lambda: _quoted(
            f"{draw.source.randint(2, 12)} {draw.one(('days', 'weeks', 'months', 'years', 'hours'))}", draw
        )
    if head == "name" and words != "name" and words.split()[0] not in draw.words["kind_of"]:  # of anything
        return lambda: _quoted(
            draw.value(draw.one(("person", "title", "product", "company", "topic", "topic"))).title(), draw
        )
    # A kind of words, or a topic; not where only a special form will do.
    kind = (
        draw.words["kind_of"].get(words)
        or draw.words["kind_of"].get(head)
        or ("code" if head in ("id", "code", "number", "identifier") else "")
    )
    if not kind and re.search(r"\b(date|time|year|url|ip|amount|number)\b", words):
        return None
    return lambda: _quoted(draw.value(kind or "topic"), draw)


def _date(form: str, draw: Draw) -> Drawn:
    day = draw.day()
    return day.strftime(form), draw.one(spoken(day))


def _quoted(value: str, draw: Draw) -> Drawn:
    return value, draw.quoted(value)


def neighbours(tools: Sequence[Tool]) -> Callable[[Tool], list[Tool]]:
    """For a tool those that share a word of its name, where each of the two has a word that the other lacks."""
    words = {tool.name: frozenset(word.lower() for word in WORD.findall(tool.name)) for tool in tools}
    by_word: dict[str, list[Tool]] = {}
    for tool in tools:
        for word in sorted(words[tool.name]):
            by_word.setdefault(word, []).append(tool)

    def near(tool: Tool) -> list[Tool]:
        mine = words[tool.name]
        found = {other.name: other for word in sorted(mine) for other in by_word[word][:200]}
        return [other for other in found.values() if mine - words[other.name] and words[other.name] - mine]

    return near
