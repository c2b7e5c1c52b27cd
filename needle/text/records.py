"""The contracts that everything shares: `Tool`, `Call`, `Record`, and JSON lines on disk."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any


class DataError(ValueError):
    """A line of the user's data can't be read; the message names file, line and field."""


class FieldError(ValueError):
    """One field of one object is wrong. `where` is its path, `expected` what would be right."""

    def __init__(self, where: str, expected: str) -> None:
        super().__init__(f"field '{where}': {expected}")
        self.where = where
        self.expected = expected


class ToolSchemaError(ValueError):
    """A tool declaration that can't be supported. `pointer` is the JSON pointer of the fault in the declaration."""

    def __init__(self, pointer: str, message: str) -> None:
        super().__init__(f"{pointer or '/'}: {message}")
        self.pointer = pointer or "/"
        self.message = message


@dataclass(frozen=True, eq=False)
class Tool:
    """A function that a model may call. `parameters` is a JSON Schema of type object.

    Tools are equal if they are declared alike, in the same order, and may be kept in sets and caches.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "description": self.description, "parameters": self.parameters}

    @cached_property
    def declared(self) -> str:
        """The declaration as JSON."""
        return json.dumps(self.to_json())

    @cached_property
    def key(self) -> str:
        """The declaration as JSON, the same in whatever order the arguments are declared."""
        return json.dumps(self.to_json(), sort_keys=True)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Tool) and self.declared == other.declared)

    def __hash__(self) -> int:
        return hash(self.declared)


Spans = Mapping[str, tuple[tuple[int, int], ...]]


@dataclass(frozen=True)
class Call:
    """One function call: what a model answers.

    `sources` says of the arguments whose values were copied from the request where: the first character and the one
    behind the last, for a list a pair for each item. A member of an object is named with a dot (`address.street`).
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    sources: Spans = field(default_factory=dict, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "arguments": self.arguments}

    @cached_property
    def key(self) -> str:
        """Equal for calls that are equal as JSON values (argument order and 1 against 1.0 don't matter)."""
        return canonical_json(self.to_json())


@dataclass(frozen=True)
class Missing:
    """A tool that was wished for, and its required arguments that nobody said."""

    name: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Record:
    """One example. No answers means that no tool fits, or that a required value isn't said: `meta["missing"]` then has
    the `name` of the tool and the names of these `arguments`."""

    id: str
    query: str
    tools: tuple[Tool, ...]
    answers: tuple[Call, ...]
    source: str = ""
    teacher: Mapping[str, Any] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def missing(self) -> Missing | None:
        found = self.meta.get("missing")
        if not isinstance(found, Mapping):
            return None
        return Missing(str(found["name"]), tuple(map(str, found["arguments"])))

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {
            "id": self.id,
            "query": self.query,
            "tools": [tool.to_json() for tool in self.tools],
            "answers": [call.to_json() for call in self.answers],
            "source": self.source,
        }
        if self.teacher is not None:
            row["teacher"] = self.teacher
        if self.meta:
            row["meta"] = self.meta
        return row


def canonical_json(value: Any) -> str:
    """A string that is equal for equal JSON values: keys sorted, whole floats written as integers."""
    return json.dumps(_canonical(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _canonical(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return value


def text_field(row: Mapping[str, Any], name: str) -> str:
    """The string at `name`; raises `FieldError` when it is missing or of another type."""
    value = row.get(name)
    if not isinstance(value, str):
        raise FieldError(name, f"expected a string, got {_kind(value) if name in row else 'nothing'}")
    return encodable(value, name)


def encodable(text: str, where: str) -> str:
    """The text itself; raises `FieldError` for half a character, which JSON can spell (`\\ud800`) and no encoder
    takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FieldError(
            where, f"expected Unicode text, found an unpaired surrogate at character {error.start}"
        ) from error
    return text


def list_field(row: Mapping[str, Any], name: str) -> list[Any]:
    """The array at `name`; raises `FieldError` when it is missing or of another type."""
    value = row.get(name)
    if not isinstance(value, list):
        raise FieldError(name, f"expected an array, got {_kind(value) if name in row else 'nothing'}")
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def open_text(path: Path, mode: str = "rt") -> Any:
    """Opens a text file as UTF-8, through gzip when the name ends in .gz; a byte order mark is no content."""
    encoding = "utf-8-sig" if mode == "rt" else "utf-8"
    if path.suffix == ".gz":
        return gzip.open(path, mode, encoding=encoding)
    return open(path, mode, encoding=encoding)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, text) for every line that isn't empty; raises `DataError` for a file that can't be
    read."""
    if not path.is_file():
        raise DataError(f"{path}: no such file" if not path.exists() else f"{path}: expected a file, found a folder")
    number = 0
    try:
        with open_text(path) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line
    except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        kind = "UTF-8 text in gzip" if path.suffix == ".gz" else "UTF-8 text"
        raise DataError(f"{path}, line {number + 1}: not readable as {kind}: {error}") from error


def parse_line(line: str) -> Any:
    """The JSON value of one line; raises `FieldError` when it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FieldError("(line)", f"expected one JSON object on the line, but {error}") from error


def write_jsonl(path: Path, records: Iterable[Record]) -> int:
    """Writes one JSON line a record (gzipped when the name ends in .gz) and returns how many."""
    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_text(path, "wt") as out:
        for record in records:
            out.write(json.dumps(record.to_json(), ensure_ascii=False, separators=(",", ":")) + "\n")
            count += 1
    return count
