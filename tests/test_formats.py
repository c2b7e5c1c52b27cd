"""Readers of the shapes people have, and the message for every kind of bad line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from needle.text.formats import Skipped, read_records
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


def test_older_function_calls_are_read_and_calls_in_the_text_refused(tmp_path: Path) -> None:
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


def test_an_array_that_is_no_unicode_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(json.dumps([OURS]).replace("Paris", "caf\u00e9").encode("latin-1"))
    with pytest.raises(DataError, match="expected UTF-8 text"):
        list(read_records(tmp_path / "a.json"))


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
