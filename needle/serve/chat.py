"""What chat clients send, whoever's they are: a history, tools, a choice among them, a shape for the answer.

The last user turn is answered. A history that ends in a function's result gets a plain answer with that result, so that
agents come to an end. What a student of this size can't do, to chat, gets an honest sentence.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request as Http
from fastapi.responses import JSONResponse

from needle.engine.decode import MAX_TOKENS, Answer, Request
from needle.serve.desk import Desk, Given, asked_of, encodable_at, escalation, notes
from needle.text.prompt import PromptError
from needle.text.records import Call, Tool, ToolSchemaError

USER, RESULT = ("user",), ("tool", "function")
TEXTS = ("text", "input_text", "output_text")
SCHEMA = "answer"  # the tool that a wanted shape becomes
CHOICES = "expected auto, none, required, or a function by its name"


@dataclass(frozen=True)
class Wish:
    """What a client wants of the engine. `plain` is what it gets without asking the engine, None if that must be asked.

    `shape` if it wants JSON of a schema in place of calls; `single` if it takes one call at most.
    """

    query: str = ""
    tools: Any = ()
    where: str = "/messages"
    required: bool = False
    single: bool = False
    shape: bool = False
    plain: str | None = None

    def read(self) -> Request:
        asked = asked_of(self.query, self.where, list(self.tools), "/tools", omit=True)
        return replace(asked, required=self.required)


def wish_of(
    messages: Sequence[Mapping[str, Any]], tools: Any, choice: Any, shape: Mapping[str, Any] | None, where: str
) -> Wish:
    """`shape` is the JSON Schema that an answer must have. Raises `ToolSchemaError` with the place of what is wrong."""
    last = max((place for place, one in enumerate(messages) if one.get("role") in USER), default=None)
    results = [
        text_of(one.get("content"), f"/{where}/{place}/content")
        for place, one in enumerate(messages)
        if one.get("role") in RESULT and (last is None or place > last)
    ]
    if results:
        return Wish(plain="\n".join(results))
    if last is None:
        raise ToolSchemaError(f"/{where}", "there is no message of the user's to answer")
    query = text_of(messages[last].get("content"), f"/{where}/{last}/content")
    encodable_at(query, f"/{where}/{last}/content")
    wish = Wish(query, tools or (), f"/{where}/{last}/content")
    if shape is not None:
        named = {"name": SCHEMA, "description": str(shape.get("description", "")), "parameters": shape}
        return replace(wish, tools=[named], required=True, single=True, shape=True)
    wish = _chosen(wish, choice)
    return wish if wish.tools and query.strip() else replace(wish, plain="")


def _chosen(wish: Wish, choice: Any) -> Wish:
    """With the tools that a client leaves to choose from."""
    if choice in (None, "auto"):
        return wish
    if choice == "none":
        return replace(wish, tools=())
    if choice in ("required", "any"):
        if not wish.tools:
            raise ToolSchemaError("/tool_choice", f"'{choice}', but there are no tools to call")
        return replace(wish, required=True)
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if kind == "allowed_tools":  # a choice among some of them
        inner = choice.get("allowed_tools", choice)
        some = inner.get("tools") if isinstance(inner, Mapping) else None
        if not isinstance(some, list):
            raise ToolSchemaError("/tool_choice/allowed_tools/tools", "expected a list of tools")
        names = [_named(one) for one in some if isinstance(one, Mapping)]
        return _chosen(replace(wish, tools=_only(wish.tools, names)), inner.get("mode", "auto"))
    name = _named(choice) if isinstance(choice, Mapping) else None
    if not name:
        raise ToolSchemaError("/tool_choice", CHOICES)
    return replace(wish, tools=_only(wish.tools, [name]), required=True)


def _named(entry: Mapping[str, Any]) -> str | None:
    inner = entry.get("function")
    found = inner.get("name") if isinstance(inner, Mapping) else entry.get("name")
    return found if isinstance(found, str) else None


def _only(tools: Any, names: Sequence[str | None]) -> list[Any]:
    found = [tool for tool in tools if isinstance(tool, Mapping) and _named(tool) in names]
    known = [name for name in map(_named, filter(lambda one: isinstance(one, Mapping), tools)) if name]
    if not found:
        raise ToolSchemaError("/tool_choice", f"there is no tool of this name; there are {', '.join(known) or 'none'}")
    return found


def text_of(content: Any, where: str) -> str:
    """The text of a message: a string, or parts of text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ToolSchemaError(where, "expected text, or a list of parts")
    texts = []
    for number, part in enumerate(content):
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and part.get("type", "text") in TEXTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ToolSchemaError(f"{where}/{number}", f"a part of type {kind!s:.40}; only text is read")
    return "\n".join(texts)


def words_of(answer: Answer, desk: Desk) -> str:
    """What is said where nothing is called."""
    if answer.missing:
        wanted = "; ".join(f"{', '.join(one.arguments)} (for {one.name})" for one in answer.missing)
        return f"Please tell me: {wanted}."
    if answer.calls is None:
        return f"I can't answer that: {answer.error or answer.finish}."
    return desk.config.no_call


def shaped(answer: Answer) -> str | None:
    """The JSON that was wanted; None where there is none."""
    return json.dumps(answer.calls[0].arguments, ensure_ascii=False) if answer.calls else None


def tokens_of(wish: Wish, desk: Desk, tools: Sequence[Tool] = ()) -> int:
    """Tokens that were read: those of the request and of its tools, but for tools that can't be."""
    renderer, count = desk.engine.renderer, len(desk.engine.renderer.query(wish.query))
    for tool in tools:
        with contextlib.suppress(PromptError):
            count += len(renderer.tool(tool).ids)
    return count


class Said:
    """An answer as chat clients take it: text, or calls with names of their own."""

    def __init__(self, text: str | None, calls: Sequence[Call], finish: str, read: int, given: Given | None) -> None:
        self.text, self.finish, self.read, self.given = text, finish, read, given
        self.calls = [(f"call_{uuid.uuid4().hex[:24]}", call) for call in calls]

    @property
    def written(self) -> int:
        return self.given.answer.tokens if self.given else 0

    @property
    def more(self) -> dict[str, Any]:
        """What else is known: a field of our own that other clients pass by."""
        if self.given is None:
            return {}
        final = self.given.final
        own = {"confidence": round(final.confidence, 6), "calibrated": final.calibrated} if self.given.own else {}
        return {"needle": {**own, "finish": final.finish, **notes(final), **escalation(self.given)}}


async def said_of(desk: Desk, wish: Wish, most: int | None, parallel: bool | None, http: Http) -> Said:
    """What a client is told: at most so many tokens, one call alone where it doesn't want `parallel` ones."""
    if wish.plain is not None:
        return Said(wish.plain or desk.config.no_call, (), "stop", tokens_of(wish, desk), None)
    given = await desk.answer(wish.read, min(most or MAX_TOKENS, 2048), http)
    answer = given.final
    used = tokens_of(wish, desk, given.asked.tools)
    if wish.shape:
        text = shaped(answer)
        return Said(text if text is not None else words_of(answer, desk), (), _finish(answer), used, given)
    calls = answer.calls or ()
    if calls:
        return Said(None, calls[:1] if wish.single or parallel is False else calls, "tool_calls", used, given)
    return Said(words_of(answer, desk), (), _finish(answer), used, given)


def _finish(answer: Answer) -> str:
    return "length" if answer.finish == "length" else "stop"


class Ascii(JSONResponse):
    """JSON in escapes, so that it may hold what no encoder takes: clients get their own words back."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode("ascii")
