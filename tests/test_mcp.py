"""MCP: other servers' tools as one box, asked in words, from the command line and as a server of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from needle.cli.ask import AskSettings, run
from needle.engine.decode import Answer, Request
from needle.serve.toolbox import Toolbox, ToolFailed, declined, open_toolbox, read_servers
from needle.text.records import Call, Missing

ROOT = Path(__file__).parent.parent


def answer(request: str) -> Answer:
    """What a student that knows these tools says."""
    sure = 0.3 if "maybe" in request else 0.9
    for words, call in (
        ("attic", Call("light_on", {"room": "attic"})),
        ("light", Call("light_on", {"room": "den"})),
        ("timer", Call("set_timer", {"minutes": 5})),
        ("tick", Call("clock_status", {})),
    ):
        if words in request:
            return Answer((call,), sure, "stop", reasons=("another tool is close: status 0.40",) if sure < 0.5 else ())
    return Answer((), 0.9, "stop")


class Knows:
    def __init__(self) -> None:
        self.offered: list[str] = []

    def answer_one(self, asked: Request) -> Answer:
        self.offered = [tool.name for tool in asked.tools]
        return answer(asked.query)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    servers = {
        name: {"command": sys.executable, "args": ["-m", "tests.mcp_server", name], "cwd": str(ROOT)}
        for name in ("home", "clock")
    }
    path = tmp_path / "mcp.json"
    path.write_text(json.dumps({"mcpServers": servers}))
    return path


def boxed(config: Path, do: Callable[[Toolbox], Any]) -> Any:
    async def go() -> Any:
        async with open_toolbox(Knows(), read_servers(config)) as box:  # type: ignore[arg-type]
            return await do(box)

    return asyncio.run(go())


def test_tools_of_several_servers_are_one_box(config: Path) -> None:
    async def look(box: Toolbox) -> tuple[list[str], str, str]:
        box.choose("light")
        home = await box.call(Call("home_status", {}))
        return sorted(tool.name for tool in box.tools), home, await box.call(Call("set_timer", {"minutes": 7}))

    names, home, timer = boxed(config, look)
    assert names == ["clock_status", "home_status", "light_on", "set_timer"]
    assert (home, timer) == ("all is well at home", "7 minutes from now")


def test_a_tool_that_fails_says_so(config: Path) -> None:
    async def fail(box: Toolbox) -> str:
        with pytest.raises(ToolFailed, match="home: light_on failed: .*no light in the attic"):
            await box.call(Call("light_on", {"room": "attic"}))
        return await box.call(Call("light_on", {"room": "den"}))

    assert boxed(config, fail) == "the light in the den is on"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "isn't JSON"),
        ("[]", "expected"),
        ('{"mcpServers": {}}', "expected"),
        ('{"mcpServers": {"a": {"args": []}}}', "mcpServers.a: expected a command or a url"),
        ('{"mcpServers": {"a": {"command": "x", "args": 3}}}', "mcpServers.a"),
    ],
)
def test_a_configuration_that_is_none_is_refused_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mcp.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_servers(path)
    with pytest.raises(ValueError, match="can't be read"):
        read_servers(tmp_path / "none.json")


def test_a_server_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    path.write_text(json.dumps({"mcpServers": {"ghost": {"command": "/no/such/program"}}}))
    with pytest.raises(ValueError, match="the MCP server 'ghost' can't be reached"):
        boxed(path, lambda box: asyncio.sleep(0))


def test_why_nothing_is_called_is_said() -> None:
    assert declined(Answer((Call("a", {}),), 0.6, "stop"), 0.5) == ""
    assert declined(Answer((), 0.9, "stop"), 0.5) == "None of the tools does that."
    assert declined(answer("maybe light"), 0.5) == "Not sure enough: 0.30 < 0.50 (another tool is close: status 0.40)."
    assert declined(Answer((), 0.9, "stop", missing=(Missing("a", ("b",)),)), 0.5) == "Something is missing: a needs b."
    assert declined(Answer(None, 0.0, "length"), 0.5) == "There is no answer: length."


@pytest.fixture
def knowing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("needle.engine.open.open_engine", lambda *_, **__: Knows())


@pytest.mark.usefixtures("knowing")
def test_asking_shows_the_call_before_it_runs_it(
    config: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for said, code, shown in (("y", 0, "the light in the den is on"), ("n", 1, "nothing was called")):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
        monkeypatch.setattr("builtins.input", lambda _, said=said: said)
        assert run(AskSettings(mcp=str(config)), "light in the den") == code
        told = capfd.readouterr().err
        assert 'home: light_on(room="den")' in told
        assert shown in told
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False))
    with pytest.raises(ValueError, match="give yes=true"):
        run(AskSettings(mcp=str(config)), "light in the den")


@pytest.mark.usefixtures("knowing")
@pytest.mark.parametrize(
    ("request_", "code", "shown"),
    [
        ("a timer", 0, "5 minutes from now"),
        ("maybe a timer", 1, "Not sure enough: 0.30 < 0.50"),
        ("sing", 1, "None of the tools does that"),
        ("light in the attic", 1, "no light in the attic"),
    ],
)
def test_scripts_say_yes_and_get_a_code(
    config: Path, capfd: pytest.CaptureFixture[str], request_: str, code: int, shown: str
) -> None:
    assert run(AskSettings(mcp=str(config), yes=True), request_) == code
    assert shown in capfd.readouterr().err


def test_as_a_server_it_has_one_tool_that_does_what_is_asked(config: Path, tmp_path: Path) -> None:
    program = tmp_path / "needle_mcp.py"
    program.write_text(
        "import sys\nimport needle.engine.open\nfrom tests.test_mcp import Knows\n"
        "needle.engine.open.open_engine = lambda *a, **k: Knows()\n"
        f"sys.argv = ['mcp', 'mcp={config}']\nfrom needle.cli.mcp import main\nmain()\n"
    )

    async def ask() -> list[str]:
        server = StdioServerParameters(command=sys.executable, args=[str(program)], env={"PYTHONPATH": str(ROOT)})
        async with Client(server) as client:
            (tool,) = (await client.list_tools()).tools
            assert tool.name == "do"
            found = []
            for request in ("a timer", "does it tick", "sing", "maybe light", "light in the attic"):
                result = await client.call_tool("do", {"request": request})
                found.append(result.content[0].text)  # type: ignore[union-attr]
            return found

    timer, tick, sing, maybe, attic = asyncio.run(ask())
    assert timer == 'set_timer {"minutes": 5}\n5 minutes from now'
    assert tick == "clock_status {}\nit ticks"
    assert sing == "None of the tools does that."
    assert maybe.startswith("Not sure enough")
    assert "no light in the attic" in attic
