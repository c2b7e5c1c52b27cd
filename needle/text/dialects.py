"""The shapes that conversations with calls come in, each as OpenAI's chat messages; and those messages as records.

Anthropic's content blocks, OpenAI's Responses, Gemini's `contents`, ShareGPT's and Hermes' conversations. A
conversation with several requests gives a record for each, with what was said before under `meta.history`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from needle.text.calls import calls_in_text, fitted, read_call
from needle.text.declarations import read_tools
from needle.text.records import Call, FieldError, Record, Tool, list_field

Note = Callable[[str], None]
"""Hears what was left out of a line, as a reason that lines share."""

SENT_ALONG = ("image", "audio", "video", "file", "document", "inlineData", "inline_data", "fileData", "file_data")
WORDS = ("text", "thinking", "reasoning", "refusal", "tool_use")  # in the types of an assistant's parts
SPEAKERS = {
    "ai": "assistant", "tool_calls": "calls", "ipython": "tool",  # ShareGPT's, and others' names for OpenAI's roles
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant", "chatgpt":
    "assistant", "bing": "assistant", "function_call": "calls", "function-call": "calls", "tool_call": "calls",
    "observation": "tool", "tool": "tool", "tool_response": "tool", "function_response": "tool", "function": "tool",
    "function-response": "tool", "system": "system", "developer": "system",
}  # fmt: skip
HERMES_TOOLS = re.compile(r"<tools>\s*(.*?)\s*</tools>", re.DOTALL)


def declared_tools(row: Mapping[str, Any], note: Note, where: str = "tools") -> tuple[Tool, ...]:
    """The tools of a line; those that can't be read are left out and noted."""
    given: Any = next((row[key] for key in ("tools", "functions", "available_tools") if row.get(key) is not None), [])
    if isinstance(given, str):
        given = from_text(given, where)
    read = read_tools(given, where)
    for tool in read.skipped:
        note(f"a tool that can't be read: {tool.reason.partition(': ')[2]}")
    return read.tools


def from_text(text: str, where: str) -> Any:
    """The value of JSON that is written as a string."""
    try:
        return json.loads(text) if text.strip() else []
    except ValueError as error:
        raise FieldError(where, f"expected JSON inside the string, but {error}") from error


# Shapes, as chat messages


def chat(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """OpenAI's messages, also as JSON text, and Anthropic's, whose calls and results are blocks of the content."""
    messages = row.get("messages")
    if isinstance(messages, str):
        row = {**row, "messages": from_text(messages, "messages")}
    out: list[Mapping[str, Any]] = []
    for index, message in enumerate(list_field(row, "messages")):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise FieldError(f"messages[{index}]", "expected an object with a role")
        role = SPEAKERS.get(message["role"].lower())
        if role is None:
            raise FieldError(
                f"messages[{index}].role", f"expected one of {', '.join(SPEAKERS)}, got '{message['role']}'"
            )
        message = {**message, "role": role}
        if role == "calls":
            rows = (
                from_text(message["content"], f"messages[{index}]") if isinstance(message.get("content"), str) else []
            )
            message = {"role": "assistant", "tool_calls": rows if isinstance(rows, list) else [rows]}
        out += _blocks(message) if isinstance(message.get("content"), list) else [message]
    return out


def _blocks(message: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    blocks = [_known(block) for block in message["content"] if isinstance(block, Mapping)]
    kinds = {str(block.get("type")) for block in blocks}
    if not kinds & {"tool_use", "tool_result"}:
        yield message
        return
    for block in blocks:
        if block.get("type") == "tool_result":
            yield {"role": "tool", "content": block.get("content")}
    uses = [
        {"function": {"name": b.get("name"), "arguments": b.get("input")}}
        for b in blocks
        if b.get("type") == "tool_use"
    ]
    rest = [block for block in blocks if block.get("type") not in ("tool_use", "tool_result")]
    if uses:
        yield {**message, "content": rest or None, "tool_calls": uses}
    elif rest:
        yield {**message, "content": rest}


def _known(block: Mapping[str, Any]) -> Mapping[str, Any]:
    """Other services' blocks under Anthropic's names: Bedrock's `toolUse`, the AI SDK's `tool-call`, Gemini's."""
    for key in ("toolUse", "functionCall", "function_call"):
        if isinstance(block.get(key), Mapping):
            own = block[key]
            return {
                "type": "tool_use",
                "name": own.get("name"),
                "input": own.get("input", own.get("args", own.get("arguments"))),
            }
    if any(isinstance(block.get(key), Mapping) for key in ("toolResult", "functionResponse")):
        return {"type": "tool_result"}
    kind = str(block.get("type"))
    if kind in ("tool-call", "mcp_tool_use", "server_tool_use", "function_call", "tool_call"):
        given = next((block[key] for key in ("input", "args", "arguments") if key in block), None)
        return {"type": "tool_use", "name": block.get("toolName", block.get("name")), "input": given}
    if kind in ("tool-result", "mcp_tool_result", "web_search_tool_result"):
        return {"type": "tool_result"}
    return block


def responses(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """OpenAI's Responses: `input`, a text or items, and what came as `output`."""
    items: list[Any] = []
    for field in ("input", "output"):
        value = row.get(field)
        if isinstance(value, str):
            items.append({"role": "user" if field == "input" else "assistant", "content": value})
        elif isinstance(value, list):
            items += value
        elif value is not None:
            raise FieldError(field, "expected a string or an array of items")
    out: list[Mapping[str, Any]] = []
    field = "items"
    for index, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise FieldError(f"{field}[{index}]", "expected an item as an object")
        kind = item.get("type", "message")
        if kind == "function_call":
            call = {"function": {"name": item.get("name"), "arguments": item.get("arguments")}}
            if out and out[-1].get("role") == "assistant" and out[-1].get("tool_calls"):
                out[-1] = {**out[-1], "tool_calls": [*out[-1]["tool_calls"], call]}
            else:
                out.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif kind == "function_call_output":
            out.append({"role": "tool", "content": item.get("output")})
        elif kind == "message":
            out.append({**item, "role": SPEAKERS.get(str(item.get("role")), "user")})
        elif kind not in ("reasoning", "item_reference"):
            raise FieldError(f"{field}[{index}].type", f"expected a message or a function_call, got '{kind}'")
    return out


def gemini(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Gemini's `contents`: parts of text, `functionCall` and `functionResponse`."""
    out: list[Mapping[str, Any]] = []
    for index, content in enumerate(list_field(row, "contents")):
        if not isinstance(content, Mapping) or not isinstance(content.get("parts"), list):
            raise FieldError(f"contents[{index}]", "expected an object with parts")
        parts = [part for part in content["parts"] if isinstance(part, Mapping)]
        calls = [part.get("functionCall") or part.get("function_call") for part in parts]
        calls = [
            {"function": {"name": c.get("name"), "arguments": c.get("args")}} for c in calls if isinstance(c, Mapping)
        ]
        results = [part for part in parts if part.get("functionResponse") or part.get("function_response")]
        words = [part for part in parts if "text" in part or any(key in part for key in SENT_ALONG)]
        odd = sorted({key for part in parts for key in part if part[key] and key in ("executableCode", "toolCall")})
        if odd:
            raise FieldError(f"contents[{index}]", f"text or a functionCall, got '{odd[0]}'")
        role = SPEAKERS.get(str(content.get("role", "user")), "user")
        if results:
            out.append({"role": "tool", "content": ""})
        if calls:
            out.append({"role": "assistant", "content": words or None, "tool_calls": calls})
        elif words:
            out.append(
                {"role": role, "content": [{"type": "text", **part} if "text" in part else part for part in words]}
            )
    return out


def conversation(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """ShareGPT's `conversations` of `from` and `value`, and Hermes', whose calls stand in the text."""
    given = row.get("conversations", row.get("conversation"))
    if isinstance(given, str):
        given = from_text(given, "conversations")
    if not isinstance(given, list):
        raise FieldError("conversations", "expected an array of turns")
    out: list[Mapping[str, Any]] = []
    for index, turn in enumerate(given):
        if not isinstance(turn, Mapping):
            raise FieldError(f"conversations[{index}]", "expected an object with from and value")
        said = turn.get("from", turn.get("role"))
        role = SPEAKERS.get(str(said).lower())
        if role is None:
            raise FieldError(f"conversations[{index}].from", f"expected one of {', '.join(SPEAKERS)}, got {said!r}")
        value = turn.get("value", turn.get("content"))
        if role == "calls":
            rows = from_text(value, f"conversations[{index}].value") if isinstance(value, str) else value
            rows = rows if isinstance(rows, list) else [rows]
            out.append({"role": "assistant", "content": None, "tool_calls": rows, "weight": turn.get("weight")})
        else:
            out.append({**turn, "role": role, "content": value})
    return out


def hermes_tools(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The tools that a system message declares between `<tools>` and `</tools>`."""
    for message in messages:
        text = str(message.get("content")) if message.get("role") == "system" else ""
        found = [one.strip() for one in HERMES_TOOLS.findall(text) if one.strip()]
        if found:
            text = found[-1]
            rows = text if text.startswith("[") else f"[{','.join(line for line in text.splitlines() if line.strip())}]"
            declared = from_text(rows, "conversations[0].value")
            return declared if isinstance(declared, list) else []
    return []


# Messages, as records


def turns(messages: Sequence[Mapping[str, Any]], row: Mapping[str, Any], source: str, note: Note) -> Iterator[Record]:
    """A record for each request of a conversation: the user's words since the last answer, and the calls that answered
    them. None where an answer has weight 0 or nothing was answered."""
    tools = declared_tools(row, note)
    if not tools and (own := hermes_tools(messages)):
        tools = declared_tools({"tools": own}, note)
    words: list[str] = []
    history: list[dict[str, str]] = []
    said: Mapping[str, Any] | None = None  # the last answer in words to what was asked
    number = 0
    pending: list[Call] = []  # of neighbouring messages, until a result or another request comes
    unlearned = False

    def record(calls: Sequence[Call]) -> Record:
        nonlocal number
        number += 1
        name = str(row["id"]) if number == 1 else f"{row['id']}-{number}"
        meta = {"history": list(history)} if history else {}
        return Record(name, "\n".join(words), tools, tuple(calls), str(row.get("source", source)), meta=meta)

    def close() -> Iterator[Record]:
        """The calls so far are the answer to the words so far."""
        nonlocal words, said, pending, unlearned
        if pending:
            if unlearned:
                note("an answer of weight 0, not to be learned")
            else:
                yield record(pending)
            turn = {"request": "\n".join(words), "calls": json.dumps([call.to_json() for call in pending])}
            history.append(turn)
            words, said, pending, unlearned = [], None, [], False

    for index, message in enumerate(messages):
        role = message["role"]
        if role == "user":
            yield from close()
            words.append(content(message.get("content"), f"messages[{index}].content"))
        elif role in ("tool", "function"):
            if not pending and words:
                raise FieldError(f"messages[{index}]", "expected the call before its result")
            yield from close()
        elif role == "assistant":
            calls = answered(message, index, tools)
            if calls and not words:
                note("further calls after a tool's result")
            elif calls:
                pending += calls
                unlearned = unlearned or message.get("weight") == 0
            elif words and not pending:
                said = message
    yield from close()
    if words and said is not None and said.get("weight") == 0:
        note("an answer of weight 0, not to be learned")
    elif words and said is not None and not _has_words(said) and said.get("tool_calls") != []:
        note("a request whose answer is empty")
    elif words and said is not None:
        yield record(())
    elif words:
        note("a request without an answer")


def _has_words(message: Mapping[str, Any]) -> bool:
    text = message.get("content")
    return bool(text.strip()) if isinstance(text, str) else isinstance(text, list) and bool(text)


def answered(message: Mapping[str, Any], index: int, tools: Sequence[Tool]) -> list[Call]:
    """The calls of a message, those that its text spells too."""
    extra = message.get("additional_kwargs")  # LangChain's
    message = {**extra, **{k: v for k, v in message.items() if v}} if isinstance(extra, Mapping) else message
    older = message.get("function_call")
    older = from_text(older, f"messages[{index}].function_call") if isinstance(older, str) else older
    given = message.get("tool_calls") or ([{"function": older}] if isinstance(older, Mapping) else [])
    if isinstance(given, str):
        given = from_text(given, f"messages[{index}].tool_calls")
    if not isinstance(given, list):
        raise FieldError("tool_calls", "expected an array")
    calls = [read_call(call, f"tool_calls[{place}]") for place, call in enumerate(given)]
    text = message.get("content")
    if isinstance(text, list):
        text = "\n".join(
            part["text"] for part in text if isinstance(part, Mapping) and isinstance(part.get("text"), str)
        )
    if not calls and isinstance(text, str):
        try:
            calls = [fitted(call, tools) for call in calls_in_text(text) or []]
        except FieldError as error:
            raise FieldError(f"messages[{index}]", f"a call that is written into the text: {error.expected}") from error
        stranger = next((call.name for call in calls if all(call.name != tool.name for tool in tools)), None)
        if stranger is not None:
            raise FieldError(
                f"messages[{index}]", f"words, or calls of the tools; it spells a call of '{stranger}', which is none"
            )
    return calls


def content(value: Any, where: str) -> str:
    """The text of a message. Raises `FieldError` for pictures and sounds: such a request can't be answered from its
    words."""
    if isinstance(value, list):  # parts: {"type": "text", "text": ...}
        for part in value:
            kind = str(part.get("type") or "") if isinstance(part, Mapping) else ""
            filled = [str(key) for key, own in part.items() if own] if isinstance(part, Mapping) else []
            keys = [kind] if "text" in kind else [kind, *filled]
            found = next((one for one in SENT_ALONG for key in keys if key.startswith((one, f"input_{one}"))), None)
            if found:
                raise FieldError(where, f"expected text; a part of it is '{found}', which no words can replace")
        words = [part.get("text") if isinstance(part, Mapping) else part for part in value]
        value = "\n".join(word for word in words if isinstance(word, str) and word) or None
    if not isinstance(value, str):
        raise FieldError(where, "expected a string or an array of text parts")
    return value
