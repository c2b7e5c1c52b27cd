"""What the data engine is told and plans: catalogue, plan, requests of the user's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from needle.collect.asks import label_ask, read_requests, read_values, value_asks, write_ask
from needle.collect.catalogue import read_catalogue, unseen_families
from needle.collect.openapi import read_yaml
from needle.collect.plan import CALLED, KINDS, MISSING, NEAR_MISS, NONE, Planner
from needle.collect.run import read_requests as read_request_file
from needle.collect.services.hosted import Reply
from needle.text.records import DataError, Tool
from needle.text.validity import call_errors

# Catalogue

OPENAPI = """
openapi: 3.0.0
paths:
  /pets/{id}:
    parameters: [{name: id, in: path, required: true, schema: {type: integer}}]
    get:
      operationId: getPet
      summary: Finds a pet.
      tags: [pets]
      parameters:
        - {name: verbose, in: query, schema: {type: boolean}}
        - {name: X-Trace, in: header, schema: {type: string}}
    put:
      summary: Changes a pet
      requestBody: {content: {application/json: {schema: {$ref: '#/components/schemas/Change'}}}}
components:
  schemas:
    Named: {type: object, required: [name], properties: {name: {type: string, example: Rex}}}
    Change:
      allOf:
        - {$ref: '#/components/schemas/Named'}
        - {type: object, properties: {tag: {type: string, enum: [cat, dog]}}}
"""
MODULE = '''
from typing import Literal, Optional

def book_table(people: int, place: str, when: Optional[str] = None, mood: Literal["quiet", "lively"] = "quiet") -> str:
    """Books a table.

    Args:
        people: how many come
        place: the restaurant
    """
    return ""

def _hidden(x: int) -> None: ...

def weather(city: str):
    """Tells the weather."""
'''
PLAIN = {
    "name": "play",
    "description": "Plays music",
    "parameters": {"type": "object", "properties": {"song": {"type": "string", "description": "what to play"}}},
}


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("tools.json", json.dumps([PLAIN]), ["play"]),
        ("tools.json", json.dumps([{"type": "function", "function": PLAIN}]), ["play"]),
        (
            "tools.json",
            json.dumps(
                {"jsonrpc": "2.0", "id": 1, "result": {"tools": [{"name": "play", "inputSchema": PLAIN["parameters"]}]}}
            ),
            ["play"],
        ),
        ("tools.json", json.dumps([{"functionDeclarations": [PLAIN, {**PLAIN, "name": "stop"}]}]), ["play", "stop"]),
        ("tools.jsonl", json.dumps(PLAIN) + "\n" + json.dumps({**PLAIN, "name": "stop"}), ["play", "stop"]),
        ("api.yaml", OPENAPI, ["getPet", "put_pets_id"]),
        ("mine.py", MODULE, ["book_table", "weather"]),
    ],
)
def test_tools_are_read_from_whatever_they_are_declared_in(
    tmp_path: Path, name: str, content: str, names: list[str]
) -> None:
    (tmp_path / name).write_text(content)
    sources, findings = read_catalogue(tmp_path / name)
    assert [source.tool.name for source in sources] == names
    assert not [finding for finding in findings if finding.error]


def test_an_openapi_operation_and_a_function_keep_what_they_say(tmp_path: Path) -> None:
    (tmp_path / "api.yaml").write_text(OPENAPI)
    get, put = (source.tool for source in read_catalogue(tmp_path / "api.yaml")[0])
    assert get.description == "Finds a pet."
    assert list(get.parameters["properties"]) == ["id", "verbose"]
    assert get.parameters["required"] == ["id"]
    assert list(put.parameters["properties"]) == ["id", "name", "tag"]
    assert put.parameters["required"] == ["id", "name"]
    (tmp_path / "mine.py").write_text(MODULE)
    book = read_catalogue(tmp_path / "mine.py")[0][0].tool
    assert book.description == "Books a table."
    assert book.parameters["properties"]["people"] == {"type": "integer", "description": "how many come"}
    assert book.parameters["properties"]["mood"]["enum"] == ["quiet", "lively"]
    assert book.parameters["required"] == ["people", "place"]


def api(paths: dict[str, Any], **rest: Any) -> str:
    return json.dumps({"openapi": "3.0.3", "info": {"title": "T", "version": "1"}, "paths": paths, **rest})


def posting(schema: Any, kind: str = "application/json", **rest: Any) -> dict[str, Any]:
    return {"post": {"operationId": "do", "requestBody": {"content": {kind: {"schema": schema}}}, **rest}}


def read_api(tmp_path: Path, text: str, name: str = "api.json") -> tuple[dict[str, Any], list[str]]:
    (tmp_path / name).write_text(text)
    sources, findings = read_catalogue(tmp_path / name)
    said = [str(finding) for finding in findings if "no description" not in finding.message]
    return {source.tool.name: source.tool.parameters for source in sources}, said


TEXT, NUMBER = {"type": "string"}, {"type": "integer"}


def test_operations_of_one_name_get_names_of_their_own(tmp_path: Path) -> None:
    named = {"get": {"operationId": "search", "parameters": [{"name": "q", "in": "query", "schema": TEXT}]}}
    tools, said = read_api(tmp_path, api({"/a": named, "/b": {"get": {"operationId": "search"}}, "/a-b": {"get": {}},
                                          "/a_b": {"get": {}}}))  # fmt: skip
    assert list(tools) == ["search", "search_2", "get_a_b", "get_a_b_2"]
    assert ["'search_2'" in said[0], "'get_a_b_2'" in said[1]] == [True, True]


def test_arguments_of_one_name_in_path_and_body_are_kept_apart(tmp_path: Path) -> None:
    row = {"name": "id", "in": "path", "required": True, "schema": TEXT}
    body = {"type": "object", "properties": {"id": NUMBER, "name": TEXT}, "required": ["id"]}
    tools, said = read_api(tmp_path, api({"/u/{id}": posting(body, parameters=[row])}))
    assert {name: schema["type"] for name, schema in tools["do"]["properties"].items()} == {
        "id": "string", "body_id": "integer", "name": "string",
    }  # fmt: skip
    assert tools["do"]["required"] == ["id", "body_id"]
    assert "'body_id'" in said[0]


def test_schemas_that_know_each_other_are_cut_and_missing_ones_said(tmp_path: Path) -> None:
    names = [f"S{number}" for number in range(6)]
    schemas = {
        name: {"type": "object", "properties": {n: {"$ref": f"#/components/schemas/{n}"} for n in names}}
        for name in names
    }
    paths = {"/s": posting({"$ref": "#/components/schemas/S0"}), "/gone": posting({"$ref": "#/components/schemas/No"})}
    paths["/gone"]["post"]["operationId"] = "gone"
    tools, said = read_api(tmp_path, api(paths, components={"schemas": schemas}))
    assert list(tools) == ["do"]
    assert set(tools["do"]["properties"]) == set(names)
    assert ["points at nothing" in one for one in said if one.startswith("error: api.json/paths/~1gone")] == [True]


@pytest.mark.parametrize(
    "kind", ["application/json", "application/vnd.api+json", "multipart/form-data", "text/csv", "application/xml"]
)
def test_every_kind_of_body_is_taken(tmp_path: Path, kind: str) -> None:
    body = {"type": "object", "properties": {"name": TEXT}}
    assert list(read_api(tmp_path, api({"/a": posting(body, kind)}))[0]["do"]["properties"]) == ["name"]
    assert list(read_api(tmp_path, api({"/a": posting(TEXT, kind)}))[0]["do"]["properties"]) == ["body"]


def test_what_is_only_read_is_no_argument_and_path_items_may_be_references(tmp_path: Path) -> None:
    body = {
        "type": "object",
        "properties": {"id": {**NUMBER, "readOnly": True}, "at": {"$ref": "#/components/schemas/At"}, "name": TEXT},
        "required": ["id", "name"],
    }
    filter_ = {"name": "filter", "in": "query", "content": {"application/json": {"schema": {"type": "object",
        "properties": {"tag": TEXT}}}}}  # fmt: skip
    shared = {
        "pathItems": {"Thing": posting(body, parameters=[filter_])},
        "schemas": {"At": {**TEXT, "readOnly": True}},
    }
    tools, _ = read_api(tmp_path, api({"/a": {"$ref": "#/components/pathItems/Thing"}}, components=shared))
    assert set(tools["do"]["properties"]) == {"filter", "name"}
    assert tools["do"]["required"] == ["name"]
    assert tools["do"]["properties"]["filter"]["properties"] == {"tag": TEXT}


def test_swagger_2_has_its_forms_and_bodies_read(tmp_path: Path) -> None:
    form = [
        {"name": "code", "in": "formData", "type": "string", "required": True, "description": "invite code"},
        {"name": "size", "in": "formData", "type": "integer", "maximum": 9, "x-order": 1},
        {"name": "file", "in": "formData", "type": "file"},
        {"name": "key", "in": "header", "type": "string"},
    ]
    body = [{"name": "user", "in": "body", "schema": {"$ref": "#/definitions/User"}}]
    document = {
        "swagger": "2.0",
        "paths": {"/a": {"post": {"operationId": "a", "parameters": form}},
            "/b": {"post": {"operationId": "b", "parameters": body}}},
        "definitions": {"User": {"type": "object", "properties": {"name": TEXT}}},
    }  # fmt: skip
    tools, _ = read_api(tmp_path, json.dumps(document))
    assert {name: schema["type"] for name, schema in tools["a"]["properties"].items()} == {
        "code": "string", "size": "integer", "file": "string",
    }  # fmt: skip
    assert tools["a"]["required"] == ["code"]
    assert tools["b"]["properties"] == {"name": TEXT}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        *(("[on, off, yes, no]", ["on", "off", "yes", "no"]), ("[GB, NO, SE]", ["GB", "NO", "SE"])),
        *(("[12:30, 7:05]", ["12:30", "7:05"]), ("[010, 007]", ["010", "007"]), ("[1.10, 2.0.1]", ["1.10", "2.0.1"])),
        *(("[2026-01-31]", ["2026-01-31"]), ("[0x1F, 1_000]", ["0x1F", "1_000"])),
    ],
)
def test_words_of_yaml_stay_what_they_look_like(tmp_path: Path, written: str, read: list[str]) -> None:
    schema = f"{{type: string, enum: {written}}}"
    operation = f"{{operationId: a, parameters: [{{name: x, in: query, schema: {schema}}}]}}"
    text = f"openapi: 3.0.3\npaths: {{/a: {{get: {operation}}}}}\n"
    assert read_api(tmp_path, text, "api.yaml")[0]["a"]["properties"]["x"]["enum"] == read
    assert read_yaml("[1, -2, 1.5, 1e3, true, null, ~, '1']") == [1, -2, 1.5, 1000.0, True, None, None, "1"]


@pytest.mark.parametrize(
    ("schema", "read"),
    [
        ("{type: string, enum: [1.0, 1.10, 2]}", {"enum": ["1.0", "1.10", "2"], "type": "string"}),
        ("{type: number, default: 1.50, multipleOf: .01}", {"default": 1.5, "multipleOf": 0.01, "type": "number"}),
    ],
)
def test_values_of_yaml_are_of_the_type_that_is_declared(tmp_path: Path, schema: str, read: dict[str, Any]) -> None:
    operation = f"{{operationId: a, parameters: [{{name: x, in: query, schema: {schema}}}]}}"
    tools, _ = read_api(tmp_path, f"openapi: 3.0.3\npaths: {{/a: {{get: {operation}}}}}\n", "api.yaml")
    assert tools["a"]["properties"]["x"] == read


def test_a_default_tells_the_type_that_no_hint_does(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text('def volume(room, level=3, loud=False, near=0.5, note=None):\n    "Set it."\n')
    (source,) = read_catalogue(tmp_path / "m.py")[0]
    kinds = {name: schema.get("type") for name, schema in source.tool.parameters["properties"].items()}
    assert kinds == {"room": "string", "level": "integer", "loud": "boolean", "near": "number", "note": "string"}


SELF_CONTAINED = """
from __future__ import annotations
from dataclasses import dataclass
from pydantic import BaseModel
import beside

@dataclass
class Place:
    city: str

class Address(BaseModel):
    street: str

class BookRoom(BaseModel):
    "Book a room."
    where: Address

def play(song: str, _cache: dict = {}) -> None:
    "Play a song."
"""


def test_a_module_may_have_types_and_neighbours_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("x = 1")
    (tmp_path / "json.py").write_text(SELF_CONTAINED)
    sources, findings = read_catalogue(tmp_path / "json.py")
    names = {source.tool.name: list(source.tool.parameters["properties"]) for source in sources}
    assert names == {"Address": ["street"], "BookRoom": ["where"], "play": ["song"]}
    assert not [finding for finding in findings if finding.error]
    (tmp_path / "ends.py").write_text("raise SystemExit(2)")
    with pytest.raises(DataError, match="can't be imported: SystemExit"):
        read_catalogue(tmp_path / "ends.py")


def test_references_of_a_document_that_lead_nowhere_are_said(tmp_path: Path) -> None:
    gone = {"$ref": "#/components/parameters/none"}
    far = {"$ref": "./params.yaml#/x"}
    first = {"get": {"operationId": "first", "parameters": [{"name": "q", "in": "query", "schema": TEXT}]}}
    shared = {"get": {"operationId": "shared", "parameters": [{"$ref": "#/paths/~1a/get/parameters/0"}]}}
    paths = {
        "/a": first,
        "/b": shared,
        "/c": {"get": {"operationId": "c", "parameters": [gone]}},
        "/d": {"get": {"operationId": "d", "parameters": [far]}},
        "/e": {"$ref": "./e.yaml"},
        "/f": {"post": {"operationId": "f", "requestBody": "x"}},
    }
    tools, said = read_api(tmp_path, api(paths))
    assert {name: list(schema["properties"]) for name, schema in tools.items()} == {"first": ["q"], "shared": ["q"]}
    assert [one.split("/paths/~1")[1][0] for one in said if one.startswith("error: api.json")] == ["c", "d", "e", "f"]


def test_members_that_are_only_read_are_required_nowhere(tmp_path: Path) -> None:
    base = {"type": "object", "properties": {"id": {**NUMBER, "readOnly": True}, "name": TEXT}}
    body = {"allOf": [{"$ref": "#/components/schemas/Base"}, {"required": ["id", "name"]}]}
    (parameters,) = read_api(tmp_path, api({"/a": posting(body)}, components={"schemas": {"Base": base}}))[0].values()
    assert parameters["required"] == ["name"]
    assert list(parameters["properties"]) == ["name"]


def test_everything_wrong_with_the_tools_is_found_at_once_with_its_place(tmp_path: Path) -> None:
    broken = [
        PLAIN,
        {"name": "x", "parameters": {"type": "object", "properties": {"a": {"type": "strin"}}}},
        {**PLAIN, "description": "Plays something else"},
        {"name": "bare"},
    ]
    (tmp_path / "t.json").write_text(json.dumps(broken))
    sources, findings = read_catalogue(tmp_path / "t.json")
    assert [source.tool.name for source in sources] == ["play", "bare"]
    errors = [str(finding) for finding in findings if finding.error]
    assert errors[0].startswith("error: t.json/1/parameters/properties/a")
    assert "'play' is declared at t.json/0 already" in errors[1]
    assert [finding.where for finding in findings if not finding.error] == ["t.json/3/description"]
    (tmp_path / "odd.py").write_text("class Thing: ...\n\ndef fine(x: int): ...\n\ndef odd(x: Thing): ...\n")
    sources, findings = read_catalogue(tmp_path / "odd.py")
    assert [source.tool.name for source in sources] == ["fine"]
    assert [str(finding)[:40] for finding in findings if finding.error] == ["error: odd.py:odd: the type hints say no"]
    (tmp_path / "t.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="expected an array of tools"):
        read_catalogue(tmp_path / "t.json")
    (tmp_path / "bad.py").write_text("1 / 0")
    with pytest.raises(DataError, match="can't be imported: ZeroDivisionError"):
        read_catalogue(tmp_path / "bad.py")


# Plan


def test_a_plan_is_a_function_of_seed_and_number_and_its_calls_are_valid() -> None:
    sources, _ = read_catalogue(None)
    unseen = unseen_families(sources, 0)
    planner, again, another = (Planner(sources, unseen, seed, ["en", "de"], 10) for seed in (0, 0, 1))
    items = [planner.item(number) for number in range(600)]
    assert [again.item(number) for number in (599, 3)] == [items[599], items[3]]
    assert items[:20] != [another.item(number) for number in range(20)]
    hidden = {source.tool.name for source in sources if source.family in unseen}
    for item in items:
        names = [tool.name for tool in item.tools]
        assert 1 <= len(names) == len(set(names)) <= 10
        subjects = {tool.name for tool in item.subjects}
        for tool, call in zip(item.subjects, item.calls, strict=False):
            if item.kind != MISSING:
                assert call_errors(call, (tool,)) == [], item
            else:
                assert item.left_out in tool.parameters["required"]
                assert item.left_out not in call.arguments
        if item.kind in CALLED or item.kind == MISSING:
            assert subjects <= set(names)
        if item.kind == NEAR_MISS:
            assert not subjects & set(names)
        if item.kind in (NEAR_MISS, NONE):
            assert item.wanted == ()
        if item.split != "test":
            assert not hidden & (set(names) | subjects), "a tool of the test of unseen tools must not be shown before"
        assert item.unseen == bool(subjects & hidden)
    assert {item.kind for item in items} == set(KINDS)
    assert any(item.unseen for item in items)
    assert {item.language for item in items} == {"en", "de"}


def test_values_come_from_the_teacher_where_it_gave_allowed_ones() -> None:
    tool = Tool("book", "Books", {"type": "object", "properties": {"at": {"type": "string",
        "pattern": "^[0-9]{2}:[0-9]{2}$"}, "guests": {"type": "array", "items": {"type": "string"}},
        "mood": {"enum": ["a"]}}, "required": ["at", "guests"]})  # fmt: skip
    ((ask, _, open_),) = value_asks([tool], "m")
    assert list(open_) == ["at", "guests"]
    assert ask.schema is not None
    said = Reply("stop", text=json.dumps({"at": ["19:30", "half past"], "guests": ["Ann", "Ann", " Bo "], "more": []}))
    pools = read_values(said, tool, open_)
    assert pools == {("book", "at"): ["19:30"], ("book", "guests"): ["Ann", "Bo"]}
    from needle.collect.catalogue import Declared

    planner = Planner([Declared(tool, "", "book")], frozenset(), 0, ["en"], 3, pools)
    calls = [
        call
        for number in range(60)
        for call in planner.item(number).calls
        if "at" in call.arguments and "guests" in call.arguments
    ]
    assert {call.arguments["at"] for call in calls} == {"19:30"}
    assert {name for call in calls for name in call.arguments["guests"]} == {"Ann", "Bo"}


def test_who_labels_never_sees_the_plan() -> None:
    sources, _ = read_catalogue(None)
    item = next(
        item
        for number in range(100)
        if (item := Planner(sources, frozenset(), 0, ["en"], 6).item(number)).kind == "single" and len(item.tools) > 3
    )
    first, second = (label_ask("do it", item.tools, "m", sample) for sample in (0, 1))
    assert first.tools == item.tools
    assert sorted(tool.name for tool in second.tools) == sorted(tool.name for tool in item.tools)
    assert first.key != second.key
    assert item.persona in write_ask([item], "m").text
    assert item.persona not in first.text + first.system
    texts = read_requests(
        Reply(
            "stop",
            text='```json\n{"requests": [{"task": 1, "text": " b "}, {"task": 7, "text": "x"}, {"task": 0}]}\n```',
        ),
        3,
    )
    assert texts == [None, "b", None]


# Real requests


def test_requests_without_tools_are_offered_those_that_fit(tmp_path: Path) -> None:
    sources, _ = read_catalogue(None)
    (tmp_path / "r.jsonl").write_text(
        json.dumps({"query": "set an alarm for seven"})
        + "\n"
        + json.dumps({"id": "own", "query": "x", "tools": [PLAIN]})
        + "\n"
    )
    first, second = read_request_file(tmp_path / "r.jsonl", sources, 5, "en")
    assert len(first.tools) == 5
    assert "set_alarm" in {tool.name for tool in first.tools}
    assert [tool.name for tool in second.tools] == ["play"]
    (tmp_path / "r.txt").write_text("hello\n\nthere\n")
    assert [source.query for source in read_request_file(tmp_path / "r.txt", sources, 5, "en")] == ["hello", "there"]
    (tmp_path / "r.jsonl").write_text('{"text": 1}\n')
    with pytest.raises(DataError, match=r"r\.jsonl, line 1: field 'query'"):
        read_request_file(tmp_path / "r.jsonl", sources, 5, "en")
