"""Readers of the shapes people have, and the message for every kind of bad line."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from needle.text.formats import FORMATS, Skipped, read_records
from needle.text.records import Call, DataError, Record, write_jsonl

TOOL = {
    "name": "get_weather",
    "description": "Weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}
ANSWER = {"name": "get_weather", "arguments": {"city": "Paris"}}
OURS: dict[str, Any] = {"id": "1", "query": "weather in Paris", "tools": [TOOL], "answers": [ANSWER], "source": "mine"}
SHAPES: dict[str, dict[str, Any]] = {
    "needle": OURS,
    "xlam": {"id": 1, "query": "weather in Paris", "tools": json.dumps([TOOL]), "answers": json.dumps([ANSWER])},
    "openai": {
        "messages": [
            {"role": "system", "content": "help"},
            {"role": "user", "content": [{"type": "text", "text": "weather in Paris"}]},
            {
                "role": "assistant",
                "tool_calls": [{"function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}],
            },
        ],
        "tools": [{"type": "function", "function": TOOL}],
    },
    "bfcl": {
        "id": "b",
        "question": [[{"role": "user", "content": "weather in Paris"}]],
        "function": [{**TOOL, "parameters": {**TOOL["parameters"], "type": "dict"}}],
        "ground_truth": [{"get_weather": {"city": ["Paris", "paris"], "days": ["", 1]}}],
    },
}


USES = [
    {"type": "text", "text": "Sure."},
    {"type": "tool_use", "id": "1", "name": "get_weather", "input": {"city": "Paris"}},
]
PARTS = [{"functionCall": {"name": "get_weather", "args": {"city": "Paris"}}}]
CALL_TEXT = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
ASKED = {"role": "user", "content": "weather in Paris"}
SHAPES |= {
    "anthropic": {
        "system": "help",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "weather in Paris"}]},
            {"role": "assistant", "content": USES},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "sunny"}]},
            {"role": "assistant", "content": "It is sunny."},
        ],
        "tools": [{"name": "get_weather", "input_schema": TOOL["parameters"]}],
    },
    "responses": {
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "weather in Paris"}]}],
        "output": [
            {"type": "reasoning", "summary": []},
            {"type": "function_call", "call_id": "1", "name": "get_weather", "arguments": '{"city": "Paris"}'},
        ],
        "tools": [{"type": "function", **TOOL}],
    },
    "gemini": {
        "contents": [
            {"role": "user", "parts": [{"text": "weather in Paris"}]},
            {"role": "model", "parts": PARTS},
            {"role": "user", "parts": [{"functionResponse": {"name": "get_weather", "response": {"sky": "clear"}}}]},
            {"role": "model", "parts": [{"text": "Clear."}]},
        ],
        "tools": [{"functionDeclarations": [TOOL]}],
    },
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "weather in Paris"},
            {"from": "function_call", "value": json.dumps(ANSWER)},
            {"from": "observation", "value": "sunny"},
            {"from": "gpt", "value": "Sunny."},
        ],
        "tools": json.dumps([TOOL]),
    },
}
HERMES = {
    "conversations": [
        {"from": "system", "value": f"You may call functions. <tools>\n{json.dumps(TOOL)}\n</tools>"},
        {"from": "human", "value": "weather in Paris"},
        {"from": "gpt", "value": CALL_TEXT},
        {"from": "tool", "value": "<tool_response>sunny</tool_response>"},
        {"from": "gpt", "value": "Sunny."},
    ]
}


def save(path: Path, *rows: Any) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("format", ["auto", "named"])
def test_every_shape_reads_the_same(tmp_path: Path, shape: str, format: str) -> None:
    path = save(tmp_path / "data.jsonl", SHAPES[shape])
    (record,) = read_records(path, "auto" if format == "auto" else shape)
    assert record.query == "weather in Paris"
    assert record.answers == (Call("get_weather", {"city": "Paris"}),)
    assert [tool.name for tool in record.tools] == ["get_weather"]


VARIANTS: dict[str, Any] = {
    "hermes": HERMES,
    "messages as JSON text": {**SHAPES["openai"], "messages": json.dumps(SHAPES["openai"]["messages"])},
    "tools as JSON text": {**SHAPES["openai"], "tools": json.dumps(SHAPES["openai"]["tools"])},
    "calls in the text": {**SHAPES["openai"], "messages": [ASKED, {"role": "assistant", "content": CALL_TEXT}]},
    "parameters for arguments": {**OURS, "answers": [{"name": "get_weather", "parameters": {"city": "Paris"}}]},
    "args for arguments": {**OURS, "answers": [{"name": "get_weather", "args": {"city": "Paris"}}]},
    "null for what wasn't given": {
        **OURS,
        "answers": [{"name": "get_weather", "arguments": {"city": "Paris", "days": None}}],
    },
    "keys that a table filled with null": {
        **OURS,
        "messages": None,
        "contents": None,
        "conversations": None,
        "input": None,
    },
    "input as a text": {**SHAPES["responses"], "input": "weather in Paris"},
}


@pytest.mark.parametrize("name", list(VARIANTS))
def test_every_variant_reads_the_same(tmp_path: Path, name: str) -> None:
    (record,) = read_records(save(tmp_path / "data.jsonl", VARIANTS[name]))
    assert record.query == "weather in Paris"
    assert record.answers == (Call("get_weather", {"city": "Paris"}),)
    assert [tool.name for tool in record.tools] == ["get_weather"]


def test_a_whole_number_written_with_a_point_is_a_whole_number(tmp_path: Path) -> None:
    answer = {"name": "get_weather", "arguments": {"city": "Paris", "days": 5.0}}
    (record,) = read_records(save(tmp_path / "data.jsonl", {**OURS, "answers": [answer]}))
    assert json.dumps(record.answers[0].arguments["days"]) == "5"


def test_a_conversation_gives_a_record_for_each_request_with_what_was_said_before(tmp_path: Path) -> None:
    def called(city: str, **more: Any) -> dict[str, Any]:
        call = {"name": "get_weather", "arguments": json.dumps({"city": city})}
        return {"role": "assistant", "content": None, "tool_calls": [{"function": call}], **more}

    result, words = {"role": "tool", "content": "sunny"}, {"role": "assistant", "content": "Sunny."}
    follow = {"role": "user", "content": "and in Rome?"}
    messages = [ASKED, called("Paris"), result, words, follow, called("Rome"), result, words, ASKED, words, follow]
    path = save(tmp_path / "data.jsonl", {**SHAPES["openai"], "messages": messages, "id": "c"})
    records = list(read_records(path))
    assert [(record.id, record.query, len(record.answers)) for record in records] == [
        ("c", "weather in Paris", 1),
        ("c-2", "and in Rome?", 1),
        ("c-3", "weather in Paris\nand in Rome?", 0),
    ]
    assert [turn["request"] for turn in records[1].meta["history"]] == ["weather in Paris"]
    left_out: Counter[str] = Counter()
    weighed = {**SHAPES["openai"], "messages": [ASKED, called("Paris", weight=0), result, follow, called("Rome")]}
    (record,) = read_records(save(tmp_path / "w.jsonl", weighed), left_out=left_out)
    assert record.query == "and in Rome?"
    assert left_out == {"an answer of weight 0, not to be learned": 1}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "input_audio", "input_audio": {"data": ""}},
        {"type": "image", "source": {}},
        {"type": "document", "source": {}},
    ],
)
def test_a_request_that_is_more_than_words_is_a_bad_line(tmp_path: Path, part: dict[str, Any]) -> None:
    shape = SHAPES["openai"]
    user = {"role": "user", "content": [{"type": "text", "text": "the weather here"}, part]}
    path = save(tmp_path / "data.jsonl", shape, {**shape, "messages": [user, *shape["messages"][2:]]})
    with pytest.raises(DataError, match="which no words can replace"):
        list(read_records(path))
    note = Skipped()
    assert len(list(read_records(path, skipped=note))) == 1
    assert len(note.messages) == 1


def test_marks_line_ends_and_members_of_gzip_are_no_content(tmp_path: Path) -> None:
    line = json.dumps(OURS)
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n{line}\r\n".encode())
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(f"{line}\n".encode()) + gzip.compress(line.encode()))
    (tmp_path / "c.json").write_bytes(b"\xef\xbb\xbf" + json.dumps([OURS, OURS]).encode())
    for name in ("a.jsonl", "b.jsonl.gz", "c.json"):
        assert len(list(read_records(tmp_path / name))) == 2


def test_tables_read_as_lines_do(tmp_path: Path) -> None:
    rows = [SHAPES["xlam"] | {"id": str(number)} for number in range(3)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [record.id for record in read_records(tmp_path / "a.parquet")] == ["0", "1", "2"]
    (tmp_path / "b.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match="not readable as .parquet"):
        list(read_records(tmp_path / "b.parquet"))


PYTHON_CALL = "<tool_call>\n{'name': 'get_weather', 'arguments': {'city': 'Paris'}}\n</tool_call>"
GLAIVE_CALL = """<functioncall> {"name": "get_weather", "arguments": '{"city": "Paris"}'} <|endoftext|>"""
PARIS = {"city": "Paris"}
AI_SDK = {"type": "tool-call", "toolName": "get_weather", "args": PARIS}
DRAFT = '```tool_code\nprint(get_weather(city="Paris", days=null))\n```'
THOUGHT = '<think>maybe <tool_call>{"name": "other", "arguments": {}}</tool_call></think>'
ELSEWHERE: dict[str, list[Any]] = {
    "Bedrock": [ASKED, {"role": "assistant", "content": [{"toolUse": {"name": "get_weather", "input": PARIS}}]}],
    "AI SDK": [ASKED, {"role": "assistant", "content": [AI_SDK]}],
    "swift": [ASKED, {"role": "tool_call", "content": json.dumps(ANSWER)}, {"role": "tool_response", "content": "20"}],
    "roles in capitals": [{**ASKED, "role": "User"}, {"role": "Assistant", "content": CALL_TEXT}],
    "text in parts": [ASKED, {"role": "assistant", "content": [{"type": "text", "text": CALL_TEXT}]}],
    "Python's quotes": [ASKED, {"role": "assistant", "content": PYTHON_CALL}],
    "Glaive": [ASKED, {"role": "assistant", "content": GLAIVE_CALL}],
    "after a thought": [ASKED, {"role": "assistant", "content": f"{THOUGHT}\n{CALL_TEXT}"}],
    "Python": [
        ASKED,
        {"role": "assistant", "content": '```tool_code\nprint(get_weather(city="Paris", days=null))\n```'},
    ],
    "null-filled parts": [
        {"role": "user", "content": [{"type": "text", "text": "weather in Paris", "image_url": None, "file_ids": []}]},
        {"role": "assistant", "content": CALL_TEXT},
    ],
}


@pytest.mark.parametrize("who", list(ELSEWHERE))
def test_calls_of_other_services_and_frameworks_are_read(tmp_path: Path, who: str) -> None:
    row = {**SHAPES["openai"], "messages": ELSEWHERE[who]}
    (record,) = read_records(save(tmp_path / "data.jsonl", row))
    assert record.query == "weather in Paris"
    assert record.answers == (Call("get_weather", {"city": "Paris"}),)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([ASKED, {"role": "narrator", "content": "It rains"}], "got 'narrator'"),
        (
            [ASKED, {"role": "tool", "content": "20"}, {"role": "assistant", "content": "It is 20"}],
            "the call before its",
        ),
        ([ASKED, {"role": "assistant", "content": "Action: f\nAction Input: {}"}], "a call that can be read"),
        ([ASKED, {"role": "assistant", "content": '{"name": "other", "arguments": {}}'}], "a call of 'other'"),
    ],
)
def test_what_might_be_a_call_is_never_taken_for_none(tmp_path: Path, messages: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(read_records(save(tmp_path / "data.jsonl", {**SHAPES["openai"], "messages": messages})))


def test_calls_of_neighbouring_messages_are_one_answer(tmp_path: Path) -> None:
    calls = [{"from": "function_call", "value": json.dumps({"name": "get_weather", "arguments": {"city": city}})}
        for city in ("Paris", "Rome")]  # fmt: skip
    row = {"conversations": [{"from": "human", "value": "Paris and Rome"}, *calls], "tools": [TOOL]}
    (record,) = read_records(save(tmp_path / "data.jsonl", row))
    assert [call.arguments["city"] for call in record.answers] == ["Paris", "Rome"]


@pytest.mark.parametrize(
    "messages",
    [[ASKED], [ASKED, {"role": "assistant", "content": None}], [{"role": "assistant", "content": "Hello!"}, ASKED]],
)
def test_a_request_without_an_answer_is_counted(tmp_path: Path, messages: Any) -> None:
    left_out: Counter[str] = Counter()
    turns_ = [{"from": message["role"], "value": message["content"]} for message in messages]
    row = {"conversations": turns_, "tools": [TOOL]}
    assert not list(read_records(save(tmp_path / "data.jsonl", row), left_out=left_out))
    assert left_out.total() == 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.json.gz", "a.JSON"])
@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_is_read_whatever_its_file_is_called(tmp_path: Path, name: str, indent: int | None) -> None:
    text = json.dumps([OURS, OURS], indent=indent).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    assert len(list(read_records(tmp_path / name))) == 2


def test_values_that_json_has_not_are_a_bad_line(tmp_path: Path) -> None:
    row = {**OURS, "meta": {"at": datetime(2026, 1, 1)}}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="line 1: .*expected values that JSON has"):
        list(read_records(tmp_path / "a.parquet"))


def test_a_tool_that_can_not_be_read_costs_only_itself_and_is_counted(tmp_path: Path) -> None:
    left_out: Counter[str] = Counter()
    path = save(tmp_path / "data.jsonl", {**OURS, "tools": [{"type": "web_search"}, TOOL]})
    (record,) = read_records(path, left_out=left_out)
    assert [tool.name for tool in record.tools] == ["get_weather"]
    assert left_out.total() == 1
    assert "declares no function" in next(iter(left_out))


USER, AGAIN = {"role": "user", "content": "weather in Paris"}, {"role": "user", "content": "weather in Rome"}
CALLING = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}],
}
RESULT, SAID = (
    {"role": "tool", "tool_call_id": "c", "content": "20 degrees"},
    {"role": "assistant", "content": "It is warm."},
)


def exchange(messages: list[dict[str, Any]], answer: dict[str, Any]) -> dict[str, Any]:
    return {
        "request": {"messages": messages, "tools": [{"type": "function", "function": TOOL}]},
        "response": {"choices": [{"message": answer}]},
    }


@pytest.mark.parametrize(
    ("messages", "answer", "query", "calls"),
    [
        ([USER], CALLING, "weather in Paris", 1),
        ([USER], SAID, "weather in Paris", 0),
        (
            [
                {"role": "user", "content": "weather"},
                {"role": "assistant", "content": "Where?"},
                {"role": "user", "content": "Paris"},
            ],
            CALLING,
            "weather\nParis",
            1,
        ),
        ([AGAIN, CALLING, RESULT, SAID, USER], CALLING, "weather in Paris", 1),
        ([USER], {**SAID, "function_call": CALLING["tool_calls"][0]["function"]}, "weather in Paris", 1),
    ],
)
def test_logged_exchanges_hold_what_was_asked_since_the_last_use_of_a_tool(
    tmp_path: Path, messages: Any, answer: Any, query: str, calls: int
) -> None:
    (record,) = read_records(save(tmp_path / "log.jsonl", exchange(messages, answer)))
    assert record.query == query
    assert record.answers == (Call("get_weather", {"city": "Paris"}),) * calls


def test_what_is_said_of_a_tools_result_is_no_record(tmp_path: Path) -> None:
    path = save(tmp_path / "log.jsonl", exchange([USER], CALLING), exchange([USER, CALLING, RESULT], SAID))
    with pytest.raises(DataError, match="line 2.*behind the last result of a tool"):
        list(read_records(path))
    note = Skipped()
    assert [len(record.answers) for record in read_records(path, "auto", note)] == [1]
    assert len(note.messages) == 1


def test_older_function_calls_are_read_and_broken_calls_in_the_text_refused(tmp_path: Path) -> None:
    older = {
        "messages": [
            USER,
            {
                "role": "assistant",
                "content": None,
                "function_call": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
            },
        ],
        "functions": [TOOL],
    }
    (record,) = read_records(save(tmp_path / "a.jsonl", older))
    assert record.answers == (Call("get_weather", {"city": "Paris"}),)
    text = {
        "messages": [USER, {"role": "assistant", "content": '<tool_call>{"name": "get_weather"}</tool_call>'}],
        "tools": [TOOL],
    }
    with pytest.raises(DataError, match="written into the text"):
        list(read_records(save(tmp_path / "b.jsonl", text)))
    broken = {**text, "messages": [USER, {"role": "assistant", "content": "<tool_call>the weather</tool_call>"}]}
    with pytest.raises(DataError, match="a call that is written into the text"):
        list(read_records(save(tmp_path / "c.jsonl", broken)))


def test_an_array_that_is_no_unicode_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(json.dumps([OURS]).replace("Paris", "caf\u00e9").encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8 text"):
        list(read_records(tmp_path / "a.json"))


def test_every_shape_stands_in_the_docs() -> None:
    text = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    table = text.partition("| `data.format` | shape |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(FORMATS)


def test_gzip_and_one_json_array_read_as_well(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as out:
        out.write(json.dumps(OURS) + "\n\n")
    (tmp_path / "b.json").write_text(json.dumps([OURS, OURS]))
    assert len(list(read_records(tmp_path / "a.jsonl.gz"))) == 1
    assert len(list(read_records(tmp_path / "b.json"))) == 2


def test_a_finished_conversation_gives_the_call_and_the_words_before_it(tmp_path: Path) -> None:
    shape = SHAPES["openai"]
    later = [
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "content": "It is sunny."},
        {"role": "user", "content": "thanks, and Rome?"},
    ]
    (record,) = read_records(save(tmp_path / "d.jsonl", {**shape, "messages": [*shape["messages"], *later]}))
    assert record.query == "weather in Paris"
    assert record.answers == (Call("get_weather", {"city": "Paris"}),)
    plain = {**shape, "messages": [*shape["messages"][:2], {"role": "assistant", "content": "I can't."}]}
    (record,) = read_records(save(tmp_path / "e.jsonl", plain))
    assert record.answers == ()


def test_bfcl_takes_its_answers_from_the_folder_beside_it(tmp_path: Path) -> None:
    row = {key: value for key, value in SHAPES["bfcl"].items() if key != "ground_truth"}
    (tmp_path / "possible_answer").mkdir()
    save(tmp_path / "possible_answer" / "x.json", {"id": "b", "ground_truth": SHAPES["bfcl"]["ground_truth"]})
    (record,) = read_records(save(tmp_path / "x.json", row))
    assert record.answers == (Call("get_weather", {"city": "Paris"}),)


def test_written_records_read_back_equal(tmp_path: Path, records: list[Record]) -> None:
    write_jsonl(tmp_path / "r.jsonl.gz", records[:50])
    again = list(read_records(tmp_path / "r.jsonl.gz"))
    assert [r.to_json() for r in again] == [r.to_json() for r in records[:50]]


BAD: list[tuple[Any, str]] = [
    ("{not json", "expected one JSON object"),
    ([1, 2], "expected a JSON object, got list"),
    ({**OURS, "query": 3}, "field 'query': expected a string, got a number"),
    ({"query": "x", "tools": []}, "field 'answers': expected an array, got nothing"),
    ({**OURS, "tools": [{**TOOL, "name": ""}]}, "tools/0/name: expected the tool's name"),
    (
        {**OURS, "tools": [{**TOOL, "parameters": {"type": "object", "properties": {"x": {"type": "strin"}}}}]},
        "tools/0/parameters/properties/x/type: unknown type",
    ),
    (
        {**OURS, "answers": [{"name": "other", "arguments": {}}]},
        r"field 'answers\[0\]': a call that its tool accepts; no tool is called 'other'",
    ),
    (
        {**OURS, "answers": [{"name": "get_weather", "arguments": {"city": 3}}]},
        r"answers\[0\].*is not of type \"string\"",
    ),
    ({**OURS, "answers": [{"arguments": {}}]}, r"field 'answers\[0\].name': expected the name of a tool, got null"),
    ({**SHAPES["xlam"], "answers": "[{"}, "field 'answers': expected JSON inside the string"),
    ({"messages": [{"role": "assistant"}]}, "at least one message of role 'user'"),
    ({"messages": [{"role": "user", "content": "x"}]}, "a message of role 'assistant' with the answer"),
    (
        {
            **SHAPES["openai"],
            "messages": [{"role": "user", "content": [{"type": "text", "text": None}]}, {"role": "assistant"}],
        },
        r"field 'messages\[0\].content'",
    ),
    (
        {key: value for key, value in SHAPES["bfcl"].items() if key != "ground_truth"},
        "field 'ground_truth': expected an array.*possible_answer/",
    ),
    ({**OURS, "query": "\ud800"}, "field 'query': expected Unicode text, found an unpaired surrogate"),
    (
        {**SHAPES["openai"], "messages": [{"role": "user", "content": 4}, {"role": "assistant"}]},
        r"field 'messages\[0\].content': expected a string",
    ),
    ({**SHAPES["bfcl"], "ground_truth": [{"a": 1, "b": 2}]}, r"field 'ground_truth\[0\]': expected"),
]


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_a_bad_line_stops_with_file_line_field_and_what_was_expected(tmp_path: Path, bad: Any, message: str) -> None:
    path = save(tmp_path / "data.jsonl", {**OURS, "id": "ok"}, bad)
    if isinstance(bad, dict) and ("messages" in bad or "question" in bad or isinstance(bad.get("tools"), str)):
        path = save(tmp_path / "data.jsonl", *(SHAPES[name] for name in SHAPES if name in _shape(bad)), bad)
    with pytest.raises(DataError, match=message) as error:
        list(read_records(path))
    assert str(error.value).startswith(f"{path}, line 2: ")


def test_a_file_of_no_known_shape_says_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"line 1: .*expected query, tools and answers \(needle, xlam\).*found text, label"
    ):
        list(read_records(save(tmp_path / "data.jsonl", {"text": "x", "label": 1})))


def _shape(row: dict[str, Any]) -> str:
    return "openai" if "messages" in row else "bfcl" if "question" in row else "xlam"


def test_bad_lines_can_be_skipped_and_are_listed(tmp_path: Path) -> None:
    rows = [OURS, {**OURS, "query": 3}, "{torn", OURS]
    note = Skipped()
    assert len(list(read_records(save(tmp_path / "data.jsonl", *rows), skipped=note))) == 2
    assert [("line 2" in note.messages[0]), ("line 3" in note.messages[1])] == [True, True]


def test_missing_torn_and_binary_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found a folder"):
        list(read_records(tmp_path))
    packed = bytearray(gzip.compress(json.dumps(OURS).encode() * 50))
    packed[30:40] = b"0123456789"
    (tmp_path / "c.jsonl.gz").write_bytes(packed)
    with pytest.raises(DataError, match="gzip"):
        list(read_records(tmp_path / "c.jsonl.gz"))
    with pytest.raises(DataError, match="no such file"):
        list(read_records(tmp_path / "none.jsonl"))
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00bad\n")
    with pytest.raises(DataError, match="UTF-8"):
        list(read_records(tmp_path / "b.jsonl"))
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(json.dumps(OURS).encode() * 50)[:60])
    with pytest.raises(DataError, match="gzip"):
        list(read_records(tmp_path / "t.jsonl.gz"))
    with pytest.raises(ValueError, match="data.format is 'csv'; expected one of auto"):
        list(read_records(save(tmp_path / "d.jsonl", OURS), "csv"))


def test_every_real_record_validates(real_data: Path) -> None:
    for name in (
        "snips/test",
        "hwu64/test",
        "mixed_calls/validation",
        "sgd/validation",
        "ha_gemini/train",
        "seal_tools/train",
        "clinc150/validation",
    ):
        assert sum(1 for _ in read_records(real_data / f"{name}.jsonl.gz")) > 0
