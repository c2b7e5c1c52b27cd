"""Other people's clients by an address alone: OpenAI's and Ollama's, unchanged."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import ollama
import openai
import pytest
import uvicorn
from pydantic import BaseModel

from needle.engine.decode import Answer, Request
from needle.engine.open import open_engine
from needle.serve.app import create_app
from needle.serve.desk import ServeConfig
from needle.text.records import Call, Missing, Record

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}


class Parrot:
    """Stands in for an engine: it calls the first tool for every city that is named, and says what it was asked."""

    def __init__(self, exported: Path) -> None:
        real = open_engine(exported, backend="onnx")
        self.renderer, self.calibration = real.renderer, None
        self.model, self.backend = real.model, real.backend
        self.asked: list[Request] = []

    def answer_one(self, asked: Request, max_tokens: int) -> Answer:
        self.asked.append(asked)
        if max_tokens == 1:
            return Answer(None, 0.0, "length", 1)
        if "where?" in asked.query:
            return Answer((), 0.9, "stop", 2, missing=(Missing("get_weather", ("city",)),))
        cities = [word for word in ("Oslo", "Rome") if word in asked.query]
        if not cities and not asked.required:
            return Answer((), 0.9, "stop", 1)
        tool = asked.tools[0]
        own = [name for name, one in tool.parameters.get("properties", {}).items() if one.get("type") == "string"][:1]
        calls = tuple(Call(tool.name, dict.fromkeys(own, city)) for city in cities or ["somewhere"])
        sure = tuple(0.9 for _ in calls)
        parts = tuple(dict.fromkeys(own, 0.9) for _ in calls)
        return Answer(calls, 0.8, "stop", 6, call_confidence=sure, argument_confidence=parts)


@pytest.fixture(scope="module")
def served(exported: Path) -> Iterator[tuple[Parrot, str]]:
    parrot = Parrot(exported)
    app = create_app(parrot, ServeConfig())  # type: ignore[arg-type]
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield parrot, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def client(served: tuple[Parrot, str]) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served[1]}/v1", api_key="none", max_retries=0, _strict_response_validation=True)


def said(text: str) -> list[Any]:
    return [{"role": "system", "content": "You are an assistant."}, {"role": "user", "content": text}]


# OpenAI, chat completions


def test_a_call_comes_as_openai_has_it(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(model="gpt-4o", messages=said("weather in Oslo"), tools=[WEATHER])  # type: ignore[list-item]
    (choice,) = made.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls or ()
    assert call.id.startswith("call_")
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Oslo"})  # type: ignore[union-attr]
    assert made.usage
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens
    assert made.usage.prompt_tokens > 5
    assert made.model_extra
    assert made.model_extra["needle"]["confidence"] == 0.8


def test_several_calls_or_one_where_one_is_wanted(client: openai.OpenAI) -> None:
    wanted: Any = {"model": "m", "messages": said("weather in Oslo and Rome"), "tools": [WEATHER]}
    both = client.chat.completions.create(**wanted).choices[0].message.tool_calls
    assert [json.loads(call.function.arguments)["city"] for call in both] == ["Oslo", "Rome"]
    assert len({call.id for call in both}) == 2
    one = client.chat.completions.create(**wanted, parallel_tool_calls=False).choices[0].message.tool_calls
    assert len(one) == 1


@pytest.mark.parametrize(
    ("text", "choice", "called"),
    [
        ("hello", "auto", None),
        ("hello", "required", "get_weather"),
        ("weather in Oslo", "none", None),
        ("hello", {"type": "function", "function": {"name": "get_time"}}, "get_time"),
        ("hello", {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [CLOCK]}}, "get_time"),
    ],
)
def test_the_choice_of_tools_is_the_clients(client: openai.OpenAI, text: str, choice: Any, called: str | None) -> None:
    wanted: Any = {"model": "m", "messages": said(text), "tools": [WEATHER, CLOCK], "tool_choice": choice}
    message = client.chat.completions.create(**wanted).choices[0].message
    assert (message.tool_calls[0].function.name if message.tool_calls else None) == called
    assert (message.content is None) == bool(called)


def test_a_stream_is_put_together_to_the_same(client: openai.OpenAI) -> None:
    wanted: Any = {"model": "m", "messages": said("weather in Oslo and Rome"), "tools": [WEATHER]}
    chunks = list(client.chat.completions.create(**wanted, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "tool_calls"
    assert not chunks[-2].choices[0].delta.tool_calls
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 6)
    found: dict[int, list[str]] = {}
    for chunk in chunks:
        for call in (chunk.choices and chunk.choices[0].delta.tool_calls) or ():
            parts = found.setdefault(call.index, ["", ""])
            parts[0] += (call.function and call.function.name) or ""
            parts[1] += (call.function and call.function.arguments) or ""
    assert found == {0: ["get_weather", '{"city": "Oslo"}'], 1: ["get_weather", '{"city": "Rome"}']}
    with client.chat.completions.stream(**wanted) as stream:
        final = stream.get_final_completion()
    assert [call.function.name for call in final.choices[0].message.tool_calls or ()] == ["get_weather"] * 2
    text = [
        c.choices[0].delta.content
        for c in client.chat.completions.create(**{**wanted, "messages": said("hi")}, stream=True)
    ]
    assert "".join(part or "" for part in text) == ServeConfig().no_call


def test_a_history_is_answered_to_its_last_turn(client: openai.OpenAI, served: tuple[Parrot, str]) -> None:
    called: Any = {"role": "assistant", "content": None, "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    ]}  # fmt: skip
    history = [
        *said("weather in Rome"),
        called,
        {"role": "tool", "tool_call_id": "call_1", "content": "rain, 12 degrees"},
    ]
    wanted: Any = {"model": "m", "tools": [WEATHER]}
    ended = client.chat.completions.create(**wanted, messages=history).choices[0]
    assert (ended.message.content, ended.finish_reason) == ("rain, 12 degrees", "stop")
    parts = [{"type": "text", "text": "and in"}, {"type": "text", "text": "Oslo"}]
    again = [*history, {"role": "assistant", "content": "Rain."}, {"role": "user", "content": parts}]
    message = client.chat.completions.create(**wanted, messages=again).choices[0].message
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Oslo"}
    assert served[0].asked[-1].query == "and in\nOslo"


def test_what_is_missing_is_asked_for_and_length_is_said(client: openai.OpenAI) -> None:
    wanted: Any = {"model": "m", "tools": [WEATHER]}
    message = client.chat.completions.create(**wanted, messages=said("weather where?")).choices[0].message
    assert message.content == "Please tell me: city (for get_weather)."
    cut = client.chat.completions.create(**wanted, messages=said("weather in Oslo"), max_completion_tokens=1).choices[0]
    assert cut.finish_reason == "length"


def test_a_wanted_shape_is_given_as_json(client: openai.OpenAI, served: tuple[Parrot, str]) -> None:
    class Place(BaseModel):
        city: str

    made = client.chat.completions.parse(model="m", messages=said("I live in Oslo"), response_format=Place)
    assert made.choices[0].message.parsed == Place(city="Oslo")
    assert served[0].asked[-1].required


def test_log_probabilities_are_how_sure_each_call_is(client: openai.OpenAI) -> None:
    wanted: Any = {"model": "m", "messages": said("weather in Oslo"), "tools": [WEATHER], "logprobs": True}
    rows = client.chat.completions.create(**wanted).choices[0].logprobs.content
    assert [(row.token, round(row.logprob, 4)) for row in rows] == [("get_weather", -0.1054)]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"n": 2}, "n"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": said("x"), "tools": [{"type": "function", "function": {"name": "f", "parameters": 3}}]}, "tools"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages.0"),
        ({"tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "tool_choice"),
        ({"tool_choice": "required", "tools": []}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
    ],
)
def test_errors_are_openais_and_say_where(client: openai.OpenAI, more: dict[str, Any], param: str) -> None:
    wanted: Any = {"model": "m", "messages": said("weather in Oslo"), "tools": [WEATHER]}
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**{**wanted, **more})
    assert raised.value.param
    assert raised.value.param.startswith(param)
    assert raised.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": said("\ud800"), "tools": [WEATHER]}),
        ("/v1/chat/completions", {"messages": said("x \ud800")}),
        ("/v1/chat/completions", {"model": "\ud800", "messages": [{"role": "tool", "content": "\ud800"}]}),
        ("/v1/chat/completions", {"messages": [{"role": ["user"], "content": 3}, {"role": "user", "content": {}}]}),
        ("/v1/chat/completions", {"messages": said("x"), "tools": [3, None], "tool_choice": {"name": "x"}}),
        ("/v1/chat/completions", {"messages": said("x"), "tools": [WEATHER], "tool_choice": {"type": "allowed_tools"}}),
        (
            "/v1/chat/completions",
            {"messages": said("x"), "tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "allowed_tools": 3}},
        ),
        ("/v1/chat/completions", {"messages": said("x"), "response_format": {"type": "json_schema", "json_schema": 3}}),
        ("/v1/responses", {"input": [{"type": ["message"]}, {"type": "function_call_output", "output": 3}]}),
        ("/v1/responses", {"input": "x", "text": {"format": 3}}),
        ("/v1/responses", {"input": "Oslo \ud800", "model": "\ud800", "tools": [{"name": "\ud800"}]}),
        ("/api/chat", {"messages": said("\ud800"), "tools": [WEATHER]}),
        ("/api/chat", {"messages": [{}], "format": {"type": 3}}),
        ("/api/show", {"model": 3}),
    ],
)
def test_nothing_that_a_chat_client_sends_is_a_500(served: tuple[Parrot, str], path: str, body: dict[str, Any]) -> None:
    for stream in (False, True):
        sent = json.dumps({**body, "stream": stream}).encode()
        response = httpx.post(f"{served[1]}{path}", content=sent, headers={"Content-Type": "application/json"})
        assert response.status_code in (200, 400)
        if response.status_code == 400:
            assert response.json()["error"]


def test_a_tool_that_cannot_be_read_leaves_the_others(client: openai.OpenAI) -> None:
    many = {str(number): {"type": "string"} for number in range(70)}
    wide = {"type": "function", "function": {"name": "wide", "parameters": {"type": "object", "properties": many}}}
    wanted: Any = {"model": "m", "messages": said("weather in Oslo"), "tools": [WEATHER, wide]}
    assert client.chat.completions.create(**wanted).choices[0].finish_reason == "tool_calls"


def test_models_are_listed(client: openai.OpenAI, exported: Path) -> None:
    (known,) = client.models.list().data
    assert known.id == exported.resolve().name
    assert client.models.retrieve(known.id).owned_by == "needle"


# OpenAI, responses


FLAT: Any = {"type": "function", "name": "get_weather", "parameters": WEATHER["function"]["parameters"], "strict": True}  # type: ignore[index]


def test_responses_call_and_end(client: openai.OpenAI) -> None:
    made = client.responses.create(model="m", input="weather in Oslo", tools=[FLAT])
    (item,) = made.output
    assert item.type == "function_call"
    assert (item.name, json.loads(item.arguments)) == ("get_weather", {"city": "Oslo"})
    assert made.status == "completed"
    back: Any = [
        {"role": "user", "content": "weather in Oslo"},
        item.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": item.call_id, "output": "sunny"},
    ]
    assert client.responses.create(model="m", input=back, tools=[FLAT]).output_text == "sunny"
    with pytest.raises(openai.BadRequestError, match="nothing is kept here"):
        client.responses.create(model="m", input="x", previous_response_id="resp_1")


def test_responses_are_streamed(client: openai.OpenAI) -> None:
    with client.responses.stream(model="m", input="weather in Oslo and Rome", tools=[FLAT]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    called = [item for item in final.output if item.type == "function_call"]
    assert [json.loads(item.arguments)["city"] for item in called] == ["Oslo", "Rome"]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert kinds.count("response.function_call_arguments.done") == 2
    with client.responses.stream(model="m", input="hello", tools=[FLAT]) as stream:
        list(stream)
        assert stream.get_final_response().output_text == ServeConfig().no_call


def test_responses_give_a_wanted_shape(client: openai.OpenAI) -> None:
    class Place(BaseModel):
        city: str

    assert client.responses.parse(model="m", input="I live in Rome", text_format=Place).output_parsed == Place(
        city="Rome"
    )


# Ollama


def test_ollamas_client_gets_calls_streamed_and_whole(served: tuple[Parrot, str]) -> None:
    client = ollama.Client(host=served[1])
    whole = client.chat("needle", said("weather in Oslo"), tools=[WEATHER])
    assert [(call.function.name, call.function.arguments) for call in whole.message.tool_calls or ()] == [
        ("get_weather", {"city": "Oslo"})
    ]
    assert whole.done
    parts = list(client.chat("needle", said("weather in Oslo"), tools=[WEATHER], stream=True))
    assert parts[0].message.tool_calls
    assert (parts[-1].done, parts[-1].done_reason) == (True, "stop")
    assert client.chat("needle", said("hi"), tools=[WEATHER]).message.content == ServeConfig().no_call
    shape = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    assert json.loads(client.chat("needle", said("in Oslo"), format=shape).message.content or "") == {"city": "Oslo"}
    assert "tools" in (client.show("needle").capabilities or ())
    assert client.list().models[0].model == f"{served[0].model.folder.resolve().name}:latest"  # type: ignore[union-attr]
    with pytest.raises(ollama.ResponseError, match="expected a JSON Schema"):
        client.chat("needle", said("hi"), format="json")
    assert httpx.get(f"{served[1]}/api/version").json()["version"]
    assert client.chat("needle", []).done_reason == "load"


def test_a_required_call_is_made_by_the_engine_itself(exported: Path, records: list[Record]) -> None:
    engine = open_engine(exported, backend="torch")
    free = [engine.answer_one(Request(record.query, record.tools), 60) for record in records[:25]]
    assert any(not answer.calls for answer in free)
    for record in records[:25]:
        answer = engine.answer_one(replace(Request(record.query, record.tools), required=True), 60)
        assert answer.calls or answer.finish != "stop"
        assert not answer.missing


def test_what_the_docs_show_runs_as_it_stands(served: tuple[Parrot, str], capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parent.parent / "docs" / "clients.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(block.replace("http://127.0.0.1:8000", served[1]), {})
        assert "Oslo" in capsys.readouterr().out
