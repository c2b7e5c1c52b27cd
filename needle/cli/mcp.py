"""`needle mcp mcp=config.json`: an MCP server with one tool, `do(request)`, in front of other MCP servers."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from needle.cli.plain import read_settings
from needle.cli.say import fail

ABOUT = (
    "Says in one sentence what should be done; the right tool among many is chosen and called with its arguments taken"
    " from that sentence. Returns the tool's result, or why nothing was called."
)


@dataclass
class McpSettings:
    """`mcp` is the configuration of the servers behind it, as hosts have it; `checkpoint` a folder, the released
    student when there is none. Below `min_confidence` nothing is called, and it is said why. Of more than `max_tools`
    tools the student is shown those that fit best. It speaks over standard input and output."""

    mcp: str = ""
    checkpoint: str | None = None
    min_confidence: float = 0.5
    max_tools: int = 16


async def serve(config: McpSettings) -> None:
    from mcp.server.mcpserver import MCPServer

    from needle.engine.open import open_engine
    from needle.serve.toolbox import ToolFailed, declined, open_toolbox, read_servers

    if not config.mcp:
        raise ValueError("mcp is missing: the configuration of the MCP servers, mcp=config.json")
    servers = read_servers(Path(config.mcp))
    engine = open_engine(config.checkpoint, max_tools=config.max_tools, alone=True)
    async with open_toolbox(engine, servers) as box:
        server = MCPServer("needle", log_level="WARNING")

        @server.tool(description=ABOUT, structured_output=False)
        async def do(request: str) -> str:
            answer = await asyncio.to_thread(box.choose, request)
            reason = declined(answer, config.min_confidence)
            if reason:
                return reason
            said = []
            for call in answer.calls or ():
                given = json.dumps(call.arguments, ensure_ascii=False)
                try:
                    said.append(f"{call.name} {given}\n{await box.call(call)}")
                except ToolFailed as error:
                    said.append(f"{call.name} {given}\n{error}")
            return "\n\n".join(said)

        await server.run_stdio_async()


def main() -> None:
    try:
        config = read_settings(McpSettings, sys.argv[1:], "mcp")
        if config is not None:
            asyncio.run(serve(config))
    except (ValueError, FileNotFoundError) as error:
        fail(str(error))
