"""The recipe of docs/collect.md, command by command: from five tools to a served call, against the loopback server."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from needle.text.formats import read_records

PAGE = (Path(__file__).parents[1] / "docs" / "collect.md").read_text(encoding="utf-8")
SMALLER = {
    "collect": ["collect.records=60", "collect.yes=true", "collect.concurrency=8"],
    "train": ["train.steps=12", "train.batch_size=8", "train.micro_batch=8", "train.eval_every=12",
        "train.eval_records=8", "tokenizer.size=1200", "hardware.threads=1"],
    "evaluate": ["max_tokens=16", "data.test_size=4"],
}  # fmt: skip


@pytest.fixture
def loopback() -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.gemini_server"], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.kill()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


def needle(words: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    surroundings = {
        **{k: v for k, v in os.environ.items() if "API_KEY" not in k},
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",
        **environment,
    }
    return subprocess.run(
        [sys.executable, "-m", "needle.cli", *words],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=folder,
        env=surroundings,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_from_five_tools_to_a_served_call_by_the_documented_commands(tmp_path: Path, loopback: str) -> None:
    tools, (commands, curl) = blocks("json")[0], blocks("sh")
    (tmp_path / "my_tools.json").write_text(tools)
    *lines, serve = [shlex.split(line)[1:] for line in commands.strip().splitlines()]
    for words in lines:
        more = SMALLER[words[0]] + ([f"service.base_url={loopback}"] if words[0] == "collect" else [])
        done = needle([*words, *more], tmp_path, GEMINI_API_KEY="a-secret-key")
        assert done.returncode == 0, done.stderr
        assert "a-secret-key" not in done.stdout + done.stderr
        if "collect.dry_run=true" in words:
            assert "dry run: nothing was sent" in done.stderr
            assert not (tmp_path / "my_data" / "train.jsonl.gz").exists()
    assert len(list(read_records(tmp_path / "my_data" / "train.jsonl.gz"))) >= 40
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "needle.cli", *serve, f"serve.port={port}"], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    try:
        answer = _post(f"http://127.0.0.1:{port}/tool-call", json.loads(re.findall(r"-d '(.*)'", curl, re.DOTALL)[0]))
        assert {call["name"] for call in answer["calls"]} <= {"set_light"}
    finally:
        server.kill()


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    for _ in range(240):
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                found: dict[str, Any] = json.loads(response.read())
                return found
        except urllib.error.URLError:
            time.sleep(0.25)
    raise TimeoutError(url)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["service=gemini", "collect.records=10"], "there is nobody to ask"),
        (["service=gemini", "collect.records=10", "collect.yes=true"], "set the environment variable GEMINI_API_KEY"),
        (["collect.records=10"], "set service=gemini"),
        (["service=gemini", "service.model=gemini-99"], "collect.price=[INPUT,OUTPUT]"),
        (["service=gemini", "collect.tools=none.json"], "none.json: no such file"),
        (["service=gemini", "collect.mode=bach"], "expected one of online, batch"),
        (["service=openai", "collect.yes=true", "collect.price=[0,0]"], "service.base_url"),
    ],
)
def test_mistakes_end_in_one_line_that_says_what_would_be_right(tmp_path: Path, words: list[str], message: str) -> None:
    done = needle(["collect", *words], tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
