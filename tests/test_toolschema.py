"""The normaliser: every dialect ends in the same tool, and what can't be supported names its place."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from needle.text.declarations import normalise_tool, normalise_tools
from needle.text.records import Call, ToolSchemaError
from needle.text.validity import call_errors

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


def checked(*checks: dict[str, Any]) -> dict[str, Any]:
    return {"if": True, "then": {"allOf": list(checks)}}


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
            {
                "type": "array",
                "items": {"type": "string", "enum": ["a", "b"]},
                **checked({"oneOf": [{"type": "array", "items": {"type": "string", "enum": [c]}} for c in "ab"]}),
            },
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
            {
                "anyOf": [
                    {"type": "string", "maxLength": 9, "format": "date"},
                    {"type": "string", "minLength": 2, "maxLength": 9},
                ]
            },
        ),
        (
            {
                "type": "object",
                "properties": {"id": {"type": "integer"}, "name": {"type": "string"}},
                "anyOf": [{"required": ["id"]}, {"required": ["name"]}],
            },
            {
                "type": "object",
                "properties": {"id": {"type": "integer"}, "name": {"type": "string"}},
                "required": [],
                "additionalProperties": False,
                **checked({"anyOf": [{"required": ["id"]}, {"required": ["name"]}]}),
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
        ({"type": "object", "properties": []}, "/parameters", "JSON Schema|argument name|expected"),
        ({"type": "array", "items": {}}, "/parameters/type", "are an object"),
        ("x", "/parameters", "JSON Schema object"),
        (
            {"type": "object", "properties": {"x": {"$ref": "#/$defs/Adress"}}, "$defs": {"Address": {}}},
            "/parameters/properties/x/$ref",
            "did you mean 'Address'",
        ),
        ({"type": "object", "properties": {"x": {"not": {}}}, "required": ["x"]}, "/parameters", "no arguments can"),
        (
            {"type": "object", "properties": {"x": {"multipleOf": 0}}},
            "/parameters/properties/x/multipleOf",
            "above 0",
        ),
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


def levels(schema: Any, name: str) -> int:
    """How deep an argument is declared inside itself."""
    if isinstance(schema, list):
        return max((levels(one, name) for one in schema), default=0)
    if not isinstance(schema, dict):
        return 0
    return max((levels(own, name) + (key == name and isinstance(own, dict)) for key, own in schema.items()), default=0)


TREE = {"type": "object", "properties": {"label": {"type": "string"}, "parts": {"items": {"$ref": "#/$defs/Tree"}}}}


def test_a_recursive_schema_is_opened_three_levels_deep() -> None:
    schema = {"type": "object", "properties": {"tree": {"$ref": "#/$defs/Tree"}}, "$defs": {"Tree": TREE}}
    tool = normalise_tool({"name": "t", "parameters": schema})
    assert levels(tool.parameters, "parts") == 3
    deep: dict[str, Any] = {"label": "leaf"}
    for _ in range(6):
        deep = {"label": "a", "parts": [deep]}
    assert call_errors(Call("t", {"tree": deep}), (tool,)) == []
    assert call_errors(Call("t", {"tree": {"label": 3}}), (tool,))


@pytest.mark.parametrize("count", [2, 4, 12])
def test_schemas_that_all_know_each_other_come_to_an_end(count: int) -> None:
    names = [f"S{number}" for number in range(count)]
    every = {name: {"type": "object", "properties": {n: {"$ref": f"#/$defs/{n}"} for n in names}} for name in names}
    schema = {"type": "object", "properties": {"x": {"$ref": "#/$defs/S0"}}, "$defs": every}
    start = time.perf_counter()
    tool = normalise_tool({"name": "t", "parameters": schema})
    assert time.perf_counter() - start < 10
    assert tool.parameters["properties"]["x"]["properties"].keys() == set(names)


def test_references_of_unions_that_go_in_circles_stand_for_anything() -> None:
    schema = {
        "type": "object",
        "properties": {"x": {"anyOf": [{"$ref": "#/$defs/A"}]}},
        "$defs": {"A": {"anyOf": [{"$ref": "#/$defs/A"}]}},
    }
    assert normalise_tool({"name": "t", "parameters": schema}).parameters["properties"] == {"x": {}}


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


def test_references_that_multiply_are_cut_and_not_a_hang() -> None:
    chain = {
        f"L{i}": {
            "type": "object",
            "properties": {"a": {"$ref": f"#/$defs/L{i + 1}"}, "b": {"$ref": f"#/$defs/L{i + 1}"}},
        }
        for i in range(20)
    }
    schema = {
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/L0"}},
        "$defs": {**chain, "L20": {"type": "string"}},
    }
    start = time.perf_counter()
    tool = normalise_tool({"name": "t", "parameters": schema})
    assert time.perf_counter() - start < 10
    assert 1 < levels(tool.parameters, "a") < 20


def test_more_schemas_than_a_tool_may_have_are_an_error() -> None:
    wide = {f"x{number}": {"type": "string"} for number in range(6000)}
    with pytest.raises(ToolSchemaError, match="more than 5,000 schemas"):
        normalise_tool({"name": "t", "parameters": {"type": "object", "properties": wide}})


def of_steps(*steps: float) -> dict[str, Any]:
    kinds = [{"type": "number", "multipleOf": step} for step in steps]
    return {"name": "t", "parameters": {"type": "object", "properties": {"n": {"anyOf": kinds}}}}


@pytest.mark.parametrize("steps", [[5], [0.05, 0.25], [1_000_000], [1e20], [60, 3600], [412_191], [99_999_999]])
def test_steps_of_numbers_are_kept(steps: list[float]) -> None:
    kept = normalise_tool(of_steps(*steps)).parameters["properties"]["n"]
    assert [branch["multipleOf"] for branch in kept.get("anyOf", [kept])] == steps


@pytest.mark.parametrize("step", [0, -3, float("inf"), float("nan")])
def test_steps_that_are_none_are_an_error(step: float) -> None:
    with pytest.raises(ToolSchemaError, match="above 0|that JSON has") as error:
        normalise_tool(of_steps(step))
    assert error.value.pointer.endswith("/properties/n/anyOf/0/multipleOf")


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "array", "items": {"type": "string"}, "contains": {"const": "a"}}, ["a", "b"], ["b"]),
        ({"type": "array", "contains": {"const": 1}, "maxContains": 1}, [1, 2], [1, 1]),
        ({"type": "string", "not": {"enum": ["none"]}}, "some", "none"),
        (
            {"type": "object", "properties": {"a": {}, "b": {}}, "dependentRequired": {"a": ["b"]}},
            {"a": 1, "b": 2},
            {"a": 1},
        ),
        (
            {"type": "object", "properties": {"a": {}, "b": {}}, "dependencies": {"a": ["b"]}},
            {"b": 1},
            {"a": 1},
        ),
        (
            {
                "type": "object",
                "properties": {"kind": {"type": "string"}, "size": {"type": "integer"}},
                "if": {"properties": {"kind": {"const": "box"}}},
                "then": {"required": ["size"]},
            },
            {"kind": "bag"},
            {"kind": "box"},
        ),
        ({"type": "object", "propertyNames": {"pattern": "^x"}}, {"x1": 1}, {"y": 1}),
        (
            {"type": "object", "patternProperties": {"^.*$": {"type": "integer"}}},
            {"anything": 1},
            {"anything": "text"},
        ),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, {"a": 1}, {"a": "x"}),
        ({"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "string"}}, [1, "a"], [1, 2]),
        ({"type": "array", "items": [{"type": "integer"}], "additionalItems": False}, [1], [1, 2]),
        ({"allOf": [{"type": "string"}, {"minLength": 2}]}, "ab", "a"),
        ({"allOf": [{"type": "number", "minimum": 2}, {"maximum": 4}]}, 3, 5),
        ({"allOf": [{"pattern": "a"}, {"pattern": "b"}], "type": "string"}, "ab", "a"),
        ({"type": "string", "pattern": "^(?=.*[0-9]).{3,}$"}, "ab1", "abc"),
        ({"type": "string", "pattern": "(?i)^abc$"}, "ABC", "abd"),
        ({"type": "string", "pattern": r"\Aabc\z"}, "abc", "abcd"),
        ({"type": "string", "format": "date"}, "2026-03-05", "tomorrow"),
        ({"type": "string", "format": "time"}, "18:30", "half past six"),
        ({"type": "string", "format": "date-time"}, "2026-03-05T18:30", "2026-03-05"),
        ({"type": "string", "format": "uuid"}, "6f1f8b5e-0d5b-4a3c-9a57-2b1a3f1c9d10", "6f1f"),
        ({"type": "string", "format": "email"}, "a@example.org", "a at example"),
        ({"type": "string", "format": "uri"}, "https://example.org", "example"),
        ({"type": "string", "format": "ip"}, "10.0.0.1", "10.0.0.999"),
        ({"type": "string", "format": "duration"}, "PT20M", "20 minutes"),
        ({"enum": ["a", 1], "not": {"const": 1}}, "a", 1),
        (
            {
                "oneOf": [
                    {"type": "object", "properties": {"do": {"const": "add"}, "what": {}}, "required": ["do", "what"]},
                    {"type": "object", "properties": {"do": {"const": "drop"}, "id": {}}, "required": ["do", "id"]},
                ]
            },
            {"do": "drop", "id": 3},
            {"do": "add", "id": 3},
        ),
        ({"allOf": [{"enum": ["a", "b"]}, {"const": "b"}]}, "b", "a"),
        ({"enum": ["a", "b", 1], "anyOf": [{"type": "string"}, {"type": "boolean"}]}, "a", 1),
        (
            {"anyOf": [{"type": "string"}, {"type": "integer"}], "oneOf": [{"type": "integer"}, {"type": "boolean"}]},
            1,
            True,
        ),
        ({"oneOf": [{"type": "number", "minimum": 0}, {"type": "number", "maximum": 2}]}, 3, 1),
        ({"oneOf": [{"enum": ["a", "b"]}, {"enum": ["b"]}]}, "a", "b"),
        ({"allOf": [{"contains": {"const": 1}}, {"contains": {"const": 2}}], "type": "array"}, [1, 2], [1]),
        ({"type": "array", "prefixItems": [{"type": "integer"}], "unevaluatedItems": False}, [1], [1, 2]),
        (
            {
                "type": "object",
                "patternProperties": {"^a": {"type": "integer"}},
                "additionalProperties": {"type": "string"},
            },
            {"a": 1, "b": "x"},
            {"a": "x"},
        ),
        ({"type": "string", "pattern": r"\A\d+\Z"}, "12", "1x"),
        ({"type": "string", "format": "date"}, "2026-03-05", "20260305"),
        ({"type": "string", "format": "duration"}, "PT1.5S", "P"),
        ({"$ref": "#/properties/other/anyOf/0"}, 5, "x"),
        ({"$ref": "#/$defs/Mode%5Bstr%5D"}, "fast", "slow"),
        ({"$ref": "#mode"}, "fast", "slow"),
        ({"type": "string", "enumDescriptions": ["x"], "markdownDescription": "y", "x-order": 1}, "a", 1),
    ],
)
def test_what_can_not_be_asked_for_is_checked_on_the_answer(schema: Any, good: Any, bad: Any) -> None:
    other = {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    defs = {"Mode[str]": {"enum": ["fast"]}, "Named": {"$anchor": "mode", "enum": ["fast"]}}
    declared = {"type": "object", "properties": {"x": schema, "other": other}, "$defs": defs}
    tool = normalise_tool({"name": "t", "parameters": declared})
    assert call_errors(Call("t", {"x": good}), (tool,)) == []
    assert call_errors(Call("t", {"x": bad}), (tool,)) != []
    assert normalise_tool(tool.to_json()).declared == tool.declared


CONDITIONAL = {"if": {"properties": {"mode": {"const": "b"}}}, "then": {"properties": {"n": {}}, "required": ["n"]}}
KINDS = [{"anyOf": [{"properties": {name: {}}, "required": [name]} for name in pair]} for pair in ("ab", "cd")]


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"properties": {"mode": {}}, **CONDITIONAL}, {"mode": "b", "n": 1}, {"mode": "b"}),
        ({"properties": {"mode": {}}, "allOf": [CONDITIONAL]}, {"mode": "b", "n": 1}, {"mode": "b"}),
        (
            {"properties": {"cc": {}}, "dependencies": {"cc": {"properties": {"addr": {}}, "required": ["addr"]}}},
            {"cc": 1, "addr": 2},
            {"cc": 1},
        ),
        ({"type": "object", "allOf": KINDS}, {"a": 1, "c": 2}, {"a": 1}),
    ],
)
def test_members_that_only_a_condition_declares_may_be_given(schema: Any, good: Any, bad: Any) -> None:
    tool = normalise_tool({"name": "t", "parameters": {"type": "object", **schema}})
    assert call_errors(Call("t", good), (tool,)) == []
    assert call_errors(Call("t", bad), (tool,)) != []
    assert normalise_tool(tool.to_json()).declared == tool.declared


@pytest.mark.parametrize(
    ("schema", "members"),
    [
        ({"allOf": [BASE, {"properties": {"id": {"type": "integer"}}}]}, {"name", "id"}),
        ({"anyOf": [BASE, {"type": "object", "properties": {"id": {"type": "integer"}}}]}, {"name", "id"}),
        (
            {"properties": {"name": {}, "id": {}}, "anyOf": [{"required": ["name"]}, {"required": ["id"]}]},
            {"name", "id"},
        ),
        ({"type": ["object", "null"], "properties": {"name": {}}}, {"name"}),
        ({"properties": {"name": {}, "gone": None, "never": False}}, {"name"}),
        ({"$ref": "#/$defs/Args", "$defs": {"Args": BASE}}, {"name"}),
        ({"type": "object", "required": ["unsaid"], "properties": {"name": {}}}, {"name", "unsaid"}),
    ],
)
def test_the_arguments_of_a_tool_may_be_said_in_any_way(schema: Any, members: set[str]) -> None:
    assert set(normalise_tool({"name": "t", "parameters": schema}).parameters["properties"]) == members


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ([{"name": ""}], "name"),
        ([3], "expected a tool"),
        ("x", "array of tools"),
        ([{"name": "a"}, {"name": "a", "description": "other"}], "declared twice"),
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
