"""Whether a call is valid for its tool, formats included, and whether a schema can tell."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from datetime import date, datetime, time
from ipaddress import ip_address
from threading import Lock
from typing import Any, TypeVar

import jsonschema_rs
from cachetools import LRUCache, cached

from needle.text.records import Call, Tool, ToolSchemaError

CACHED_CHARACTERS = 20_000_000  # of the tools of which something is kept
BACKTRACKS = 100_000  # of a pattern that needs them; one that needs more doesn't match
V = TypeVar("V")


def per_tool(function: Callable[[Tool], V]) -> Callable[[Tool], V]:
    """Keeps what a function made of the tools used last, of `CACHED_CHARACTERS` altogether. Safe among threads."""
    cache: LRUCache[Any, tuple[V, int]] = LRUCache(CACHED_CHARACTERS, getsizeof=lambda pair: pair[1])

    @cached(cache, lock=Lock())
    def sized(tool: Tool) -> tuple[V, int]:
        return function(tool), len(tool.declared)

    return functools.wraps(function)(lambda tool: sized(tool)[0])


def check_tool(tool: Tool, pointer: str) -> None:
    """Raises `ToolSchemaError` for a schema that no validator takes."""
    try:
        _validator(tool)
    except ValueError as error:
        path = "".join(f"/{part}" for part in getattr(error, "instance_path", []) or [])
        raise ToolSchemaError(pointer + path, f"not a valid JSON Schema: {str(error).splitlines()[0]}") from error


def call_errors(call: Call, tools: tuple[Tool, ...]) -> list[str]:
    """Everything that is wrong with a call under the declared tools; empty when it is valid."""
    tool = next((tool for tool in tools if tool.name == call.name), None)
    if tool is None:
        return [f"no tool is called '{call.name}'"]
    errors = _validator(tool).iter_errors(dict(call.arguments))
    return [f"/{'/'.join(str(part) for part in error.instance_path)}: {error.message}" for error in errors]


@per_tool
def _validator(tool: Tool) -> Any:
    schema = dict(tool.parameters)
    try:  # linear time, so that a pattern such as (a+)+b can't hang a server
        return _built(schema, jsonschema_rs.RegexOptions())
    except ValueError:  # look-around and the like; bounded
        return _built(schema, jsonschema_rs.FancyRegexOptions(backtrack_limit=BACKTRACKS))


def _built(schema: dict[str, Any], patterns: Any) -> Any:
    return jsonschema_rs.validator_for(
        schema, pattern_options=patterns, offline=True, validate_formats=True, formats=_FORMATS
    )


def _reads(read: Callable[[str], Any]) -> Callable[[str], bool]:
    def reads(text: str) -> bool:
        try:
            read(text)
        except ValueError:
            return False
        return True

    return reads


_FORMATS = {  # as people and ISO 8601 have them: RFC 3339's `time` demands an offset, which nobody says
    "date": lambda text: len(text) == 10 and text[4:8:3] == "--" and _reads(date.fromisoformat)(text),
    "time": _reads(time.fromisoformat),
    "date-time": lambda text: (
        re.match(r"\d{4}-\d\d-\d\d[T ]\d\d:", text) is not None and _reads(datetime.fromisoformat)(text)
    ),
    "duration": lambda text: (
        re.fullmatch(r"P(?=.)(\d+Y)?(\d+M)?(\d+W)?(\d+D)?(T(?=.)(\d+H)?(\d+M)?(\d+(\.\d+)?S)?)?", text) is not None
    ),
    "uri": lambda text: re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*:\S+", text) is not None,
    "ip": _reads(ip_address),
    "email": lambda text: re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s.]+", text) is not None,
}
