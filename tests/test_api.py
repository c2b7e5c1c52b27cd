"""The front door: a released or own student in a few lines, tools in every shape, and nothing imported that isn't
needed."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from needle import Needle
from needle.text.declarations import read_tools
from needle.text.declare import declared
from needle.text.records import Call, ToolSchemaError

WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
HEAVY = ("hydra", "accelerate", "wandb", "faker", "matplotlib", "scipy")


def play_music(artist: str, shuffle: bool = False) -> None:
    """Play songs of an artist.

    Args:
        artist: who made the songs
        shuffle: whether to play them in any order
    """


class SetAlarm(BaseModel):
    """Set an alarm."""

    time: str = Field(description="when to ring")
    repeat: Literal["once", "daily"] = "once"


@pytest.fixture(scope="module")
def needle() -> Needle:
    return Needle()


def test_a_call_tells_its_arguments_and_where_in_the_request_they_stand(needle: Needle) -> None:
    request = "What is the weather in San Francisco?"
    answer = needle.call(request, [WEATHER])
    assert answer.calls == (Call("get_weather", {"city": "San Francisco"}),)
    assert answer.finish == "stop"
    assert 0.5 < answer.confidence <= 1
    ((start, end),) = answer.calls[0].sources["city"]
    assert request[start:end] == "San Francisco"


@pytest.mark.parametrize(
    ("request_", "values"),
    [
        ("  what's the weather   in  São Paulo, please", ["São Paulo"]),
        ("weather in Berlin and then weather in Rome", ["Berlin", "Rome"]),
        ("Oslo weather 🌧 in Oslo", ["Oslo"]),
    ],
)
def test_sources_are_characters_of_the_request_as_it_was_given(
    needle: Needle, request_: str, values: list[str]
) -> None:
    answer = needle.call(request_, [WEATHER])
    said = [call.arguments["city"] for call in answer.calls or ()]
    assert said == values
    for call in answer.calls or ():
        for start, end in call.sources["city"]:
            assert request_[start:end] == call.arguments["city"]


def test_a_function_a_model_and_every_dialect_declare_tools_alike() -> None:
    wrapped = {"type": "function", "function": {**WEATHER, "name": "wrapped"}}
    mcp = {"name": "mcp", "inputSchema": WEATHER["parameters"]}
    found = read_tools([WEATHER, wrapped, mcp, play_music, SetAlarm], declare=declared)
    tools = {tool.name: tool for tool in found.tools}
    assert list(tools) == ["get_weather", "wrapped", "mcp", "play_music", "SetAlarm"]
    assert tools["play_music"].description == "Play songs of an artist."
    assert tools["play_music"].parameters["required"] == ["artist"]
    assert tools["play_music"].parameters["properties"]["artist"]["description"] == "who made the songs"
    assert tools["SetAlarm"].description == "Set an alarm."
    assert tools["SetAlarm"].parameters["properties"]["repeat"]["enum"] == ["once", "daily"]


def test_a_typed_function_is_called_by_name(needle: Needle) -> None:
    answer = needle.call("play some music by Miles Davis", [play_music, SetAlarm])
    assert [call.name for call in answer.calls or ()] == ["play_music"]
    assert (answer.calls or ())[0].arguments["artist"] == "Miles Davis"


def test_what_is_no_tool_is_refused_with_its_place(needle: Needle) -> None:
    answer = needle.call("weather in Paris", [3, WEATHER])
    assert [(tool.index, tool.reason) for tool in answer.skipped] == [(0, "/0: expected a tool as an object, got int")]
    assert [call.arguments for call in answer.calls or ()] == [{"city": "Paris"}]
    with pytest.raises(ToolSchemaError, match="/1: expected a tool as an object, got int"):
        needle.call("x", [WEATHER, 3], strict=True)


def said_about(needle: Needle, request: str, schema: dict[str, Any], **options: Any) -> Any:
    minutes = {"type": "integer", "description": "minutes", **schema}
    schema = {"type": "object", "properties": {"minutes": minutes}}
    timer = {"name": "set_timer", "description": "Set a timer", "parameters": schema}
    return needle.call(request, [timer], **options)


@pytest.mark.parametrize(
    ("request_", "schema"),
    [
        ("set a timer for 180 minutes", {"maximum": 100}),
        ("set a timer for 5 minutes", {"minimum": 10}),
        ("set a timer for 2.5 minutes", {}),
        ("set a timer for 7 minutes", {"multipleOf": 5}),
        pytest.param(
            "set a timer for 7 minutes",
            {"enum": [1, 2, 3]},
            marks=pytest.mark.xfail(strict=True, reason="the released student answers 3; its card says so"),
        ),
    ],
)
def test_a_value_that_does_not_fit_is_said_and_never_made_to(
    needle: Needle, request_: str, schema: dict[str, Any]
) -> None:
    answer = said_about(needle, request_, schema)
    assert (answer.finish, answer.calls) == ("invalid", None)
    assert answer.error.startswith("/minutes: ")
    left = said_about(needle, request_, schema, omit=True)
    assert [(call.name, call.arguments) for call in left.calls] == [("set_timer", {})]
    assert left.left_out == (answer.error,)


def test_many_requests_are_answered_in_their_order_and_one_that_is_too_long_alone_is_refused(needle: Needle) -> None:
    requests = ["weather in Paris", "word " * 5000, "weather in Madrid"]
    answers = needle.call_many(requests, [WEATHER])
    assert [answer.finish for answer in answers] == ["stop", "refused", "stop"]
    assert [call.arguments["city"] for answer in answers for call in answer.calls or ()] == ["Paris", "Madrid"]


def test_threads_may_share_one_student(needle: Needle) -> None:
    cities = ["Paris", "Madrid", "Vienna", "Lisbon"] * 3
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda city: needle.call(f"what's the weather in {city}", [WEATHER]), cities))
    assert [(answer.calls or ())[0].arguments["city"] for answer in answers] == cities


def test_importing_the_package_loads_no_room_and_what_answers_needs_no_framework() -> None:
    program = f"""
import sys
import needle
assert not [name for name in sys.modules if name.startswith("needle.")], "import needle must not import its rooms"
import needle.api, needle.cli.serve, needle.serve.app
found = [name for name in {HEAVY!r} if name in sys.modules]
assert not found, found
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
