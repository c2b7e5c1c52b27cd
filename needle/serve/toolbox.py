"""MCP servers as one box of tools: the student chooses among all of theirs, fills the arguments, and what it chose is
called.

The configuration is the one that MCP hosts read: {"mcpServers": {"NAME": {"command": …, "args": […], "env": {…}} or
{"url": …}}}.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcp import Client, StdioServerParameters
from mcp.types import CallToolResult, TextContent

from needle.engine.decode import Answer, Engine, Request
from needle.text.declarations import SkippedTool, read_tools
from needle.text.records import Call, Tool

SHOWN = 16  # tools that the student is shown, of many
Server = StdioServerParameters | str  # a command, or an address


def read_servers(path: Path) -> dict[str, Server]:
    """The servers of a configuration, by name.

    Raises:
        ValueError: the file can't be read, or isn't one.
    """
    try:
        rows = json.loads(path.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} isn't JSON: {error}") from error
    servers = rows.get("mcpServers", rows.get("servers")) if isinstance(rows, Mapping) else None
    if not isinstance(servers, Mapping) or not servers:
        raise ValueError(f'{path}: expected {{"mcpServers": {{"NAME": {{"command": …, "args": […]}}}}}}')
    return {str(name): _server(path, str(name), row) for name, row in servers.items()}


def _server(path: Path, name: str, row: Any) -> Server:
    if isinstance(row, Mapping) and isinstance(row.get("url"), str):
        return str(row["url"])
    if isinstance(row, Mapping) and isinstance(row.get("command"), str):
        given = {key: row[key] for key in ("args", "env", "cwd") if row.get(key) is not None}
        try:
            return StdioServerParameters(command=row["command"], **given)
        except ValueError as error:
            raise ValueError(f"{path}, mcpServers.{name}: {str(error).splitlines()[-1].strip()}") from error
    raise ValueError(f"{path}, mcpServers.{name}: expected a command or a url")


@dataclass(frozen=True)
class Place:
    """Where a tool is: its server, and the name that it has there."""

    server: str
    name: str


class Toolbox:
    """The tools of running servers; see `open_toolbox`. A name that two servers have is put behind its server's."""

    def __init__(self, engine: Engine, clients: Mapping[str, Client]) -> None:
        self.engine, self.clients = engine, clients
        self.tools: tuple[Tool, ...] = ()
        self.skipped: tuple[SkippedTool, ...] = ()
        self.places: dict[str, Place] = {}

    async def look(self) -> None:
        """Asks the servers what they have."""
        found: list[tuple[Place, dict[str, Any]]] = []
        for server, client in self.clients.items():
            cursor = None
            while True:
                page = await client.list_tools(cursor=cursor)
                for tool in page.tools:
                    row = tool.model_dump(
                        by_alias=True, exclude_none=True, include={"name", "description", "input_schema"}
                    )
                    found.append((Place(server, tool.name), row))
                cursor = page.next_cursor
                if not cursor:
                    break
        names = [place.name for place, _ in found]
        rows = []
        for place, row in found:
            name = place.name if names.count(place.name) == 1 else f"{place.server}_{place.name}"
            self.places[name] = place
            rows.append({**row, "name": name})
        read = read_tools(rows)
        self.tools, self.skipped = read.tools, read.skipped

    def choose(self, request: str) -> Answer:
        """What the student would call. Raises `PromptError` for a request that is too long."""
        return self.engine.answer_one(Request(request, self.tools, omit=True))

    async def call(self, call: Call) -> str:
        """Calls a tool: the text of its result. Raises `ToolFailed`."""
        place = self.places[call.name]
        result = await self.clients[place.server].call_tool(place.name, dict(call.arguments))
        text = text_of(result)
        if result.is_error:
            raise ToolFailed(f"{place.server}: {call.name} failed: {text}")
        return text


class ToolFailed(Exception):
    """A tool says that it failed."""


def text_of(result: CallToolResult) -> str:
    """The text of a result; what isn't text is named."""
    parts = [one.text if isinstance(one, TextContent) else f"[{one.type}]" for one in result.content]
    if not parts and result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    return "\n".join(parts)


@asynccontextmanager
async def open_toolbox(engine: Engine, servers: Mapping[str, Server]) -> AsyncIterator[Toolbox]:
    """Starts the servers, and stops them at the end.

    Raises:
        ValueError: one can't be reached, or none has a tool.
    """
    try:
        async with AsyncExitStack() as stack:
            clients: dict[str, Client] = {}
            for name, server in servers.items():
                try:
                    clients[name] = await stack.enter_async_context(Client(server))
                except Exception as error:  # whatever a command or an address may do
                    said = f"{type(_first(error)).__name__}: {_first(error)}"[:300]
                    raise ValueError(f"the MCP server '{name}' can't be reached: {said}") from error
            box = Toolbox(engine, clients)
            await box.look()
            if not box.tools:
                raise ValueError("the MCP servers have no tool that can be used")
            yield box
    except BaseExceptionGroup as group:  # what went wrong inside, as the clients' tasks pass it on
        raise _first(group) from group


def _first(error: BaseException) -> BaseException:
    """What is behind an error of several tasks."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return error


def declined(answer: Answer, least: float) -> str:
    """Why nothing is called; empty if something may be."""
    if answer.missing:
        wanted = "; ".join(f"{one.name} needs {', '.join(one.arguments)}" for one in answer.missing)
        return f"Something is missing: {wanted}."
    if answer.calls is None:
        return f"There is no answer: {answer.error or answer.finish}."
    if not answer.calls:
        return "None of the tools does that."
    if answer.confidence < least:
        doubt = f" ({'; '.join(answer.reasons)})" if answer.reasons else ""
        return f"Not sure enough: {answer.confidence:.2f} < {least:.2f}{doubt}."
    return ""
