"""OpenAI's addresses: `/v1/chat/completions`, `/v1/responses` without state, `/v1/models`."""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from needle.serve.chat import Ascii, Said, said_of, wish_of
from needle.serve.desk import Desk
from needle.text.records import Call, ToolSchemaError

STARTED = int(time.time())
STREAM = "text/event-stream"


class Body(BaseModel):
    """What is read of a request; all else that clients send is taken and changes nothing."""

    model_config = ConfigDict(extra="allow")
    model: str = Field(default="", description="any name: there is one model here")
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="allow")
    include_usage: bool | None = None


class ChatRequest(Body):
    messages: list[dict[str, Any]] = Field(min_length=1)
    functions: list[Any] | None = None
    function_call: str | dict[str, Any] | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    n: int | None = Field(default=None, ge=1)
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None


class ResponsesRequest(Body):
    input: str | list[dict[str, Any]]
    text: dict[str, Any] | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    previous_response_id: str | None = None


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(prefix="/v1")
    folder = desk.engine.model.folder
    name = folder.resolve().name if folder else "needle"
    known = {"id": name, "object": "model", "created": STARTED, "owned_by": "needle"}

    @routes.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [known]}

    @routes.get("/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        return {**known, "id": model}

    @routes.post("/chat/completions", response_model=None)
    async def chat(body: ChatRequest, http: Request) -> Response:
        if (body.n or 1) > 1:
            raise ToolSchemaError("/n", "one answer is given: n must be 1")
        tools = body.tools if body.tools is not None else body.functions
        choice = body.tool_choice if body.tool_choice is not None else body.function_call
        wish = wish_of(body.messages, tools, choice, _schema(body.response_format, "/response_format"), "messages")
        said = await said_of(desk, wish, body.max_completion_tokens or body.max_tokens, body.parallel_tool_calls, http)
        made = _completion(said, body.model or name, bool(body.logprobs))
        if body.stream:
            usage = bool(body.stream_options and body.stream_options.include_usage)
            return StreamingResponse(_chunks(made, usage), media_type=STREAM)
        return Ascii(made)

    @routes.post("/responses", response_model=None)
    async def responses(body: ResponsesRequest, http: Request) -> Response:
        if body.previous_response_id:
            raise ToolSchemaError("/previous_response_id", "nothing is kept here; send the whole history as input")
        shape = _schema((body.text or {}).get("format"), "/text/format")
        wish = wish_of(_history(body.input), body.tools, body.tool_choice, shape, "input")
        said = await said_of(desk, wish, body.max_output_tokens, body.parallel_tool_calls, http)
        made = _made_response(said, body, name)
        if body.stream:
            return StreamingResponse(_events(made), media_type=STREAM)
        return Ascii(made)

    return routes


def _schema(wanted: Any, where: str) -> Mapping[str, Any] | None:
    """The schema of a wanted shape; None for plain text. OpenAI's two ways to say it."""
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind == "text":
        return None
    if kind != "json_schema":
        raise ToolSchemaError(
            f"{where}/type", "expected text or json_schema: without a schema there is no JSON to give"
        )
    inner = wanted.get("json_schema", wanted)
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if not isinstance(schema, Mapping):
        raise ToolSchemaError(f"{where}/json_schema/schema", "expected a JSON Schema")
    return schema


# Chat completions


def _completion(said: Said, model: str, logprobs: bool) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said.text, "refusal": None}
    if said.calls:
        message["tool_calls"] = [
            {"id": id, "type": "function", "function": {"name": call.name, "arguments": _arguments(call)}}
            for id, call in said.calls
        ]
    choice = {"index": 0, "message": message, "logprobs": _logprobs(said) if logprobs else None}
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{**choice, "finish_reason": said.finish}],
        "usage": {
            "prompt_tokens": said.read,
            "completion_tokens": said.written,
            "total_tokens": said.read + said.written,
        },
        "system_fingerprint": None,
        **said.more,
    }


def _arguments(call: Call) -> str:
    return json.dumps(call.arguments, ensure_ascii=False)


def _logprobs(said: Said) -> dict[str, Any] | None:
    """How sure each call is: one entry for each, its name for a token."""
    if said.given is None or not said.given.own:
        return None
    sure = said.given.answer.call_confidence
    rows = [(call.name, own) for (_, call), own in zip(said.calls, sure, strict=False)]
    rows = rows or [(said.text or "", said.given.answer.confidence)]
    found: list[dict[str, Any]] = [
        {"token": token, "logprob": math.log(max(own, 1e-9)), "bytes": None, "top_logprobs": []} for token, own in rows
    ]
    return {"content": found, "refusal": None}


def _chunks(made: Mapping[str, Any], usage: bool) -> Iterator[str]:
    """A completion as clients expect a stream: the role, what is said, an empty delta with the reason to stop."""
    (choice,) = made["choices"]
    message = choice["message"]
    shared = {key: made[key] for key in ("id", "created", "model", "system_fingerprint")}
    shared["object"] = "chat.completion.chunk"

    def chunk(delta: Mapping[str, Any], finish: str | None = None, **more: Any) -> str:
        one = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, **more}
        row = {**shared, "choices": [one], **({"usage": None} if usage else {})}
        return f"data: {json.dumps(row)}\n\n"

    yield chunk({"role": "assistant", "content": "" if message["content"] is not None else None, "refusal": None})
    if message["content"]:
        yield chunk({"content": message["content"]}, logprobs=choice["logprobs"])
    for number, call in enumerate(message.get("tool_calls", ())):
        opened = {**call["function"], "arguments": ""}
        yield chunk({"tool_calls": [{"index": number, "id": call["id"], "type": "function", "function": opened}]})
        rest = {"arguments": call["function"]["arguments"]}
        yield chunk({"tool_calls": [{"index": number, "function": rest}]})
    yield chunk({}, choice["finish_reason"])
    if usage:
        yield f"data: {json.dumps({**shared, 'choices': [], 'usage': made['usage']})}\n\n"
    yield "data: [DONE]\n\n"


# Responses


def _history(given: str | Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Items as messages: what a function gave back is a result."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    found: list[Mapping[str, Any]] = []
    for item in given:
        if item.get("type") == "function_call_output":
            found.append({"role": "tool", "content": item.get("output")})
        elif item.get("type", "message") == "message":
            found.append(item)
        else:
            found.append({"role": "assistant", "content": None})
    return found


def _made_response(said: Said, body: ResponsesRequest, name: str) -> dict[str, Any]:
    output: list[dict[str, Any]] = [
        {
            "type": "function_call",
            "id": f"fc_{id.removeprefix('call_')}",
            "call_id": id,
            "name": call.name,
            "arguments": _arguments(call),
            "status": "completed",
        }
        for id, call in said.calls
    ]
    if not output:
        content = {"type": "output_text", "text": said.text or "", "annotations": [], "logprobs": []}
        output = [
            {
                "type": "message",
                "id": f"msg_{uuid.uuid4().hex}",
                "role": "assistant",
                "status": "completed",
                "content": [content],
            }
        ]
    long = said.finish == "length"
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "incomplete" if long else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if long else None,
        "instructions": None,
        "model": body.model or name,
        "output": output,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "store": False,
        "temperature": None,
        "top_p": None,
        "text": body.text or {"format": {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "usage": {
            "input_tokens": said.read,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": said.written,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": said.read + said.written,
        },
        "metadata": {},
        **said.more,
    }


def _events(made: Mapping[str, Any]) -> Iterator[str]:
    """A response as the events that make it up."""
    number = 0

    def event(kind: str, **more: Any) -> str:
        nonlocal number
        row = {"type": kind, "sequence_number": number, **more}
        number += 1
        return f"event: {kind}\ndata: {json.dumps(row)}\n\n"

    begun = {**made, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield event("response.created", response=begun)
    yield event("response.in_progress", response=begun)
    for place, item in enumerate(made["output"]):
        at = {"item_id": item["id"], "output_index": place}
        if item["type"] == "function_call":
            opened = {**item, "arguments": "", "status": "in_progress"}
            yield event("response.output_item.added", output_index=place, item=opened)
            yield event("response.function_call_arguments.delta", **at, delta=item["arguments"])
            yield event("response.function_call_arguments.done", **at, name=item["name"], arguments=item["arguments"])
        else:
            (part,) = item["content"]
            opened = {**item, "content": [], "status": "in_progress"}
            yield event("response.output_item.added", output_index=place, item=opened)
            yield event("response.content_part.added", **at, content_index=0, part={**part, "text": ""})
            yield event("response.output_text.delta", **at, content_index=0, delta=part["text"], logprobs=[])
            yield event("response.output_text.done", **at, content_index=0, text=part["text"], logprobs=[])
            yield event("response.content_part.done", **at, content_index=0, part=part)
        yield event("response.output_item.done", output_index=place, item=item)
    yield event("response.incomplete" if made["status"] == "incomplete" else "response.completed", response=made)
