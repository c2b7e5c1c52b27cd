"""The normaliser: every dialect ends in the same tool, and what can't be supported names its place."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from needle.text.records import Call
from needle.text.toolschema import ToolSchemaError, call_errors, normalise_tool, normalise_tools

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
DIALECTS = [
    {"name": "w", "parameters": CITY},
    {"type": "function", "function": {"name": "w", "parameters": CITY}},
    {"name": "w", "inputSchema": CITY},
    {"name": "w", "parameters": {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}, "required": ["city"]}},
    {"name": "w", "parameters": {"type": "dict", "properties": {"city": {"type": "str"}}, "required": ["city"]}},
    {
        "name": "w",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/C"}},
            "required": ["city"],
            "$defs": {"C": {"type": "string"}},
        },
    },
    {
        "name": "w",
        "parameters": {
            "type": "object",
            "properties": {"city": {"anyOf": [{"type": "string"}]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
]


@pytest.mark.parametrize("declaration", DIALECTS)
def test_every_dialect_becomes_the_same_tool(declaration: dict[str, Any]) -> None:
    assert normalise_tool(declaration).to_json() == normalise_tool(DIALECTS[0]).to_json()


def test_normalising_twice_changes_nothing() -> None:
    for declaration in DIALECTS:
        once = normalise_tool(declaration)
        assert normalise_tool(once).to_json() == once.to_json()


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string", "nullable": True}, {"type": ["string", "null"]}),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, {"type": ["integer", "null"]}),
        ({"type": ["string", "null"]}, {"type": ["string", "null"]}),
        ({"const": 3}, {"enum": [3]}),
        ({"type": "integer", "enum": ["1", "2"]}, {"type": "integer", "enum": [1, 2]}),
        ({"type": "any"}, {}),
        ({"type": "float", "minimum": 0, "maximum": 1}, {"type": "number", "minimum": 0, "maximum": 1}),
        ({"type": "tuple", "items": {"type": "int"}}, {"type": "array", "items": {"type": "integer"}}),
        ({"type": "string", "minLength": "2"}, {"type": "string", "minLength": 2}),
        ({"type": ["string", "integer"]}, {"anyOf": [{"type": "string"}, {"type": "integer"}]}),
        ({"type": "int32"}, {"type": "integer"}),
        ({"type": "str, optional"}, {"type": "string"}),
        ({"type": "Optional[int]"}, {"type": ["integer", "null"]}),
        ({"type": "Union[int, float]"}, {"anyOf": [{"type": "integer"}, {"type": "number"}]}),
        ({"type": "List[int], optional"}, {"type": "array", "items": {"type": "integer"}}),
        ({"type": "List[List[str]]"}, {"type": "array", "items": {"type": "array", "items": {"type": "string"}}}),
        (
            {"type": "List[Union[int, str]]"},
            {"type": "array", "items": {"anyOf": [{"type": "integer"}, {"type": "string"}]}},
        ),
        ({"type": "Tuple[int, int]"}, {"type": "array"}),
        (
            {"type": "Dict[str, int]"},
            {"type": "object", "properties": {}, "required": [], "additionalProperties": True},
        ),
        ({"type": "number", "minimum": 0, "exclusiveMinimum": True}, {"type": "number", "exclusiveMinimum": 0}),
        ({"type": "number", "maximum": 9, "exclusiveMaximum": False}, {"type": "number", "maximum": 9}),
        (
            {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
            {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        ),
        ({"type": "boolean", "enum": ["true", "False"]}, {"type": "boolean", "enum": [True, False]}),
        ({"type": "boolean", "enum": ["True", "dontcare"]}, {"enum": ["True", "dontcare"]}),
        ({"type": "integer", "enum": ["1", "2", "dontcare"]}, {"enum": ["1", "2", "dontcare"]}),
        ({"type": "number", "enum": ["1.5", "2"]}, {"type": "number", "enum": [1.5, 2]}),
        ({"type": "string", "enum": [1, 2]}, {"enum": [1, 2]}),
        ({"type": "string", "enum": ["a"], "nullable": True}, {"type": ["string", "null"], "enum": ["a", None]}),
        (
            {"type": "array", "items": {"type": "string"}, "enum": ["a", "b"]},
            {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}},
        ),
        (
            {"type": "string", "oneOf": [{"const": "eco"}, {"const": "boost", "title": "Boost"}]},
            {"type": "string", "enum": ["eco", "boost"]},
        ),
        ({"oneOf": [{"const": 1}, {"const": 2}], "nullable": True}, {"enum": [1, 2, None]}),
        ({"type": "array", "const": "a"}, {"type": "array", "items": {"enum": ["a"]}}),
        (
            {"type": "array", "items": {"type": "string"}, "oneOf": [{"const": "a"}, {"const": "b"}]},
            {"anyOf": [{"type": "array", "items": {"type": "string", "enum": [c]}} for c in "ab"]},
        ),
        ({"type": "number", "enum": ["nan", "1"]}, {"enum": ["nan", "1"]}),
        (
            {"type": "object", "additionalProperties": {"type": "string"}, "minProperties": "1"},
            {
                "type": "object",
                "properties": {},
                "required": [],
                "additionalProperties": {"type": "string"},
                "minProperties": 1,
            },
        ),
        (
            {"type": "integer", "minimum": 0, "maximum": 9, "anyOf": [{"minimum": -5}, {"maximum": 5}]},
            {
                "anyOf": [
                    {"type": "integer", "minimum": 0, "maximum": 9},
                    {"type": "integer", "minimum": 0, "maximum": 5},
                ]
            },
        ),
        (
            {"type": "string", "anyOf": [True, {"maxLength": 3}]},
            {"anyOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]},
        ),
        (
            {"type": "string", "maxLength": 9, "anyOf": [{"format": "date"}, {"minLength": 2}]},
            {"anyOf": [{"type": "string", "maxLength": 9}, {"type": "string", "minLength": 2, "maxLength": 9}]},
        ),
        (
            {
                "type": "object",
                "properties": {"id": {"type": "integer"}, "name": {"type": "string"}},
                "anyOf": [{"required": ["id"]}, {"required": ["name"]}],
            },
            {
                "anyOf": [
                    {
                        "type": "object",
                        "properties": {"id": {"type": "integer"}, "name": {"type": "string"}},
                        "required": [name],
                        "additionalProperties": False,
                    }
                    for name in ("id", "name")
                ]
            },
        ),
    ],
)
def test_a_property_is_written_one_way(schema: dict[str, Any], expected: dict[str, Any]) -> None:
    tool = normalise_tool({"name": "t", "parameters": {"type": "object", "properties": {"x": schema}}})
    assert tool.parameters["properties"]["x"] == expected


@pytest.mark.parametrize(
    ("schema", "pointer", "message"),
    [
        ({"type": "object", "properties": {"x": {"not": {}}}}, "/parameters/properties/x/not", "isn't supported"),
        (
            {"type": "object", "properties": {"x": {"type": "strin"}}},
            "/parameters/properties/x/type",
            "unknown type 'strin'",
        ),
        (
            {"type": "object", "properties": {"x": {"$ref": "http://a/b"}}},
            "/parameters/properties/x/$ref",
            "inside the schema",
        ),
        (
            {"type": "object", "properties": {"x": {"$ref": "#/nowhere"}}},
            "/parameters/properties/x/$ref",
            "points at nothing",
        ),
        (
            {
                "type": "object",
                "properties": {"x": {"$ref": "#/$defs/A"}},
                "$defs": {"A": {"type": "array", "items": {"$ref": "#/$defs/A"}}},
            },
            "/parameters/properties/x/items/$ref",
            "refers to itself",
        ),
        (
            {"type": "object", "properties": {"x": {"type": "string", "pattern": "(?=a)b"}}},
            "/parameters/properties/x/pattern",
            "regex",
        ),
        (
            {"type": "object", "properties": {"x": {"type": "string", "pattern": "("}}},
            "/parameters/properties/x/pattern",
            "regex",
        ),
        ({"type": "object", "properties": {"x": {"type": []}}}, "/parameters/properties/x/type", "at least one type"),
        (
            {"type": "object", "properties": {"x": {"type": "array", "prefixItems": 5}}},
            "/parameters/properties/x/prefixItems",
            "array of schemas",
        ),
        ({"type": "object", "properties": {"x": {"enum": []}}}, "/parameters/properties/x/enum", "at least one"),
        (
            {"type": "object", "properties": {"x": {"type": "integer", "minimum": "low"}}},
            "/parameters/properties/x/minimum",
            "expected",
        ),
        (
            {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["y"]},
            "/parameters/required",
            "'y' is required",
        ),
        ({"type": "object", "properties": []}, "/parameters", "JSON Schema|argument name|expected"),
        ({"type": "array", "items": {}}, "/parameters/type", "are an object"),
        (
            {"type": "object", "properties": {"x": {"allOf": [{"type": "string"}, {"minLength": 2}]}}},
            "/parameters/properties/x/allOf",
            "merge them",
        ),
        ("x", "/parameters", "JSON Schema object"),
    ],
)
def test_what_cannot_be_supported_names_its_place(schema: Any, pointer: str, message: str) -> None:
    if schema == {"type": "object", "properties": []}:
        schema, pointer = {"type": "object", "properties": ["x"]}, "/parameters/properties"
    with pytest.raises(ToolSchemaError, match=message) as error:
        normalise_tool({"name": "t", "parameters": schema})
    assert error.value.pointer == pointer


BASE = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


@pytest.mark.parametrize("keyword", ["allOf", "anyOf", "oneOf"])
def test_what_stands_beside_a_union_is_joined_with_what_its_references_point_at(keyword: str) -> None:
    own = {
        "type": "object",
        "properties": {"id": {"type": "string"}},
        "required": ["id"],
        keyword: [{"$ref": "#/$defs/Base"}],
        "$defs": {"Base": BASE},
    }
    found = normalise_tool({"name": "t", "parameters": own}).parameters
    assert (set(found["properties"]), set(found["required"])) == ({"id", "name"}, {"id", "name"})


def test_what_stands_beside_a_reference_is_joined_with_it() -> None:
    schema = {
        "type": "object",
        "properties": {
            "x": {
                "$ref": "#/$defs/Base",
                "description": "Who",
                "required": ["age"],
                "properties": {"age": {"type": "integer"}},
            }
        },
        "$defs": {"Base": BASE},
    }
    found = normalise_tool({"name": "t", "parameters": schema}).parameters["properties"]["x"]
    assert (set(found["properties"]), set(found["required"]), found["description"]) == (
        {"name", "age"},
        {"name", "age"},
        "Who",
    )


def test_references_of_unions_that_go_in_circles_are_named() -> None:
    schema = {
        "type": "object",
        "properties": {"x": {"type": "object", "anyOf": [{"$ref": "#/$defs/A"}]}},
        "$defs": {"A": {"anyOf": [{"$ref": "#/$defs/A"}], "type": "object"}},
    }
    with pytest.raises(ToolSchemaError, match="refers to itself"):
        normalise_tool({"name": "t", "parameters": schema})


def test_a_declaration_stays_as_it_was() -> None:
    declaration = {
        "name": "t",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": ["string", "integer", "null"], "enum": ["a", 1]}},
        },
    }
    before = json.dumps(declaration)
    normalise_tool(declaration)
    assert json.dumps(declaration) == before


def test_a_tool_of_endless_text_is_refused() -> None:
    with pytest.raises(ToolSchemaError, match="at most 200,000 are supported"):
        normalise_tool(
            {
                "name": "t",
                "parameters": {"type": "object", "properties": {"x": {"type": "string", "default": "x" * 300_000}}},
            }
        )


def test_an_argument_may_be_called_type_where_properties_stand_alone() -> None:
    found = normalise_tool({"name": "t", "parameters": {"type": {"type": "str"}, "q": {"type": "int"}}}).parameters
    assert found["properties"] == {"type": {"type": "string"}, "q": {"type": "integer"}}


def test_deep_nesting_is_an_error_and_not_a_crash() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(300):
        schema = {"type": "object", "properties": {"x": schema}}
    with pytest.raises(ToolSchemaError, match="deeper than"):
        normalise_tool({"name": "t", "parameters": schema})


def test_references_that_multiply_are_an_error_and_not_a_hang() -> None:
    levels = {
        f"L{i}": {
            "type": "object",
            "properties": {"a": {"$ref": f"#/$defs/L{i + 1}"}, "b": {"$ref": f"#/$defs/L{i + 1}"}},
        }
        for i in range(20)
    }
    schema = {
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/L0"}},
        "$defs": {**levels, "L20": {"type": "string"}},
    }
    start = time.perf_counter()
    with pytest.raises(ToolSchemaError, match="more than 5,000 schemas"):
        normalise_tool({"name": "t", "parameters": schema})
    assert time.perf_counter() - start < 10


def of_steps(*steps: float) -> dict[str, Any]:
    kinds = [{"type": "number", "multipleOf": step} for step in steps]
    return {"name": "t", "parameters": {"type": "object", "properties": {"n": {"anyOf": kinds}}}}


@pytest.mark.parametrize("steps", [[5], [0.05, 0.25], [1_000_000], [1e20], [60, 3600]])
def test_steps_with_few_remainders_are_kept(steps: list[float]) -> None:
    kept = normalise_tool(of_steps(*steps)).parameters["properties"]["n"]
    assert [branch["multipleOf"] for branch in kept.get("anyOf", [kept])] == steps


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([412_191], "at most 10,000"),
        ([99_999_999], "at most 10,000"),  # more than 12 GB as a grammar
        ([997, 991], "at most 10,000"),
        ([0], "above 0"),
        ([-3], "above 0"),
        ([float("inf")], "above 0"),
        ([float("nan")], "above 0"),
    ],
)
def test_steps_that_would_fill_the_memory_are_an_error(steps: list[float], message: str) -> None:
    with pytest.raises(ToolSchemaError, match=message) as error:
        normalise_tool(of_steps(*steps))
    assert error.value.pointer.endswith(f"/properties/n/anyOf/{len(steps) - 1}/multipleOf")


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ([{"name": ""}], "name"),
        ([3], "expected a tool"),
        ("x", "array of tools"),
        ([{"name": "a"}, {"name": "a"}], "declared twice"),
    ],
)
def test_bad_tool_lists_say_what_is_wrong(tools: Any, message: str) -> None:
    with pytest.raises(ToolSchemaError, match=message):
        normalise_tools(tools)


def test_a_hostile_pattern_takes_linear_time() -> None:
    tools = (
        normalise_tool(
            {
                "name": "t",
                "parameters": {"type": "object", "properties": {"x": {"type": "string", "pattern": "^(a+)+b$"}}},
            }
        ),
    )
    start = time.perf_counter()
    assert call_errors(Call("t", {"x": "a" * 5000 + "c"}), tools)
    assert time.perf_counter() - start < 5


def test_calls_are_checked_against_their_tool() -> None:
    tools = (normalise_tool(DIALECTS[0]),)
    assert call_errors(Call("w", {"city": "Paris"}), tools) == []
    assert "no tool is called 'v'" in call_errors(Call("v"), tools)[0]
    assert "required" in call_errors(Call("w"), tools)[0]
    assert call_errors(Call("w", {"city": "Paris", "zip": 1}), tools)
