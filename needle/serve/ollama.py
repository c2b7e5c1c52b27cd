"""Ollama's addresses, as far as tools go: `/api/chat`, `/api/tags`, `/api/show`, `/api/version`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from needle import __version__
from needle.serve.chat import Ascii, Said, said_of, wish_of
from needle.serve.desk import Desk
from needle.text.records import ToolSchemaError

VERSION = "0.12.0"  # of Ollama, whose answers these are: clients look whether it knows tools


class ChatRequest(BaseModel):
    """What is read of a request; all else that clients send is taken and changes nothing."""

    model_config = ConfigDict(extra="allow")
    model: str = Field(default="", description="any name: there is one model here")
    messages: list[dict[str, Any]] = []
    tools: list[Any] | None = None
    stream: bool = True
    format: str | dict[str, Any] | None = None


class ShowRequest(BaseModel):
    model_config = ConfigDict(extra="allow")
    model: str = ""


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(prefix="/api")
    model = desk.engine.model
    name = f"{model.folder.resolve().name if model.folder else 'needle'}:latest"
    details = {
        "parent_model": "",
        "format": "safetensors",
        "family": model.family,
        "families": [model.family],
        "parameter_size": f"{desk.engine.backend.parameters / 1e6:.1f}M",
        "quantization_level": desk.engine.backend.precision,
    }
    entry = {
        "name": name,
        "model": name,
        "modified_at": datetime.now(UTC).isoformat(),
        "size": 4 * desk.engine.backend.parameters,
        "digest": (model.weights or "0").ljust(64, "0"),
        "details": details,
    }

    @routes.get("/version")
    async def version() -> dict[str, str]:
        return {"version": VERSION, "needle": __version__}

    @routes.get("/tags")
    async def tags() -> dict[str, Any]:
        return {"models": [entry]}

    @routes.get("/ps")
    async def loaded() -> dict[str, Any]:
        return {"models": [{**entry, "expires_at": "2318-01-01T00:00:00Z", "size_vram": 0}]}

    @routes.post("/show")
    async def show(body: ShowRequest) -> dict[str, Any]:
        known = {"general.architecture": model.family, f"{model.family}.context_length": model.max_length}
        return {
            "modelfile": "",
            "parameters": "",
            "template": "",
            "details": details,
            "model_info": known,
            "capabilities": ["completion", "tools"],
        }

    @routes.post("/chat", response_model=None)
    async def chat(body: ChatRequest, http: Request) -> Response:
        started = time.perf_counter_ns()
        if not body.messages:  # how a client has a model loaded
            return Ascii(_last(body.model or name, started, None) | {"done_reason": "load"})
        wish = wish_of(body.messages, body.tools, None, _schema(body.format), "messages")
        said = await said_of(desk, wish, None, None, http)
        if body.stream:
            lines = _lines(said, body.model or name, started)
            return StreamingResponse(lines, media_type="application/x-ndjson")
        last = _last(body.model or name, started, said)
        return Ascii({**last, "message": _message(said), **said.more})

    return routes


def _schema(wanted: str | Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if wanted is None or wanted == "":
        return None
    if isinstance(wanted, str):
        raise ToolSchemaError("/format", "expected a JSON Schema: without one there is no JSON to give")
    return wanted


def _message(said: Said) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said.text or ""}
    if said.calls:
        message["tool_calls"] = [
            {"function": {"name": call.name, "arguments": dict(call.arguments)}} for _, call in said.calls
        ]
    return message


def _last(model: str, started: int, said: Said | None) -> dict[str, Any]:
    """What ends an answer; durations in nanoseconds."""
    took = time.perf_counter_ns() - started
    return {
        "model": model,
        "created_at": datetime.now(UTC).isoformat(),
        "message": {"role": "assistant", "content": ""},
        "done_reason": "length" if said and said.finish == "length" else "stop",
        "done": True,
        "total_duration": took,
        "load_duration": 0,
        "prompt_eval_count": said.read if said else 0,
        "prompt_eval_duration": took // 2,
        "eval_count": said.written if said else 0,
        "eval_duration": took // 2,
    }


def _lines(said: Said, model: str, started: int) -> Iterator[str]:
    """What is said, then an empty message with the counts."""
    first = {"model": model, "created_at": datetime.now(UTC).isoformat(), "message": _message(said), "done": False}
    yield json.dumps(first) + "\n"
    yield json.dumps({**_last(model, started, said), **said.more}) + "\n"
