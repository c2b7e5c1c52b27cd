"""Readers for the shapes that tool-calling data comes in: ours, xLAM, OpenAI chat and its logged traffic, BFCL.

`read_records(path)` detects the shape of each file from its first line. A line that can't be read stops the run
with file, line, field and what was expected, or is counted and listed when the caller asks to skip.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from needle.text.records import (
    Call,
    DataError,
    FieldError,
    Record,
    call_from_json,
    encodable,
    list_field,
    parse_line,
    read_lines,
    text_field,
)
from needle.text.toolschema import ToolSchemaError, call_errors, normalise_tools

FORMATS = ("auto", "needle", "xlam", "openai", "traffic", "bfcl")


@dataclass
class Skipped:
    """The lines that were left out under `on_error="skip"`, as messages."""

    messages: list[str] = field(default_factory=list)


def read_records(path: Path | str, format: str = "auto", skipped: Skipped | None = None) -> Iterator[Record]:
    """Streams the records of a .jsonl, .json (one array) or .gz file.

    Raises:
        DataError: a bad line, with file, line number, field and what was expected. With `skipped` given, a line
            that parses as JSON but isn't a good record is noted there instead.
    """
    if format not in FORMATS:
        raise ValueError(f"data.format is '{format}'; expected one of {', '.join(FORMATS)}")
    path = Path(path)
    reader: Callable[[Mapping[str, Any]], Record] | None = None
    truths = _possible_answers(path)
    for number, raw in _rows(path):
        try:
            row = parse_line(raw) if isinstance(raw, str) else raw
            if not isinstance(row, Mapping):
                raise FieldError("(line)", f"expected a JSON object, got {type(row).__name__}")
            if reader is None:
                reader = READERS[detect_format(row) if format == "auto" else format]
            if str(row.get("id")) in truths:
                row = {**row, "ground_truth": truths[str(row["id"])]}
            record = reader({"id": f"{path.name}-{number}", **row})
            _check(record)
        except (FieldError, ToolSchemaError) as error:
            message = f"{path}, line {number}: {error}"
            if skipped is None:
                raise DataError(message + " (data.on_error=skip leaves such lines out and lists them)") from error
            skipped.messages.append(message)
            continue
        yield record


def detect_format(row: Mapping[str, Any]) -> str:
    """Names the shape of one line; raises `FieldError` when it is none of them."""
    if "messages" in row:
        return "openai"
    if "request" in row and "response" in row:
        return "traffic"
    if "question" in row and "function" in row:
        return "bfcl"
    if "query" in row and (isinstance(row.get("tools"), str) or isinstance(row.get("answers"), str)):
        return "xlam"
    if "query" in row and "tools" in row:
        return "needle"
    raise FieldError(
        "(line)",
        "expected query, tools and answers (needle, xlam), messages (openai), request and response (traffic), or"
        f" question and function (bfcl); found {', '.join(map(str, row)) or 'no field'}",
    )


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(number, line of text), or (number, value) for a file that is one array."""
    if path.suffix == ".json" and path.is_file():
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: expected UTF-8 text, but {error}") from error
        if text.lstrip().startswith("["):  # otherwise JSON lines under another name, as BFCL has them
            try:
                yield from enumerate(json.loads(text), 1)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}: expected an array of objects, but {error}") from error
            return
    yield from read_lines(path)


def _possible_answers(path: Path) -> dict[str, Any]:
    """BFCL keeps the gold beside the questions, in possible_answer/ under the same name; empty when there is no such
    file."""
    beside = path.parent / "possible_answer" / path.name
    if not beside.is_file():
        return {}
    try:
        rows = [parse_line(line) for _, line in read_lines(beside)]
        return {str(row["id"]): row["ground_truth"] for row in rows}
    except (FieldError, KeyError, TypeError) as error:
        raise DataError(f"{beside}: expected lines with id and ground_truth, but {error}") from error


def _check(record: Record) -> None:
    encodable(json.dumps(record.to_json(), ensure_ascii=False), "(line)")
    for index, call in enumerate(record.answers):
        errors = call_errors(call, record.tools)
        if errors:
            raise FieldError(f"answers[{index}]", f"a call that its tool accepts; {errors[0]}")


def record_from_json(row: Mapping[str, Any]) -> Record:
    """A record in the project's own shape. Raises `FieldError` or `ToolSchemaError`."""
    teacher, meta = row.get("teacher"), row.get("meta") or {}
    return Record(
        id=str(row["id"]),
        query=text_field(row, "query"),
        tools=normalise_tools(list_field(row, "tools"), "tools"),
        answers=tuple(call_from_json(value, f"answers[{i}]") for i, value in enumerate(list_field(row, "answers"))),
        source=str(row.get("source", "")),
        teacher=teacher if isinstance(teacher, Mapping) else None,
        meta=meta if isinstance(meta, Mapping) else {},
    )


def _xlam(row: Mapping[str, Any]) -> Record:
    """`tools` and `answers` are JSON written as strings."""
    opened = dict(row)
    for name in ("tools", "answers"):
        if isinstance(row.get(name), str):
            try:
                opened[name] = json.loads(row[name])
            except ValueError as error:
                raise FieldError(name, f"expected JSON inside the string, but {error}") from error
    return record_from_json({"source": "xlam", **opened})


def _openai(row: Mapping[str, Any]) -> Record:
    """Chat messages: the first assistant message with `tool_calls` (or the older `function_call`) is the gold, or else
    the last one; the user's words before it are the request."""
    # Messages, one of them the answer, or calls beside them.
    messages = list_field(row, "messages")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise FieldError(f"messages[{index}]", "expected an object with a role")
    said = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not said and "tool_calls" not in row:
        raise FieldError(
            "messages", "expected a message of role 'assistant' with the answer, or tool_calls beside the messages"
        )
    # The answer, and the user's words before it.
    end = next((index for index in said if _calls(messages[index])), said[-1] if said else len(messages))
    words = [
        _content(m.get("content"), f"messages[{i}].content")
        for i, m in enumerate(messages[:end])
        if m["role"] == "user"
    ]
    if not words:
        raise FieldError("messages", "expected at least one message of role 'user' before the answer")
    # The calls; text that spells calls is no answer without them.
    calls = (_calls(messages[end]) if said else None) or _calls(row)
    if not isinstance(calls, list):
        raise FieldError("tool_calls", "expected an array")
    if not calls and said and re.search("<tool_call>|<function", str(messages[end].get("content"))):
        raise FieldError(f"messages[{end}]", "expected tool_calls; calls that are written into the text aren't read")
    return Record(
        id=str(row["id"]),
        query="\n".join(words),
        tools=normalise_tools(row.get("tools") or row.get("functions") or [], "tools"),
        answers=tuple(_openai_call(call, f"tool_calls[{i}]") for i, call in enumerate(calls)),
        source=str(row.get("source", "openai")),
    )


def _traffic(row: Mapping[str, Any]) -> Record:
    """A logged exchange with a chat completions endpoint: what went in under `request`, what came out under `response`.

    What was asked before a tool was used has had its answer: the request is what the user said since.
    """
    request, response = row["request"], row["response"]
    if not isinstance(request, Mapping) or not isinstance(response, Mapping):
        raise FieldError("request", "expected the body of a chat completion request, and its response beside it")
    choices = list_field(response, "choices")
    message = choices[0].get("message") if choices and isinstance(choices[0], Mapping) else None
    if not isinstance(message, Mapping):
        raise FieldError("response.choices[0].message", "expected the assistant's message")
    messages = list_field(request, "messages")
    done = max(
        (
            index
            for index, m in enumerate(messages)
            if isinstance(m, Mapping) and (m.get("role") in ("tool", "function") or _calls(m))
        ),
        default=-1,
    )
    said = [m for m in messages[done + 1 :] if not (isinstance(m, Mapping) and m.get("role") == "assistant")]
    if done >= 0 and not any(isinstance(m, Mapping) and m.get("role") == "user" for m in said):
        raise FieldError(
            "request.messages",
            "expected words of a user behind the last result of a tool; what is said of a result answers no request of"
            " its own",
        )
    return _openai(
        {"source": "traffic", **request, "id": row["id"], "messages": [*said, {**message, "role": "assistant"}]}
    )


def _calls(message: Mapping[str, Any]) -> Any:
    """The calls of a message; an older `function_call` is one of them."""
    older = message.get("function_call")
    return message.get("tool_calls") or ([{"function": older}] if isinstance(older, Mapping) else [])


def _content(value: Any, where: str) -> str:
    if isinstance(value, list):  # parts: {"type": "text", "text": ...}
        value = (
            "".join(
                part["text"] if isinstance(part, Mapping) and isinstance(part.get("text"), str) else ""
                for part in value
            )
            or None
        )
    if not isinstance(value, str):
        raise FieldError(where, "expected a string or an array of text parts")
    return value


def _openai_call(value: Any, where: str) -> Call:
    function = value.get("function") if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping):
        raise FieldError(f"{where}.function", "expected an object with name and arguments")
    arguments = function.get("arguments", "{}")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as error:
            raise FieldError(f"{where}.function.arguments", f"expected JSON inside the string, but {error}") from error
    return call_from_json({"name": function.get("name"), "arguments": arguments}, f"{where}.function")


def _bfcl(row: Mapping[str, Any]) -> Record:
    """Single-turn categories. Of each argument's allowed values the first is taken; `""` means "may be omitted"."""
    turns = list_field(row, "question")
    if turns and isinstance(turns[0], list):
        turns = turns[0]
    words = [
        turn["content"]
        for turn in turns
        if isinstance(turn, Mapping) and turn.get("role") == "user" and isinstance(turn.get("content"), str)
    ]
    if not words:
        raise FieldError("question", "expected at least one message of role 'user'")
    truth = row.get("ground_truth", row.get("possible_answer"))
    if truth is None and "irrelevance" in str(row["id"]):
        truth = []
    if not isinstance(truth, list):
        raise FieldError(
            "ground_truth",
            "expected an array of {tool: {argument: [allowed values]}}, here or in possible_answer/ beside the file",
        )
    answers = []
    for index, entry in enumerate(truth):
        if not isinstance(entry, Mapping) or len(entry) != 1:
            raise FieldError(f"ground_truth[{index}]", "expected {tool: {argument: [allowed values]}}")
        (name, arguments), *_ = entry.items()
        if not isinstance(arguments, Mapping):
            raise FieldError(f"ground_truth[{index}].{name}", "expected {argument: [allowed values]}")
        answers.append(
            Call(name, {key: _first_allowed(allowed) for key, allowed in arguments.items() if not _omittable(allowed)})
        )
    functions = row["function"] if isinstance(row["function"], list) else [row["function"]]
    return Record(
        str(row["id"]),
        "\n".join(words),
        normalise_tools(functions, "function"),
        tuple(answers),
        str(row.get("source", "bfcl")),
    )


def _omittable(allowed: Any) -> bool:
    return isinstance(allowed, list) and "" in allowed


def _first_allowed(allowed: Any) -> Any:
    value = allowed[0] if isinstance(allowed, list) and allowed else allowed
    if isinstance(value, Mapping):  # nested objects list their allowed values once more
        return {key: _first_allowed(inner) for key, inner in value.items() if not _omittable(inner)}
    if isinstance(value, list):
        return [_first_allowed(item) if isinstance(item, Mapping) else item for item in value]
    return value


READERS: dict[str, Callable[[Mapping[str, Any]], Record]] = {
    "needle": record_from_json,
    "xlam": _xlam,
    "openai": _openai,
    "traffic": _traffic,
    "bfcl": _bfcl,
}
