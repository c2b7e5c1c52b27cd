"""Readers for the files that tool-calling data comes in: ours, xLAM, chat and its logged traffic, Anthropic, Responses,
Gemini, ShareGPT and Hermes, BFCL; JSON lines, an array, Parquet.

`read_records(path)` detects the shape of each file from its first line. A line that can't be read stops the run
with file, line, field and what was expected, or is counted and listed when the caller asks to skip.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from needle.text.calls import fitted, read_call
from needle.text.dialects import Note, chat, conversation, declared_tools, from_text, gemini, responses, turns
from needle.text.records import (
    Call,
    DataError,
    FieldError,
    Record,
    ToolSchemaError,
    encodable,
    list_field,
    parse_line,
    read_lines,
    text_field,
)
from needle.text.validity import call_errors

FORMATS = ("auto", "needle", "xlam", "openai", "anthropic", "responses", "gemini", "sharegpt", "traffic", "bfcl")
ARROW = (".parquet", ".arrow", ".feather")


@dataclass
class Skipped:
    """What was left out of files: under `on_error="skip"` the bad lines, as `messages`; and parts of good ones, by
    reason."""

    messages: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)


def read_records(
    path: Path | str, format: str = "auto", skipped: Skipped | None = None, left_out: Counter[str] | None = None
) -> Iterator[Record]:
    """Streams the records of a .jsonl, .json (one array), .parquet or .gz file. A line may hold several: one for each
    request of a conversation.

    Args:
        format: one of `FORMATS`; auto detects it from each file's first line.
        skipped: where bad lines are noted; without it they stop the run.
        left_out: counts by reason what was left out of good lines: a tool that can't be read, an answer of weight 0.

    Raises:
        DataError: a bad line, with file, line number, field and what was expected.
    """
    if format not in FORMATS:
        raise ValueError(f"data.format is '{format}'; expected one of {', '.join(FORMATS)}")
    path = Path(path)
    reader: Reader | None = None
    truths = _possible_answers(path)
    reasons = left_out if left_out is not None else skipped.reasons if skipped else Counter[str]()

    def note(reason: str) -> None:
        reasons[reason] += 1

    for number, raw in _rows(path):
        try:
            row = parse_line(raw) if isinstance(raw, str) else raw
            if not isinstance(row, Mapping):
                raise FieldError("(line)", f"expected a JSON object, got {type(row).__name__}")
            if reader is None:
                reader = READERS[detect_format(row) if format == "auto" else format]
            if str(row.get("id")) in truths:
                row = {**row, "ground_truth": truths[str(row["id"])]}
            if row.get("id") is None:
                row = {**row, "id": f"{path.name}-{number}"}
            records = [_checked(record) for record in reader(row, note)]
        except (FieldError, ToolSchemaError, TypeError, AttributeError, KeyError, RecursionError) as error:
            known = isinstance(error, FieldError | ToolSchemaError)
            message = (
                f"{path}, line {number}: {error if known else f'not of this shape: {type(error).__name__}: {error}'}"
            )
            if skipped is None:
                raise DataError(message + " (data.on_error=skip leaves such lines out and lists them)") from error
            skipped.messages.append(message)
            continue
        yield from records


def detect_format(row: Mapping[str, Any]) -> str:
    """Names the shape of one line; raises `FieldError` when it is none of them."""
    has = {key for key, value in row.items() if value is not None}
    if {"request", "response"} <= has:
        return "traffic"
    if {"question", "function"} <= has:
        return "bfcl"
    if "messages" in has:
        return "openai"
    if "contents" in has:
        return "gemini"
    if has & {"conversations", "conversation"}:
        return "sharegpt"
    if "query" in has and (isinstance(row.get("tools"), str) or isinstance(row.get("answers"), str)):
        return "xlam"
    if {"query", "tools"} <= has:
        return "needle"
    if "input" in has and has & {"output", "tools"} and "instruction" not in has:
        return "responses"
    raise FieldError(
        "(line)",
        "expected query, tools and answers (needle, xlam), messages (openai, anthropic), input and output (responses),"
        " contents (gemini), conversations (sharegpt), request and response (traffic), or question and function"
        f" (bfcl); found {', '.join(map(str, row)) or 'no field'}",
    )


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(number, line of text), or (number, value) for a file that is one array or a table."""
    if path.suffix in ARROW:
        yield from enumerate(_table(path), 1)
        return
    lines = read_lines(path)
    first = next(lines, None)
    if first is None:
        return
    if first[1].lstrip().startswith("[") or first[1].strip() == "{":  # one value, on one line or many
        try:
            value = json.loads("".join(line for _, line in (first, *lines)))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: expected an array of objects, or one on each line, but {error}") from error
        yield from enumerate(value if isinstance(value, list) else [value], 1)
        return
    yield first
    yield from lines


def _table(path: Path) -> Iterator[Any]:
    """The rows of a Parquet or Arrow file, as the hub exports them."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        import pyarrow
        import pyarrow.feather
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise DataError(f"{path}: reading {path.suffix} needs the package pyarrow: pip install '.[data]'") from error
    try:
        if path.suffix == ".parquet":
            for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
                yield from batch.to_pylist()
        else:
            yield from pyarrow.feather.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not readable as {path.suffix}: {error}") from error


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


def _checked(record: Record) -> Record:
    """The record, its calls in the words of their tools. Raises `FieldError` for a call that no tool accepts."""
    try:
        encodable(json.dumps(record.to_json(), ensure_ascii=False), "(line)")
    except TypeError as error:
        raise FieldError("(line)", f"expected values that JSON has, but {error}") from error
    answers = tuple(fitted(call, record.tools) for call in record.answers)
    for index, call in enumerate(answers):
        errors = call_errors(call, record.tools)
        if errors:
            raise FieldError(f"answers[{index}]", f"a call that its tool accepts; {errors[0]}")
    return replace(record, answers=answers)


def record_from_json(row: Mapping[str, Any], note: Note = lambda reason: None) -> Record:
    """A record in the project's own shape. Raises `FieldError` or `ToolSchemaError`."""
    teacher, meta = row.get("teacher"), row.get("meta") or {}
    list_field(row, "tools")
    return Record(
        id=str(row["id"]),
        query=text_field(row, "query"),
        tools=declared_tools(row, note),
        answers=tuple(read_call(value, f"answers[{i}]") for i, value in enumerate(list_field(row, "answers"))),
        source=str(row.get("source", "")),
        teacher=teacher if isinstance(teacher, Mapping) else None,
        meta=meta if isinstance(meta, Mapping) else {},
    )


def _needle(row: Mapping[str, Any], note: Note) -> Iterator[Record]:
    yield record_from_json(row, note)


def _xlam(row: Mapping[str, Any], note: Note) -> Iterator[Record]:
    """`tools` and `answers` are JSON written as strings."""
    opened = {name: from_text(row[name], name) for name in ("tools", "answers") if isinstance(row.get(name), str)}
    yield record_from_json({"source": "xlam", **row, **opened}, note)


def _openai(row: Mapping[str, Any], note: Note) -> Iterator[Record]:
    """Chat messages: what was said, and the calls that answered it, in the messages or beside them."""
    messages = chat(row)
    said = [message for message in messages if message["role"] == "assistant"]
    beside = row.get("tool_calls")
    if not said and beside is None:
        raise FieldError(
            "messages", "expected a message of role 'assistant' with the answer, or tool_calls beside the messages"
        )
    if beside is not None and (not messages or messages[-1]["role"] == "user" or not any(map(_has_calls, said))):
        asked = [m for m in messages if m["role"] != "assistant" or any(map(_has_calls, said))]
        messages = [*asked, {"role": "assistant", "content": "", "tool_calls": beside}]
    if not any(message["role"] == "user" for message in messages):
        raise FieldError("messages", "expected at least one message of role 'user' before the answer")
    yield from turns(messages, row, "openai", note)


def _responses(row: Mapping[str, Any], note: Note) -> Iterator[Record]:
    yield from turns(responses(row), row, "openai", note)


def _gemini(row: Mapping[str, Any], note: Note) -> Iterator[Record]:
    yield from turns(gemini(row), row, "gemini", note)


def _sharegpt(row: Mapping[str, Any], note: Note) -> Iterator[Record]:
    yield from turns(conversation(row), row, "sharegpt", note)


def _traffic(row: Mapping[str, Any], note: Note) -> Iterator[Record]:
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
            if _has_calls(m) or (isinstance(m, Mapping) and m.get("role") in ("tool", "function"))
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
    whole = {"source": "traffic", **request, "id": row["id"], "messages": [*said, {**message, "role": "assistant"}]}
    yield from _openai(whole, note)


def _has_calls(message: Any) -> bool:
    return isinstance(message, Mapping) and bool(message.get("tool_calls") or message.get("function_call"))


def _bfcl(row: Mapping[str, Any], note: Note) -> Iterator[Record]:
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
    yield Record(
        str(row["id"]),
        "\n".join(words),
        declared_tools({"tools": functions}, note, "function"),
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


Reader = Callable[[Mapping[str, Any], Note], Iterator[Record]]
READERS: dict[str, Reader] = {
    "needle": _needle,
    "xlam": _xlam,
    "openai": _openai,
    "anthropic": _openai,
    "responses": _responses,
    "gemini": _gemini,
    "sharegpt": _sharegpt,
    "traffic": _traffic,
    "bfcl": _bfcl,
}
