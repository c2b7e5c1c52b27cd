"""The user's tools, from whatever they are declared in, with everything that is wrong with them; and which are kept
unseen.

Read are: JSON (an array, or MCP's answer to `tools/list`), JSON lines, an OpenAPI document in JSON or YAML, and a
Python module, whose public functions become tools by their type hints and docstrings. A module is imported, so its code
runs.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import random
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from needle.collect.openapi import operations, read_yaml
from needle.data.catalogue import load_catalogue
from needle.text.declarations import entries, normalise_tool
from needle.text.declare import declared
from needle.text.records import DataError, FieldError, Tool, ToolSchemaError, parse_line, read_lines

LARGE_ENUM, LONG_NAME = 60, 64
HELD_OUT, MIN_FAMILIES = (
    0.15,
    8,
)  # share of families kept for tests of unseen tools, of catalogues with at least so many


@dataclass(frozen=True)
class Declared:
    """A tool, where it was declared, and the family it belongs to: tools that one learns from another."""

    tool: Tool
    where: str
    family: str


@dataclass(frozen=True)
class Finding:
    """Something wrong with a declaration. An error keeps the tool out; a warning says what the teacher may
    misunderstand."""

    where: str
    message: str
    error: bool = False

    def __str__(self) -> str:
        return f"{'error' if self.error else 'warning'}: {self.where}: {self.message}"


def read_catalogue(path: Path | None) -> tuple[list[Declared], list[Finding]]:
    """The tools of a file, or the built-in ones, and everything found wrong with them.

    Raises:
        DataError: the file can't be read at all, or holds no tools.
    """
    if path is None:
        return [
            Declared(entry.tool, f"{entry.domain}.yaml/{entry.tool.name}", entry.domain) for entry in load_catalogue()
        ], []
    sources: list[Declared] = []
    findings: list[Finding] = []
    for where, declaration, family, notes in _declarations(path):
        findings += [Finding(where, note) for note in notes]
        try:
            if isinstance(declaration, ToolSchemaError):
                raise ToolSchemaError(f"{path.name}{declaration.pointer}", declaration.message)
            tool = normalise_tool(declared(declaration, where), where)
        except ToolSchemaError as error:
            findings.append(Finding(error.pointer, error.message, error=True))
            continue
        earlier = next((source for source in sources if source.tool.name == tool.name), None)
        if earlier and earlier.tool == tool:
            findings.append(Finding(where, f"declared at {earlier.where} in the same words already"))
            continue
        if earlier:
            findings.append(
                Finding(where, f"the name '{tool.name}' is declared at {earlier.where} already", error=True)
            )
            continue
        sources.append(Declared(tool, where, family or _family(tool.name)))
        findings += _lint(tool, where)
    if not sources and not findings:
        raise DataError(
            f"{path}: no tools found; expected an array of tools, MCP's tools/list, an OpenAPI document, or a Python"
            " module with typed functions"
        )
    return sources, findings


def unseen_families(sources: Sequence[Declared], seed: int) -> frozenset[str]:
    """Families that training never shows; none when there are too few to spare any."""
    families = sorted({source.family for source in sources})
    if len(families) < MIN_FAMILIES:
        return frozenset()
    return frozenset(random.Random(f"unseen:{seed}").sample(families, max(1, round(HELD_OUT * len(families)))))


def _declarations(path: Path) -> list[tuple[str, Any, str | None, tuple[str, ...]]]:
    """(where, declaration or function or what is wrong with it, family, notes) for everything in the file."""
    name = path.name
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    # Files whose lines or functions are declarations by themselves.
    if path.suffix == ".py":
        return [(f"{name}:{function.__name__}", function, None, ()) for function in _module(path)]
    if path.suffix == ".jsonl":
        return [(f"{name}:{number}", _line(path, number, text), None, ()) for number, text in read_lines(path)]
    # One document: OpenAPI, or an array of tools somewhere inside.
    try:
        text = path.read_text(encoding="utf-8-sig")
        document = read_yaml(text) if path.suffix in (".yaml", ".yml") else json.loads(text)
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path}: expected {'YAML' if path.suffix != '.json' else 'JSON'}, but {error}") from error
    if isinstance(document, Mapping) and ("openapi" in document or "swagger" in document):
        return [(f"{name}{one.where}", one.declaration, one.family, one.notes) for one in operations(document)]
    if isinstance(document, Mapping):
        inner = document.get("result", document)
        document = inner.get("tools", inner.get("functions")) if isinstance(inner, Mapping) else None
    if not isinstance(document, list):
        raise DataError(f"{path}: expected an array of tools, or an object with 'tools'")
    return [(where, declaration, None, ()) for where, declaration in entries(document, name)]


def _line(path: Path, number: int, text: str) -> Any:
    try:
        return parse_line(text)
    except FieldError as error:
        raise DataError(f"{path}, line {number}: {error}") from error


def _family(name: str) -> str:
    """The namespace in calendar.add, calendar/add or calendar__add; else the tool is a family of its own."""
    return re.split(r"\.|/|::|__", name)[0].lower()


# Python


def _module(path: Path) -> list[Callable[..., Any]]:
    """The public functions and pydantic models of a module, which is run. Raises `DataError`."""
    called = f"_tools_of_{path.stem}"  # not `json`, should the file be called so
    spec = importlib.util.spec_from_file_location(called, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[called] = module  # its own types are looked up there
    sys.path.insert(0, str(path.parent))  # and what stands beside it is imported
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[called]
        raise DataError(f"{path}: the module can't be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    named = getattr(module, "__all__", None)
    found = [
        value
        for name, value in vars(module).items()
        if (inspect.isfunction(value) or (inspect.isclass(value) and issubclass(value, BaseModel)))
        and value.__module__ == called
        and not name.startswith("_")
    ]
    return [function for function in found if named is None or function.__name__ in named]


# What the teacher may misunderstand


def _lint(tool: Tool, where: str) -> list[Finding]:
    found = []
    if not tool.description.strip():
        found.append(Finding(f"{where}/description", "no description; the teacher has only the name to go by"))
    if len(tool.name) > LONG_NAME:
        found.append(
            Finding(
                f"{where}/name",
                f"{len(tool.name)} characters; services take {LONG_NAME}, so it is sent under a shorter one",
            )
        )
    for name, schema in tool.parameters.get("properties", {}).items():
        place = f"{where}/parameters/properties/{name}"
        if not schema.get("description") and not schema.get("enum"):
            found.append(Finding(place, "no description"))
        if len(schema.get("enum", ())) > LARGE_ENUM:
            found.append(
                Finding(f"{place}/enum", f"{len(schema['enum'])} members; a service may refuse more than {LARGE_ENUM}")
            )
        if not schema.get("type") and not schema.get("enum") and not schema.get("anyOf"):
            found.append(Finding(place, "no type; any value is right"))
    return found
