"""Two small MCP servers over standard input and output, for tests: python -m tests.mcp_server home | clock"""

from __future__ import annotations

import sys

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError


def home() -> MCPServer:
    server = MCPServer("home", log_level="ERROR")

    @server.tool(description="Switch the light of a room on")
    def light_on(room: str) -> str:
        if room == "attic":
            raise ToolError("there is no light in the attic")
        return f"the light in the {room} is on"

    @server.tool(description="What the home can do")
    def status() -> str:
        return "all is well at home"

    return server


def clock() -> MCPServer:
    server = MCPServer("clock", log_level="ERROR")

    @server.tool(description="Start a timer")
    def set_timer(minutes: int) -> str:
        return f"{minutes} minutes from now"

    @server.tool(description="What the clock can do")
    def status() -> str:
        return "it ticks"

    return server


if __name__ == "__main__":
    {"home": home, "clock": clock}[sys.argv[1]]().run("stdio")
