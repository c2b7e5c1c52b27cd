"""The HTTP server: the article's `POST /tool-call`, the addresses of other APIs, a page, health and metrics. Everything
stays on this machine, unless a fallback is set.

Whatever a client sends is answered with a reason: 422 for input that isn't right, 413 for input that is too long, 503
when too many requests are waiting already; other APIs' clients get the status and the shape that they expect.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from needle import __version__
from needle.engine.decode import MAX_TOKENS, Engine
from needle.engine.decode import Request as Asked
from needle.serve import ollama, openai, playground
from needle.serve.desk import Busy, Desk, Given, Gone, ServeConfig, asked_of, escalation, notes
from needle.serve.faults import fault
from needle.serve.guard import Guard, read_keys
from needle.text.prompt import PromptError
from needle.text.records import ToolSchemaError

KNOWN = (  # what has a metric of its own
    "/", "/tool-call", "/health", "/metrics", "/v1/chat/completions", "/v1/responses", "/v1/models", "/api/chat",
    "/api/tags", "/api/show", "/api/version",
)  # fmt: skip


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
    """`sources` says where in the prompt the values of arguments were copied from: the first character and the one
    behind the last. `confidence` is of this call, `argument_confidence` of each of its arguments, where the student
    answers."""

    name: str
    arguments: dict[str, Any]
    sources: dict[str, list[tuple[int, int]]] = {}
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


def create_app(engine: Engine, config: ServeConfig) -> FastAPI:
    """The application. Raises ValueError for a fallback whose settings don't fit the engine."""
    desk = Desk(engine, config)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        async with desk.open():
            yield

    app = FastAPI(title="Needle", version=__version__, lifespan=life)
    app.state.desk = desk
    app.add_middleware(_BodyLimit, limit=config.max_body)
    keys, metrics = read_keys(config.keys), desk.metrics
    app.add_middleware(Guard, keys=keys, per_minute=config.per_minute, metrics=metrics, known=KNOWN)
    app.include_router(playground.router())
    app.include_router(openai.router(desk))
    app.include_router(ollama.router(desk))

    @app.post("/tool-call", response_model=ToolCallResponse, response_model_exclude_unset=True)
    async def tool_call(request: ToolCallRequest, http: Request) -> ToolCallResponse:
        def read() -> Asked:
            return asked_of(
                request.prompt,
                "/prompt",
                request.available_functions,
                "/available_functions",
                request.strict,
                now=request.now,
                omit=request.unfit == "omit",
            )

        return _response(await desk.answer(read, request.max_tokens, http), desk.asks)

    @app.get("/health/live")
    @app.get("/health/ready")
    async def well() -> dict[str, str]:
        return {"status": "ok"}  # weights are loaded before anybody is heard

    @app.get("/metrics", include_in_schema=False)
    async def told() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "needle": __version__,
            "family": engine.model.family,
            "parameters": engine.backend.parameters,
            "backend": f"{engine.backend.name}, {engine.backend.precision}",
            "codec": engine.model.codec_name,
            "max_length": engine.model.max_length,
        }

    @app.exception_handler(RequestValidationError)
    async def invalid(http: Request, error: RequestValidationError) -> JSONResponse:
        return fault(http.url.path, 422, [(list(one["loc"]), one["msg"]) for one in error.errors()])

    @app.exception_handler(ToolSchemaError)
    async def bad_schema(http: Request, error: ToolSchemaError) -> JSONResponse:
        place = error.pointer.strip("/").split("/")
        if place[0].isdigit():  # the engine counts the functions; it doesn't know where they came from
            place = ["available_functions" if http.url.path == "/tool-call" else "tools", *place]
        return fault(http.url.path, 422, [(["body", *place], error.message)])

    @app.exception_handler(HTTPException)
    async def other(http: Request, error: HTTPException) -> JSONResponse:
        said = [(["path"], f"{http.method} {http.url.path}: {error.detail}")]
        return fault(http.url.path, error.status_code, said)

    @app.exception_handler(PromptError)
    async def too_long(http: Request, error: PromptError) -> JSONResponse:
        return fault(http.url.path, 413, [(["body"], str(error))])

    @app.exception_handler(Busy)
    async def busy(http: Request, error: Busy) -> JSONResponse:
        return fault(http.url.path, 503, [(["body"], str(error))])

    @app.exception_handler(Gone)
    async def gone(http: Request, error: Gone) -> Response:
        return Response(status_code=499)  # nobody hears it

    return app


def _response(given: Given, asks: bool) -> ToolCallResponse:
    """The answer of the student, or the one from elsewhere."""
    answer, final = given.answer, given.final
    calls = [FunctionCall(name=call.name, arguments=dict(call.arguments)) for call in final.calls or ()]
    if given.own:
        for call, found in zip(calls, answer.calls or (), strict=True):
            call.sources = {name: list(places) for name, places in found.sources.items()}
        for call, whole, parts in zip(calls, answer.call_confidence, answer.argument_confidence, strict=True):
            call.confidence = round(whole, 6)
            call.argument_confidence = {name: round(part, 6) for name, part in parts.items()}
    first = calls[0] if calls else None
    return ToolCallResponse(
        function_name=first.name if first else None,
        parameters=first.arguments if first else None,
        confidence=round(answer.confidence, 6) if given.own else None,
        calibrated=given.own and answer.calibrated,
        calls=calls,
        finish=final.finish,
        **notes(final),
        **(escalation(given) if asks else {}),
    )


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
                answer = fault(
                    str(scope.get("path", "")), 413, [(["body"], f"the request is longer than {self.limit:,} bytes")]
                )
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
