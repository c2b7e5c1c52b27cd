"""The page at `/`: one file, with nothing from elsewhere, which the browser is told as well."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import HTMLResponse


def router() -> APIRouter:
    routes = APIRouter()
    page = (files("needle.serve") / "page" / "index.html").read_text(encoding="utf-8")
    headers = {"Content-Security-Policy": policy(page), "Referrer-Policy": "no-referrer"}

    @routes.get("/", include_in_schema=False)
    async def playground() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    return routes


def policy(page: str) -> str:
    """What the page may do: its own script and style, by their hashes, and questions to this server."""
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; connect-src"
        " 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
