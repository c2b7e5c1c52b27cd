"""`needle ask "REQUEST" mcp=config.json`: has MCP servers do what is asked, after showing the calls."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from needle.cli.plain import read_settings
from needle.cli.say import console, fail
from needle.text.records import Call

if TYPE_CHECKING:
    from needle.engine.decode import Answer
    from needle.serve.toolbox import Toolbox


@dataclass
class AskSettings:
    """`mcp` is the configuration of the MCP servers, as hosts have it; `checkpoint` a folder, the released student when
    there is none. Calls are shown, and run once you say yes; with `yes` at once, if the answer is at least as sure as
    `min_confidence`. Of more than `max_tools` tools the student is shown those that fit best."""

    mcp: str = ""
    checkpoint: str | None = None
    yes: bool = False
    min_confidence: float = 0.5
    max_tools: int = 16


def run(config: AskSettings, request: str) -> int:
    """0 if all that was asked for was called, else 1."""
    from needle.engine.open import open_engine
    from needle.serve.toolbox import open_toolbox, read_servers

    if not config.mcp:
        raise ValueError("mcp is missing: the configuration of the MCP servers, mcp=config.json")
    servers = read_servers(Path(config.mcp))
    engine = open_engine(config.checkpoint, max_tools=config.max_tools, alone=True)

    async def do() -> int:
        async with open_toolbox(engine, servers) as box:
            for tool in box.skipped:
                console.print(f"left out: {tool.name}: {tool.reason}", markup=False)
            return await _answer(box, box.choose(request), config)

    return asyncio.run(do())


async def _answer(box: Toolbox, answer: Answer, config: AskSettings) -> int:
    from needle.serve.toolbox import ToolFailed, declined

    for call in answer.calls or ():
        console.print(f"{box.places[call.name].server}: {_shown(call)}", markup=False)
    reason = declined(answer, config.min_confidence if config.yes else 0.0)
    if reason:
        console.print(reason, markup=False)
        return 1
    doubts = f"; {'; '.join(answer.reasons)}" if answer.reasons else ""
    console.print(f"confidence {answer.confidence:.2f}{doubts}", markup=False)
    if not config.yes and not _agreed():
        console.print("nothing was called")
        return 1
    for call in answer.calls or ():
        try:
            console.print(await box.call(call), markup=False)
        except ToolFailed as error:
            console.print(str(error), markup=False)
            return 1
    return 0


def _shown(call: Call) -> str:
    given = ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in call.arguments.items())
    return f"{call.name}({given})"


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise ValueError("there is nobody to ask whether to run this; give yes=true")
    return input("Run it? [y/N] ").strip().lower() in ("y", "yes")


def main() -> None:
    words = sys.argv[1:]
    said = [word for word in words if not word.startswith("-") and "=" not in word]
    try:
        config = read_settings(AskSettings, [word for word in words if word not in said], "ask")
        if config is None:
            return
        if len(said) != 1:
            raise ValueError('expected one request in quotes: needle ask "REQUEST" mcp=config.json')
        sys.exit(run(config, said[0]))
    except (ValueError, FileNotFoundError) as error:
        fail(str(error))
