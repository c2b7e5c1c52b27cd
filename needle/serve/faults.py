"""What a client is told when something is wrong, in the shape that it expects: OpenAI's, Ollama's, or a list of places.

What the client sent isn't echoed: it may be huge, or hold text that no encoder takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi.responses import JSONResponse

OPENAI, OLLAMA = "/v1/", "/api/"
TYPES = {
    401: "authentication_error", 404: "not_found_error", 413: "invalid_request_error", 429: "rate_limit_error",
    503: "server_error",
}  # fmt: skip
THEIRS = {422: 400, 503: 429}  # what their clients expect in place of ours
Faults = Sequence[tuple[Sequence[Any], str]]


def fault(path: str, status: int, faults: Faults) -> JSONResponse:
    """`faults` are places, as pydantic has them, with what is wrong there."""
    places = ["/".join(clean(str(part)) for part in where[1:]) for where, _ in faults]
    said = [clean(message) for _, message in faults]
    lines = [f"{place}: {message}" if place else message for place, message in zip(places, said, strict=True)]
    later = {"Retry-After": "1"} if status == 503 else None
    status = THEIRS.get(status, status) if path.startswith((OPENAI, OLLAMA)) else status
    if path.startswith(OPENAI):
        return JSONResponse(
            {"error": openai_error(status, "; ".join(lines), places[0] if places else "")}, status, later
        )
    if path.startswith(OLLAMA):
        return JSONResponse({"error": "; ".join(lines)}, status, later)
    detail = [
        {"loc": [clean(str(part)) for part in where], "path": f"/{place}", "msg": message}
        for (where, _), place, message in zip(faults, places, said, strict=True)
    ]
    return JSONResponse({"detail": detail}, status, later)


def openai_error(status: int, message: str, place: str) -> dict[str, Any]:
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"message": message, "type": kind, "param": place.replace("/", ".") or None, "code": None}


def clean(text: str) -> str:
    return text[:500].encode("utf-8", "replace").decode("utf-8")
