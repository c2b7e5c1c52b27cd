"""Tool declarations in every dialect, one bad tool among good ones, and the tables of docs/declarations.md."""

from __future__ import annotations

import gzip
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema

from needle.data.speech.schema import value_for
from needle.text.declarations import normalise_tool, read_tools
from needle.text.records import Call, Tool, ToolSchemaError
from needle.text.validity import call_errors
from tests.random_schemas import ABSURD, try_declarations

PROPERTIES = {"city": {"type": "string", "description": "the city"}, "days": {"type": "integer"}}
SCHEMA = {"type": "object", "properties": PROPERTIES, "required": ["city"]}
PYDANTIC = {"title": "Weather", **SCHEMA, "properties": {k: {**v, "title": k.title()} for k, v in PROPERTIES.items()}}
ZOD_4 = {"$schema": "https://json-schema.org/draft/2020-12/schema", **SCHEMA, "additionalProperties": False}
ROWS = [{"name": name, **schema, "required": name == "city"} for name, schema in PROPERTIES.items()]
BY_NAME = {"city": {**PROPERTIES["city"], "required": True}, "days": {"type": "int"}}
NULLS = {"city": {**PROPERTIES["city"], "enum": None, "items": None}, "days": {"type": "integer"}, "x": None}
DIALECTS: dict[str, Any] = {  # what people send, by who makes it
    "bare function": {"name": "w", "parameters": SCHEMA},
    "OpenAI chat": {"type": "function", "function": {"name": "w", "parameters": SCHEMA, "strict": True}},
    "OpenAI Responses": {"type": "function", "name": "w", "parameters": SCHEMA, "strict": True},
    "OpenAI strict, optional as null": {
        "name": "w",
        "parameters": {**SCHEMA, "properties": {**PROPERTIES, "days": {"type": ["integer", "null"]}}},
    },
    "Anthropic": {"name": "w", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}},
    "MCP": {"name": "w", "inputSchema": ZOD_4, "annotations": {"readOnlyHint": True}, "outputSchema": ZOD_4},
    "Bedrock": {"toolSpec": {"name": "w", "inputSchema": {"json": SCHEMA}}},
    "Gemini": {"functionDeclarations": [{"name": "w", "parameters": {**SCHEMA, "type": "OBJECT"}}]},
    "Gemini, snake case": {"function_declarations": [{"name": "w", "parameters": SCHEMA}]},
    "Gemini, JSON Schema": {"functionDeclarations": [{"name": "w", "parametersJsonSchema": SCHEMA}]},
    "Cohere": {
        "name": "w",
        "parameter_definitions": {
            "city": {"type": "str", "description": "the city", "required": True},
            "days": {"type": "int"},
        },
    },
    "LangChain": {"name": "w", "args_schema": PYDANTIC},
    "LangChain, args": {"name": "w", "args": BY_NAME},
    "smolagents": {
        "name": "w",
        "inputs": BY_NAME,
        "output_type": "string",
    },
    "Home Assistant": {
        "name": "w",
        "fields": {
            "city": {"required": True, "description": "the city", "selector": {"text": None}},
            "days": {"selector": {"number": {"mode": "box"}}},
        },
    },
    "RapidAPI": {
        "name": "w",
        "required_parameters": [{"name": "city", "type": "STRING", "description": "the city"}],
        "optional_parameters": [{"name": "days", "type": "int"}],
    },
    "list of parameters": {"name": "w", "parameters": ROWS},
    "properties alone": {"name": "w", "parameters": BY_NAME},
    "schema as JSON text": {"name": "w", "parameters": json.dumps(SCHEMA)},
    "Zod 4, TypeBox, FastMCP": {"name": "w", "inputSchema": ZOD_4},
    "Pydantic 2": {"name": "w", "parameters": PYDANTIC},
    "Swagger 2 and OpenAPI 3.0 schemas": {
        "name": "w",
        "parameters": {**SCHEMA, "properties": {**PROPERTIES, "days": {"type": "integer", "format": "int32"}}},
    },
    "null-filled by Arrow": {
        "name": "w",
        "parameters": {
            **SCHEMA,
            "properties": NULLS,
            "anyOf": None,
        },
    },
}  # fmt: skip


def argument_types(tool: Tool) -> dict[str, Any]:
    kinds = {name: schema.get("type") for name, schema in tool.parameters["properties"].items()}
    return {name: kind[0] if isinstance(kind, list) else kind for name, kind in kinds.items()}


@pytest.mark.parametrize("who", list(DIALECTS))
def test_every_dialect_tells_the_same_arguments(who: str) -> None:
    (tool,) = read_tools([DIALECTS[who]], strict=True).tools
    number = "number" if who == "Home Assistant" else "integer"
    assert argument_types(tool) == {"city": "string", "days": number}
    assert tool.parameters["required"] == ["city"]
    assert tool.parameters["properties"]["city"]["description"] == "the city"
    assert normalise_tool(tool.to_json()).declared == tool.declared


def dialect_table() -> str:
    """The table of docs/declarations.md."""
    rows = ["| who | read from | arguments found |", "| --- | --- | --- |"]
    for who, declaration in DIALECTS.items():
        (tool,) = read_tools([declaration], strict=True).tools
        required = tool.parameters["required"]
        found = ", ".join(f"{name}{'*' * (name in required)} {kind}" for name, kind in argument_types(tool).items())
        rows.append(f"| {who} | `{_place(declaration)}` | {found} |")
    return "\n".join(rows)


def _place(declaration: Any) -> str:
    """The keys that lead to the arguments of a declaration."""
    for key, value in declaration.items():
        if key in ("function", "toolSpec"):
            return f"{key}.{_place(value)}"
        if key.lower().startswith("function") and isinstance(value, list):
            return f"{key}[].{_place(value[0])}"
    aside = ("cache_control", "annotations", "outputSchema")
    keys = [key for key, value in declaration.items() if isinstance(value, list | dict) or key == "parameters"]
    inner = ".json" if "json" in (declaration.get("inputSchema") or ()) else ""
    return ", ".join(key for key in keys if key not in aside) + inner


def test_the_table_in_the_docs_is_what_was_read() -> None:
    text = (Path(__file__).parents[1] / "docs" / "declarations.md").read_text()
    shown = text.partition("<!-- dialects -->\n")[2].partition("\n<!-- /dialects -->")[0]
    assert shown == dialect_table(), dialect_table()


def test_services_of_home_assistant_are_tools_by_name() -> None:
    selectors: dict[str, Any] = {
        "brightness": {"number": {"min": 0, "max": 255}},
        "effect": {"select": {"options": ["fire", {"value": "rainbow", "label": "Rainbow"}]}},
        "rgb": {"color_rgb": None},
        "on": {"boolean": None},
        "at": {"time": None},
        "who": {"entity": {"multiple": True}},
    }
    fields = {name: {"selector": selector} for name, selector in selectors.items()}
    found = read_tools({"light.turn_on": {"name": "Turn on", "description": "Lights", "fields": fields}})
    assert [tool.name for tool in found.tools] == ["light.turn_on"]
    service = {"name": "Turn on", "description": "Lights", "fields": {"more": {"collapsed": True, "fields": fields}}}
    assert read_tools([{"domain": "light", "services": {"turn_on": service}}]).tools == found.tools
    properties = found.tools[0].parameters["properties"]
    assert properties["brightness"] == {"type": "number", "minimum": 0, "maximum": 255}
    assert properties["effect"]["enum"] == ["fire", "rainbow"]
    assert argument_types(found.tools[0]) | {} == {
        "brightness": "number", "effect": "string", "rgb": "array", "on": "boolean", "at": "string", "who": "array",
    }  # fmt: skip


WRAPPED: list[Any] = [
    {"tools": [{"name": "w", "parameters": SCHEMA}]},
    {"w": {"description": "x", "inputSchema": SCHEMA}},
    {"jsonrpc": "2.0", "result": {"tools": [{"name": "w", "inputSchema": SCHEMA}]}},
    {"toolConfig": {"tools": [{"toolSpec": {"name": "w", "inputSchema": {"json": SCHEMA}}}]}},
    {"name": "w", "parameters": SCHEMA},
    [{"name": "w", "inputSchema": {"jsonSchema": SCHEMA}}],
    [{"name": "w", "function": {"parameters": SCHEMA}}],
    [{"name": "w", "parameters": {"type": "object", "properties": {}}, "inputSchema": SCHEMA}],
    [
        {
            "name": "w",
            "parameters": [{"name": "city", "type": "str", "is_required": True}, {"name": "days", "type": "int"}],
        }
    ],
    [{"name": "w", "parameters": {"city": {"dataType": "STRING", "optional": False}, "days": {"type": "int"}}}],
]


@pytest.mark.parametrize("number", range(len(WRAPPED)))
def test_tools_are_found_however_they_are_wrapped(number: int) -> None:
    (tool,) = read_tools(WRAPPED[number], strict=True).tools
    assert tool.name == "w"
    assert argument_types(tool) == {"city": "string", "days": "integer"}
    assert tool.parameters["required"] == ["city"]


def test_arguments_with_words_for_a_schema_are_any_value() -> None:
    (tool,) = read_tools([{"name": "q", "parameters": {"city": "The city to look for", "n": "int"}}]).tools
    assert tool.parameters["properties"] == {"city": {"description": "The city to look for"}, "n": {"type": "integer"}}


GOOD = {"name": "good", "description": "Good", "parameters": SCHEMA}
BAD: list[tuple[Any, str, str]] = [
    ({"type": "web_search"}, "web_search", "declares no function"),
    ({"type": "web_search_20250305", "name": "web_search"}, "web_search", "declares no function"),
    ({"name": ""}, "", "expected the tool's name"),
    (7, "", "expected a tool as an object"),
    ({"name": "odd", "parameters": {"type": "object", "properties": {"x": {"type": "strin"}}}}, "odd", "unknown type"),
    ({"name": "lost", "description": "x", "slots": {"city": {"type": "string"}}}, "lost", "might hold arguments"),
    ({"name": "text", "parameters": "{"}, "text", "text that isn't JSON"),
    ({"name": "good", "description": "Another"}, "good", "declared twice"),
    ({"name": "far", "parameters": {"$ref": "https://example.org/s.json"}}, "far", "inside the schema"),
    ({"name": "re", "parameters": {"type": "object", "properties": {"x": {"pattern": "("}}}}, "re", "regex"),
    ({"name": "\ud800"}, "\ud800", "Unicode"),
    ({"type": "custom", "name": "run", "description": "Run code"}, "run", "takes free text"),
    ({"name": "files", "uriTemplate": "file:///{path}"}, "files", "isn't a tool"),
    ({"name": "op", "parameters": [], "requestBody": {"content": {}}}, "op", "an operation's body"),
]


@pytest.mark.parametrize(("bad", "name", "reason"), BAD)
def test_one_bad_tool_costs_only_itself(bad: Any, name: str, reason: str) -> None:
    found = read_tools([GOOD, bad, {**GOOD, "name": "other"}, GOOD])
    assert [tool.name for tool in found.tools] == ["good", "other"]
    assert found.places == (0, 2)
    (skipped,) = found.skipped
    assert (skipped.index, skipped.name) == (1, name)
    assert reason in skipped.reason
    with pytest.raises(ToolSchemaError, match=reason):
        read_tools([GOOD, bad], strict=True)


def test_without_one_good_tool_the_reason_is_an_error() -> None:
    with pytest.raises(ToolSchemaError, match="declares no function"):
        read_tools([{"type": "web_search"}])
    assert read_tools([]).tools == ()


# Declarations as they are found


def _answer(tool: Tool, source: random.Random) -> dict[str, Any] | None:
    """Arguments that the tool accepts, drawn by the generator of requests; None where a hundred draws found none."""

    def text(schema: Any, path: tuple[str, ...], source: random.Random) -> str:
        return source.choice(("Oslo", "2026-03-05", "18:30", "a@example.org", "https://example.org", "12345", "abc"))

    for _ in range(100):
        value = value_for(tool.parameters, source, text)
        if not call_errors(Call(tool.name, value), (tool,)):
            return dict(value)
    return None


@pytest.mark.parametrize("name", ["tools", "rest"])
def test_declarations_from_the_wild_are_read_and_can_be_called(real_data: Path, name: str) -> None:
    refused: Counter[str] = Counter()
    total = uncallable = wrong = 0
    with gzip.open(real_data / "schemas" / f"{name}.jsonl.gz", "rt") as lines:
        for number, line in enumerate(lines):
            row = json.loads(line)
            total += 1
            try:
                tool = normalise_tool(row)
            except ToolSchemaError as error:
                refused[error.message] += 1
                continue
            if number % 10:
                continue
            value = _answer(tool, random.Random(number))
            if value is None:
                uncallable += 1
                continue
            try:
                jsonschema.validate(value, row["parameters"])
            except jsonschema.ValidationError:
                wrong += 1
            except jsonschema.SchemaError:  # it isn't JSON Schema, so that nobody else can judge
                continue
    print(f"{name}: {total} declarations, {sum(refused.values())} refused, {uncallable} without a call, {wrong} wrong")
    assert sum(refused.values()) <= 0.005 * total, refused
    assert uncallable + wrong <= 0.005 * total / 10


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(ABSURD)
def test_whatever_is_declared_is_read_or_refused_with_a_place(parameters: dict[str, Any]) -> None:
    start = time.perf_counter()
    found = read_tools([GOOD, {"name": "t", "parameters": parameters}])
    assert time.perf_counter() - start < 5
    assert len(found.tools) + len(found.skipped) == 2
    assert all(skipped.reason.startswith("/1/parameters") for skipped in found.skipped)
    for tool in found.tools:
        assert normalise_tool(tool.to_json()).declared == tool.declared


def test_random_declarations_are_refused_or_answered() -> None:
    found = try_declarations(150)
    assert found.counts["answered"] > 50
    assert found.counts["a value written and read back"] > 50
    assert found.counts["read"] == found.counts["answered"]


@pytest.mark.slow
def test_many_random_declarations_are_refused_or_answered() -> None:
    assert try_declarations(2000).counts["a value written and read back"] > 800


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_the_reader_makes_of_a_schema_allows_nothing_that_the_schema_forbids(data: st.DataObject) -> None:
    inner = data.draw(
        st.sampled_from(
            [
                {"type": "integer", "minimum": 2, "multipleOf": 2},
                {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
                {"anyOf": [{"type": "string", "maxLength": 2}, {"type": "integer"}]},
                {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]},
                {"type": "object", "additionalProperties": {"type": "integer"}},
                {"allOf": [{"type": "integer"}, {"minimum": 3}, {"not": {"const": 4}}]},
                {"enum": [1, "a", None]},
            ]
        )
    )
    declared = {"type": "object", "properties": {"v": inner}, "required": ["v"], "additionalProperties": False}
    tool = normalise_tool({"name": "t", "parameters": declared})
    value = data.draw(from_schema(json.loads(json.dumps(tool.parameters))))
    if not call_errors(Call("t", value), (tool,)):
        jsonschema.validate(value, declared)
