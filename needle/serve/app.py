"""The HTTP server: `POST /tool-call` and `GET /health`. Everything stays on this machine.

Whatever a client sends is answered with a reason: 422 for input that isn't right, 413 for input that is too long, 503
when too many requests are waiting already.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import anyio
from anyio.to_thread import run_sync
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from needle import __version__
from needle.collect.services.build import ServiceConfig
from needle.engine.decode import MAX_TOKENS, Answer, Engine
from needle.engine.decode import Request as Asked
from needle.serve.fallback import FallbackConfig, least_confidence
from needle.text.declarations import read_tools
from needle.text.prompt import PromptError
from needle.text.records import FieldError, ToolSchemaError, encodable

if TYPE_CHECKING:
    from needle.serve.elsewhere import Elsewhere, Escalated


@dataclass
class ServeConfig(FallbackConfig):
    """Where to listen, the largest body that is read, in bytes, and how many requests may wait for their turn.

    `workers` are processes that share the port, each with weights of its own; one that dies is started anew. In each,
    `threads` answer side by side where the backend can (onnx), when 0 as many as there are cores for it; torch answers
    one by one.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_body: int = 1_000_000
    max_waiting: int = 100
    threads: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threads < 0:
            raise ValueError(f"serve.threads is {self.threads}; it must be at least 1, or 0 for one on each core")
        if self.workers < 1:
            raise ValueError(f"serve.workers is {self.workers}; it must be at least 1")


class ToolCallRequest(BaseModel):
    """The article's request. `available_functions` may come in any dialect that the tool normaliser reads."""

    prompt: str = Field(min_length=1, description="what the user wants")
    available_functions: list[Any] | dict[str, Any] = Field(
        description="name, description and parameters (JSON Schema) of each function"
    )
    strict: bool = Field(
        default=False, description="refuse a function that can't be used; otherwise it is left out and named in skipped"
    )
    now: datetime | None = Field(default=None, description="the moment against which 'tomorrow' is read, ISO 8601")
    unfit: Literal["invalid", "omit"] = Field(
        default="invalid",
        description="what to do with an optional argument whose words don't fit: no answer, or leave the argument out",
    )
    max_tokens: int = Field(
        default=MAX_TOKENS,
        ge=1,
        le=2048,
        description="most tokens of the answer; beyond it there is no call and finish is 'length'",
    )


class FunctionCall(BaseModel):
    """`confidence` is of this call, `argument_confidence` of each of its arguments, where the student answers."""

    name: str
    arguments: dict[str, Any]
    confidence: float | None = None
    argument_confidence: dict[str, float] = {}


class SkippedFunction(BaseModel):
    """A function by its place in `available_functions`, and what is wrong with it."""

    index: int
    name: str
    reason: str


class MissingArguments(BaseModel):
    """A function that was wished for, and the required arguments that nobody said."""

    name: str
    arguments: list[str]


class ToolCallResponse(BaseModel):
    """`function_name` and `parameters` are those of the first call; null when no function fits. `confidence` is the
    probability that all of the answer is right if it is `calibrated`, null of an answer from elsewhere. The fields
    behind `finish` are there when they have something to say; with a fallback `answered_by` and `cost_usd` always are.
    """

    function_name: str | None
    parameters: dict[str, Any] | None
    confidence: float | None
    calibrated: bool
    calls: list[FunctionCall]
    finish: str
    error: str = ""
    skipped: list[SkippedFunction] = []
    shortened: list[SkippedFunction] = []
    left_out: list[str] = []
    missing: list[MissingArguments] = []
    reasons: list[str] = []
    answered_by: str = "needle"
    cost_usd: float = 0.0
    escalated_because: str = ""
    escalation_failed: str = ""


def create_app(engine: Engine, config: ServeConfig, service: ServiceConfig | None = None) -> FastAPI:
    """The application. Its threads live as long as it does: torch, and the caches of a core, know them. `service` says
    whom a fallback asks.

    Raises:
        ValueError: a fallback whose settings don't fit the engine.
    """
    elsewhere: Elsewhere | None = None
    asks = config.fallback != "none"
    least = least_confidence(config, engine.calibration) if asks else 0.0

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        nonlocal elsewhere
        if not asks:
            yield
            return
        from needle.serve.elsewhere import open_elsewhere  # needs what collecting needs

        async with open_elsewhere(config, service or ServiceConfig(), least) as elsewhere:
            app.state.elsewhere = elsewhere
            yield

    app = FastAPI(title="Needle", version=__version__, lifespan=life)
    app.add_middleware(_BodyLimit, limit=config.max_body)
    threads = config.threads or max((os.cpu_count() or 1) // config.workers, 1)
    threads = threads if engine.backend.concurrent else 1
    turn, workers = anyio.Semaphore(threads), ThreadPoolExecutor(threads, "needle")
    inside = 0  # requests that are read, waiting or being answered

    def read(request: ToolCallRequest) -> Asked:
        try:
            encodable(request.prompt, "prompt")
        except FieldError as error:
            raise ToolSchemaError("/prompt", error.expected) from error
        found = read_tools(request.available_functions, "/available_functions", request.strict)
        return Asked(
            request.prompt,
            found.tools,
            strict=request.strict,
            now=request.now,
            omit=request.unfit == "omit",
            skipped=found.skipped,
            places=found.places,
        )

    @app.post("/tool-call", response_model=ToolCallResponse, response_model_exclude_unset=True)
    async def tool_call(request: ToolCallRequest, http: Request) -> ToolCallResponse | Response:
        nonlocal inside
        if inside > config.max_waiting:
            return _fault(503, [(["body"], f"{config.max_waiting} requests are waiting already; try again")])
        inside += 1
        try:
            asked = await run_sync(read, request)
            async with turn:
                if await http.is_disconnected():
                    return Response(status_code=499)  # nobody hears it
                answer = await asyncio.get_running_loop().run_in_executor(
                    workers, engine.answer_one, asked, request.max_tokens
                )
            because = elsewhere.because(answer) if elsewhere else ""
            escalated = await elsewhere.ask(asked, because) if elsewhere and because else None
        finally:
            inside -= 1
        return _response(answer, escalated, asks)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "needle": __version__,
            "family": engine.model.family,
            "parameters": engine.backend.parameters,
            "codec": engine.model.codec_name,
            "max_length": engine.model.max_length,
        }

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return _fault(422, [(list(fault["loc"]), fault["msg"]) for fault in error.errors()])

    @app.exception_handler(ToolSchemaError)
    async def bad_schema(_: Request, error: ToolSchemaError) -> JSONResponse:
        place = error.pointer.strip("/").split("/")
        if place[0].isdigit():  # the engine counts the functions; it doesn't know where they came from
            place = ["available_functions", *place]
        return _fault(422, [(["body", *place], error.message)])

    @app.exception_handler(HTTPException)
    async def other(http: Request, error: HTTPException) -> JSONResponse:
        return _fault(error.status_code, [(["path"], f"{http.method} {http.url.path}: {error.detail}")])

    @app.exception_handler(PromptError)
    async def too_long(_: Request, error: PromptError) -> JSONResponse:
        return _fault(413, [(["body"], str(error))])

    return app


def _response(answer: Answer, escalated: Escalated | None, asks: bool) -> ToolCallResponse:
    """The answer of the student, or the one from elsewhere."""
    given = escalated.answer if escalated and escalated.answer else answer
    own = given is answer
    calls = [FunctionCall(name=call.name, arguments=dict(call.arguments)) for call in given.calls or ()]
    if own:
        for call, whole, parts in zip(calls, answer.call_confidence, answer.argument_confidence, strict=True):
            call.confidence = round(whole, 6)
            call.argument_confidence = {name: round(part, 6) for name, part in parts.items()}
    first = calls[0] if calls else None
    return ToolCallResponse(
        function_name=first.name if first else None,
        parameters=first.arguments if first else None,
        confidence=round(answer.confidence, 6) if own else None,
        calibrated=own and answer.calibrated,
        calls=calls,
        finish=given.finish,
        **_notes(given),
        **(_escalation(escalated, own) if asks else {}),
    )


def _escalation(escalated: Escalated | None, own: bool) -> dict[str, Any]:
    if escalated is None:
        return {"answered_by": "needle", "cost_usd": 0.0}
    found = {
        "answered_by": "needle" if own else escalated.by,
        "cost_usd": escalated.cost_usd,
        "escalated_because": escalated.because,
    }
    return {**found, **({"escalation_failed": _clean(escalated.failed)} if own else {})}


def _notes(answer: Answer) -> dict[str, Any]:
    """What was left out of a request and of its answer, and why there is none; without what has nothing to say."""
    found = {
        "error": _clean(answer.error),
        "skipped": [tool.to_json() for tool in answer.skipped],
        "shortened": [tool.to_json() for tool in answer.shortened],
        "left_out": list(answer.left_out),
        "missing": [{"name": one.name, "arguments": list(one.arguments)} for one in answer.missing],
        "reasons": [_clean(reason) for reason in answer.reasons],
    }
    return {name: value for name, value in found.items() if value}


def _fault(status: int, faults: list[tuple[list[Any], str]]) -> JSONResponse:
    # What the client sent isn't echoed: it may be huge, or hold text that no encoder takes.
    detail = [
        {
            "loc": [_clean(str(part)) for part in where],
            "path": "/" + _clean("/".join(str(part) for part in where[1:])),
            "msg": _clean(message),
        }
        for where, message in faults
    ]
    return JSONResponse({"detail": detail}, status_code=status)


def _clean(text: str) -> str:
    return text[:500].encode("utf-8", "replace").decode("utf-8")


def _as_json(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """A body is JSON, also where a client says nothing or, as curl does by itself, that it is a form."""
    others = [(name, value) for name, value in headers if name.lower() != b"content-type"]
    return [*others, (b"content-type", b"application/json")]


class _BodyLimit:
    """Stops reading a body at the limit, whether or not its length was announced."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if len(body) > self.limit:
                answer = _fault(413, [(["body"], f"the request is longer than {self.limit:,} bytes")])
                await answer(scope, receive, send)
                return
            if not message.get("more_body"):
                break
        scope = {**scope, "headers": _as_json(scope["headers"])}
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)
