"""Calls as files and models write them: under other names, encoded twice, left in the text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from needle.text.calls import calls_in_text, fitted, read_call
from needle.text.declarations import normalise_tool
from needle.text.records import Call, FieldError

ARGUMENTS = {"city": "Paris", "days": 2}
CALL = Call("get_weather", ARGUMENTS)
TEXT = json.dumps(ARGUMENTS)
TOOL = normalise_tool(
    {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "note": {"type": ["string", "null"]},
                "stops": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}}},
            },
            "required": ["city"],
        },
    }
)


@pytest.mark.parametrize(
    "value",
    [
        {"name": "get_weather", "arguments": ARGUMENTS},
        {"name": "get_weather", "arguments": TEXT},
        {"name": "get_weather", "arguments": json.dumps(TEXT)},
        {"name": "get_weather", "parameters": ARGUMENTS},
        {"name": "get_weather", "args": ARGUMENTS},
        {"name": "get_weather", "arguments": None, "input": ARGUMENTS},
        {"tool_name": "get_weather", "arguments": ARGUMENTS},
        {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": TEXT}},
        {"functionCall": {"name": "get_weather", "args": ARGUMENTS}},
    ],
)
def test_a_call_is_read_under_any_of_its_names(value: Any) -> None:
    assert read_call(value, "answers[0]") == CALL


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, r"answers\[0\]': expected an object"),
        ({"arguments": {}}, r"answers\[0\].name'"),
        ({"name": "f", "slots": {"x": 1}}, r"answers\[0\].slots': expected the arguments under 'arguments'"),
        ({"name": "f", "arguments": "{"}, "expected JSON inside the string"),
        ({"name": "f", "arguments": [1]}, "expected an object, got list"),
    ],
)
def test_what_is_no_call_says_where(value: Any, message: str) -> None:
    with pytest.raises(FieldError, match=message):
        read_call(value, "answers[0]")


@pytest.mark.parametrize(
    "text",
    [
        f'<tool_call>\n{{"name": "get_weather", "arguments": {TEXT}}}\n</tool_call>',
        f'<tool_call>{{"name": "get_weather", "arguments": {TEXT}}}',
        'Sure! <functioncall> {"name": "get_weather", "arguments": \'{}\'}'.replace("'{}'", json.dumps(TEXT)),
        f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {TEXT}}}]',
        f"[TOOL_CALLS]get_weather[ARGS]{TEXT}",
        f"<function=get_weather>{TEXT}</function>",
        f'<|python_tag|>{{"name": "get_weather", "parameters": {TEXT}}}<|eom_id|>',
        f'```json\n{{"name": "get_weather", "arguments": {TEXT}}}\n```',
        f'Here it is:\n```json\n[{{"name": "get_weather", "arguments": {TEXT}}}]\n```\nDone.',
        f'{{"name": "get_weather", "parameters": {TEXT}}}',
        f'I call {{"name": "get_weather", "arguments": {TEXT}}} now.',
        f'{{"tool_calls": [{{"name": "get_weather", "arguments": {TEXT}}}]}}',
        'get_weather(city="Paris", days=2)',
        '[get_weather(city="Paris", days=2)]',
        '```tool_code\nget_weather(city="Paris", days=2)\n```',
        'print(get_weather(city="Paris", days=2))',
    ],
)
def test_calls_that_were_left_in_the_text_are_read(text: str) -> None:
    assert calls_in_text(text) == [CALL]


def test_several_calls_in_a_text_keep_their_order() -> None:
    one, two = f'{{"name": "a", "arguments": {TEXT}}}', '{"name": "b", "arguments": {}}'
    wanted = [Call("a", ARGUMENTS), Call("b", {})]
    assert calls_in_text(f"<tool_call>{one}</tool_call>\n<tool_call>{two}</tool_call>") == wanted
    assert calls_in_text(f"[{one}, {two}]") == wanted
    assert calls_in_text("a(city='Paris', days=2)\nb()") == wanted


@pytest.mark.parametrize(
    "text",
    [
        "It is sunny in Paris.",
        "",
        "No function fits (sorry).",
        'The answer is {"temperature": 20}.',
        "f(x)",
        "```python\nx = 3\n```",
        "call me at 7 (or 8)",
    ],
)
def test_text_without_a_call_holds_none(text: str) -> None:
    assert not calls_in_text(text)


@pytest.mark.parametrize(
    "text", ["<tool_call>get weather</tool_call>", '<function=f>{"x": </function>', "[TOOL_CALLS] ?"]
)
def test_something_like_a_call_that_can_not_be_read_is_an_error(text: str) -> None:
    with pytest.raises(FieldError):
        calls_in_text(text)


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (Call("default_api.get_weather", {"city": "Paris"}), Call("get_weather", {"city": "Paris"})),
        (Call("functions.get_weather", {"city": "Paris"}), Call("get_weather", {"city": "Paris"})),
        (Call("my_server:get_weather", {"city": "Paris"}), Call("get_weather", {"city": "Paris"})),
        (Call("get_weather", {"city": "Paris", "days": None}), Call("get_weather", {"city": "Paris"})),
        (Call("get_weather", {"city": "Paris", "zip": None}), Call("get_weather", {"city": "Paris"})),
        (Call("get_weather", {"city": "Paris", "note": None}), Call("get_weather", {"city": "Paris", "note": None})),
        (Call("get_weather", {"city": None}), Call("get_weather", {"city": None})),
        (Call("get_weather", {"city": "Paris", "days": 5.0}), Call("get_weather", {"city": "Paris", "days": 5})),
        (Call("get_weather", {"stops": [{"n": 2.0}]}), Call("get_weather", {"stops": [{"n": 2}]})),
        (Call("get_weather", {"city": "Paris", "days": 2.5}), Call("get_weather", {"city": "Paris", "days": 2.5})),
        (Call("other", {"x": None}), Call("other", {"x": None})),
    ],
)
def test_a_call_is_put_into_the_words_of_its_tool(call: Call, wanted: Call) -> None:
    found = fitted(call, [TOOL])
    assert (found.name, json.dumps(found.arguments)) == (wanted.name, json.dumps(wanted.arguments))
