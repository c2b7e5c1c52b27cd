"""What people say, read as values: numbers in words and with units, booleans, times, durations and dates.

`read(text, schema)` gives the value of a typed argument, or raises `ValueError` where the text isn't one. Nothing is
guessed: "180" under a maximum of 100 is 180, and what a relative date means is known only against a moment, `now`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from needle.text.leaves import solid_type
from needle.text.numberwords import number
from needle.text.times import clock, iso_duration, read_date, read_moment

YES = {"true", "yes", "y", "yeah", "yep", "yup", "sure", "ok", "okay", "on", "enable", "enabled", "active", "with", "1"}
NO = {"false", "no", "n", "nope", "nah", "off", "disable", "disabled", "inactive", "without", "none", "never", "0"}
FORMS = ("date", "time", "date-time", "duration")  # formats that people say in other words


def read(text: str, schema: Mapping[str, Any], now: datetime | None = None) -> Any:
    """The value that a text is for a schema of one scalar type. Raises `ValueError`."""
    kind, form = solid_type(schema), schema.get("format")
    if kind in ("integer", "number") or (kind is None and "enum" in schema and _numbers(schema["enum"])):
        return number(text)
    if kind == "boolean":
        return boolean(text)
    if kind == "null":
        if text.strip().lower() not in ("null", "none", "nothing", ""):
            raise ValueError(f"{text!r} isn't null")
        return None
    if form == "date":
        return read_date(text, now).isoformat()
    if form == "time":
        return clock(text)
    if form == "date-time":
        return read_moment(text, now)
    if form == "duration":
        return iso_duration(text)
    return text


def _numbers(values: Any) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values if value is not None)


def boolean(text: str) -> bool:
    """`yes`, `on`, `enabled`, `no thanks`, … Raises `ValueError`."""
    words = re.findall(r"\w+", text.lower().replace("’", "'").replace("n't", " not"))
    if "not" in words or len(words) > 1 and words[0] == "no" and words[1] not in ("thanks", "thank", "please"):
        raise ValueError(f"{text!r} is neither yes nor no")
    said = {word in YES for word in words if word in YES or word in NO}
    if len(said) != 1:
        raise ValueError(f"{text!r} is neither yes nor no")
    return said.pop()


def read_any(text: str, schema: Mapping[str, Any]) -> Any:
    """The value of a text for a union or an untyped argument: the text itself where a string is allowed."""
    branches = schema.get("anyOf", [schema])
    if any(solid_type(branch) == "string" or ("type" not in branch and "enum" not in branch) for branch in branches):
        return text
    numeric = ("integer", "number")
    for branch in sorted(branches, key=lambda branch: solid_type(branch) not in numeric):  # 1 is a number before a yes
        kind = solid_type(branch)
        if kind in ("integer", "number", "boolean", "null") or (kind is None and _numbers(branch.get("enum", ["x"]))):
            try:
                return read(text, branch)
            except ValueError:
                continue
        if "enum" in branch:
            for member in branch["enum"]:
                if text == (member if isinstance(member, str) else json.dumps(member)):
                    return member
    raise ValueError(f"{text!r} is none of the allowed kinds of value")
