"""`needle collect` against a loopback server that speaks Gemini's REST API and goes wrong in every way that it can."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from aiohttp import web

from needle.collect.books import Books
from needle.collect.ledger import Answers
from needle.collect.money import DOLLAR
from needle.collect.services.gemini import Gemini, read_answer, rest_body
from needle.collect.services.hosted import Ask, Fault
from needle.collect.services.openai import OpenAI, read_completion
from needle.collect.settings import CollectConfig
from needle.collect.verify import Case
from needle.text.formats import read_records
from needle.text.records import Call, Tool
from needle.text.validity import call_errors
from tests.collecting import KEY, collect
from tests.gemini_server import Server, name_of, serve

FAULTS = {
    "rate": 0.03, "rate_hint": 0.03, "busy": 0.05, "drop": 0.03, "hang": 0.01, "malformed_call": 0.03, "empty": 0.03,
        "blocked": 0.02, "no_candidate": 0.02,
    "html": 0.02, "not_json": 0.02, "no_usage": 0.03, "merged": 0.03, "max_tokens": 0.02, "wrong_value": 0.03,
        "wrong_tool": 0.02,
}  # fmt: skip


def against(server: Server, folder: Path, config: CollectConfig, **more: Any) -> tuple[str | None, dict[str, Any]]:
    """One run against a server in the same process."""

    async def both() -> tuple[str | None, dict[str, Any]]:
        runner, url = await serve(server)
        try:
            return await collect(folder, url, config, **more)
        finally:
            await runner.cleanup()

    return asyncio.run(both())


def lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def nanodollars(folder: Path) -> int:
    return int(sqlite3.connect(folder / "ledger.sqlite").execute("SELECT charged FROM money").fetchone()[0])


def test_every_fault_is_counted_and_the_records_are_right(tmp_path: Path) -> None:
    server = Server(FAULTS, seed=1)
    stopped, manifest = against(
        server, tmp_path, CollectConfig(records=300, concurrency=32), timeout=8.0
    )  # long enough for a busy machine: only what hangs may run out
    assert stopped is None
    seen, events = server.seen, manifest["events"]
    assert events["rate"] == seen["rate"] + seen["rate_hint"]
    assert events["busy"] == seen["busy"]
    assert events["connection"] == seen["drop"]
    assert events["timeout"] == seen["hang"]
    for name, fault in (
        ("malformed_function_call", "malformed_call"),
        ("empty", "empty"),
        ("blocked", "blocked"),
        ("no_candidate", "no_candidate"),
        ("max_tokens", "max_tokens"),
    ):
        assert events[f"finish_{name}"] == seen[fault], name
    assert events["finish_unreadable"] == seen["html"]
    assert events["usage_missing"] == seen["no_usage"] + seen["html"]
    assert 0 < events["finish_merged_calls"] <= seen["merged"], "only where functions were offered"
    assert server.bill <= nanodollars(tmp_path)
    found = [
        record for split in ("train", "validation", "test") for record in read_records(tmp_path / f"{split}.jsonl.gz")
    ]
    assert len(found) == manifest["records"] >= 250
    for record in found:
        assert all(call_errors(call, record.tools) == [] for call in record.answers)
        right = [call for call in server.known[record.query] if call["name"] in {tool.name for tool in record.tools}]
        assert sorted(call.key for call in record.answers) == sorted(
            Call(call["name"], call["args"]).key for call in right
        )
    reasons = Counter(row["reason"] for row in lines(tmp_path / "dropped.jsonl.gz"))
    assert {reason: count for reason, count in manifest["funnel"].items() if reason not in ("items", "kept")} == dict(
        reasons
    )
    assert manifest["funnel"]["kept"] + sum(reasons.values()) == manifest["funnel"]["items"]


def test_the_same_command_again_sends_nothing_and_writes_the_same(tmp_path: Path) -> None:
    server = Server()
    config = CollectConfig(records=60)
    _, first = against(server, tmp_path, config)
    asked, before = len(server.log), (tmp_path / "train.jsonl.gz").read_bytes()
    for path in (tmp_path / "waves").iterdir():
        path.unlink()  # a better verifier judges again
    _, again = against(server, tmp_path, config)
    assert len(server.log) == asked
    assert gzip.decompress((tmp_path / "train.jsonl.gz").read_bytes()) == gzip.decompress(before)
    assert again["funnel"] == first["funnel"]
    _, more = against(server, tmp_path, CollectConfig(records=120))
    assert more["records"] >= 120
    assert len(server.log) == len({*server.log}), "the first half isn't asked for again"


def test_the_budget_is_never_exceeded_and_what_was_paid_for_is_kept(tmp_path: Path) -> None:
    server = Server({"drop": 0.05, "no_usage": 0.05})
    stopped, manifest = against(server, tmp_path, CollectConfig(records=1000, budget_usd=0.3, concurrency=32))
    assert stopped is not None
    assert "the budget is spent" in stopped
    assert server.bill <= nanodollars(tmp_path) <= 0.3 * DOLLAR
    assert manifest["dollars"] > 0.25
    assert manifest["funnel"]["items"] > 0


def test_money_that_comes_back_while_somebody_looks_is_not_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve, refused = Books.reserve, list[str]()

    async def late(books: Books, ask: Ask, most: int) -> bool:
        if len(refused) < 3:  # another request held the money when this one asked, and has settled since
            refused.append(ask.key)
            return False
        return await reserve(books, ask, most)

    monkeypatch.setattr(Books, "reserve", late)
    stopped, manifest = against(Server(), tmp_path, CollectConfig(records=20, budget_usd=0.3, concurrency=4))
    assert (stopped, len(refused)) == (None, 3)
    assert manifest["records"] >= 20


@pytest.mark.parametrize(("key", "cap", "message"), [("bad", None, "API key not valid"), (KEY, 25, "spending cap")])
def test_what_nobody_can_retry_stops_the_run_at_once(tmp_path: Path, key: str, cap: int | None, message: str) -> None:
    server = Server(spend_cap=cap)
    stopped, manifest = against(server, tmp_path, CollectConfig(records=300, concurrency=4), key=key)
    assert stopped is not None
    assert message in stopped
    assert len(server.log) <= (cap or 0) + 8
    assert manifest["requests"].get("dead", 0) == 0, "the same command goes on when it is mended"
    assert KEY not in json.dumps(manifest)


def test_the_key_is_nowhere_in_what_a_run_leaves(tmp_path: Path) -> None:
    against(Server(FAULTS | {"hang": 0.0}), tmp_path, CollectConfig(records=30))
    for path in tmp_path.rglob("*"):
        if path.is_file():
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            assert KEY.encode() not in content, path
    assert all(KEY not in json.dumps(row) for row in Answers(tmp_path))


@pytest.mark.parametrize("plan", [("done", "done", "done"), ("partial", "expired", "torn", "done", "partial")])
def test_batches_that_come_in_part_are_sent_again_and_at_last_one_by_one(tmp_path: Path, plan: tuple[str, ...]) -> None:
    server = Server({"busy": 0.2} if len(plan) > 3 else {}, batch_plan=plan)
    config = CollectConfig(records=80, mode="batch", batch_size=60, poll=0.02)
    stopped, manifest = against(server, tmp_path, config)
    assert stopped is None
    assert manifest["records"] >= 80
    assert server.jobs
    assert len({job["label"] for job in server.jobs.values()}) == len(server.jobs), "no batch was created twice"
    if len(plan) > 3:
        assert manifest["events"]["batch_unanswered"] > 0
        assert manifest["events"]["lost"] > 0, "half a file says nothing about the other half"
    else:
        assert len(server.log) == len(set(server.log))
        assert manifest["dollars"] * DOLLAR == server.bill
    assert server.bill <= nanodollars(tmp_path)


def test_a_batch_that_a_crash_left_behind_is_found_by_its_name_and_not_paid_for_twice(tmp_path: Path) -> None:
    server = Server()
    config = CollectConfig(records=40, mode="batch", poll=0.05)

    async def crash() -> None:
        runner, url = await serve(server)
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", BATCH_RUN, str(tmp_path), url)
        while len(server.jobs) < 2:
            await asyncio.sleep(0.01)
        process.kill()
        await process.wait()
        await collect(tmp_path, url, config)
        await runner.cleanup()

    asyncio.run(crash())
    assert len({job["label"] for job in server.jobs.values()}) == len(server.jobs)
    assert len(server.log) == len(set(server.log))
    assert nanodollars(tmp_path) == server.bill


BATCH_RUN = """
import asyncio, sys
from pathlib import Path
from needle.collect.settings import CollectConfig
from tests.collecting import collect
asyncio.run(collect(Path(sys.argv[1]), sys.argv[2], CollectConfig(records=40, mode="batch", poll=0.05)))
"""


def test_real_requests_are_labelled_with_votes_where_they_are_in_doubt(tmp_path: Path) -> None:
    light = Tool(
        "set_light",
        "Sets a light",
        {"type": "object", "properties": {"room": {"type": "string"}, "on": {"type": "boolean"}}, "required": ["room"]},
    )
    other = Tool("play_music", "Plays music", {"type": "object", "properties": {"artist": {"type": "string"}}})
    server = Server()
    texts = {
        f"lights in the room number {n} please": [
            {"name": "set_light", "args": {"room": f"room number {n}", "on": True}}
        ]
        for n in range(6)
    }
    server.known = {**texts, "play something": [{"name": "play_music", "args": {"artist": "nobody said so"}}]}
    requests = [
        Case(f"r{number}", text, (light, other))
        for number, text in enumerate([*server.known, "what is the meaning of life?"])
    ]
    stopped, manifest = against(server, tmp_path, CollectConfig(samples=3, phrasings=10), requests=requests)
    assert stopped is None
    assert manifest["funnel"] == {"items": 8, "ungrounded": 1, "kept": 7}
    assert {row["reason"]: row["detail"] for row in lines(tmp_path / "dropped.jsonl.gz")} == {
        "ungrounded": "play_music.artist = 'nobody said so'"
    }
    found = {
        record.query: record
        for split in ("train", "validation", "test")
        for record in read_records(tmp_path / f"{split}.jsonl.gz")
    }
    first = found["lights in the room number 0 please"]
    assert first.teacher is not None
    assert first.teacher["answers"] == [
        {"calls": [{"name": "set_light", "arguments": {"room": "room number 0", "on": True}}], "count": 3}
    ], "whether it is on is a matter of votes"
    assert found["what is the meaning of life?"].answers == ()
    assert len(server.log) == 8 + 2 * 7


@pytest.mark.parametrize("able", [True, False])
def test_log_probabilities_are_tried_once_and_never_needed(tmp_path: Path, able: bool) -> None:
    server = Server()
    server.logprobs = able
    stopped, manifest = against(server, tmp_path, CollectConfig(records=20, logprobs=3))
    assert stopped is None
    assert manifest["records"] >= 20
    found = [record.meta.get("logprob") for record in read_records(tmp_path / "train.jsonl.gz")]
    assert set(found) == ({-0.1} if able else {None})
    assert manifest["events"].get("refused", 0) == (0 if able else 1)
    assert any("no log-probabilities" in line for line in manifest["said"]) == (not able)


def test_an_online_request_and_a_line_of_a_batch_say_the_same() -> None:
    ask = Ask(
        "label",
        "m",
        "be brief",
        "lights on",
        (
            Tool(
                "a tool",
                "does it",
                {"type": "object", "properties": {"x": {"const": 1}}, "additionalProperties": False},
            ),
        ),
        thinking="low",
    )
    server = Server()

    async def send() -> None:
        runner, url = await serve(server)
        for version in ("v1beta", "v1"):
            teacher = Gemini("m", "k", url, version=version)
            await teacher.ask(ask)
            await teacher.close()
        await runner.cleanup()

    asyncio.run(send())
    assert server.bodies == [rest_body(ask)] * 2
    assert server.paths == {"v1beta": 1, "v1": 1}
    sent = rest_body(ask)["tools"][0]["functionDeclarations"][0]
    assert sent == {
        "name": "tool_0_a_tool",
        "description": "does it",
        "parametersJsonSchema": {"type": "object", "properties": {"x": {"enum": [1]}}},
    }


def test_both_spellings_are_read_alike_and_names_come_back() -> None:
    camel = {
        "candidates": [
            {
                "content": {
                    "parts": [
                        {"thought": True, "text": "hm"},
                        {"functionCall": {"name": "a_tool_0", "args": {"someKey": 5.0}}},
                    ]
                },
                "finishReason": "STOP",
            }
        ]
    }
    camel |= {
        "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 2, "thoughtsTokenCount": 3},
        "modelVersion": "m-001",
    }
    snake = json.loads(json.dumps(camel).replace("functionCall", "function_call").replace("finishReason",
        "finish_reason").replace("usageMetadata", "usage_metadata").replace("TokenCount",
        "_token_count").replace("modelVersion", "model_version"))  # fmt: skip
    answers = [read_answer(json.dumps(body), {"a_tool_0": "a tool"}) for body in (camel, snake)]
    assert answers[0] == answers[1]
    assert [call.to_json() for call in answers[0].calls] == [{"name": "a tool", "arguments": {"someKey": 5}}]
    assert answers[0].usage is not None
    assert answers[0].usage.output == 5


@pytest.mark.parametrize(
    ("arguments", "name", "expected"),
    [
        ('{"x": 1}', "f", [("f", {"x": 1})]),
        ('{"x": 1}{"x": 2}', "f", [("f", {"x": 1}), ("f", {"x": 2})]),
        ('{"x": 1} {"y": 2}', "fgg", [("f", {"x": 1}), ("gg", {"y": 2})]),
        ('{"x": 1', "f", None),
        ("[1]", "f", None),
        ({"x": 1}, "f", [("f", {"x": 1})]),
        (json.dumps('{"x": 1}'), "f", [("f", {"x": 1})]),
        ('{"x": 1}', "default_api.f", [("f", {"x": 1})]),
        ('{"x": 1}{"x": 1}', "f", [("f", {"x": 1})]),
    ],
)
def test_merged_parallel_calls_of_an_openai_endpoint_are_taken_apart(arguments: Any, name: str, expected: Any) -> None:
    body = {
        "choices": [
            {
                "message": {"tool_calls": [{"function": {"name": name, "arguments": arguments}}]},
                "finish_reason": "tool_calls",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
    }
    answer = read_completion(json.dumps(body), {"f": "f", "gg": "gg"})
    if expected is None:
        assert answer.finish == "malformed_function_call"
    else:
        assert [(call.name, call.arguments) for call in answer.calls] == expected


@pytest.mark.parametrize(
    ("text", "finish", "calls"),
    [
        ('<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>', "stop", [("f", {"x": 1})]),
        ('{"name": "default_api.f", "parameters": {"x": 1}}', "stop", [("f", {"x": 1})]),
        ("f(x=1)", "stop", [("f", {"x": 1})]),
        ("<tool_call>call f, please</tool_call>", "malformed_function_call", []),
        ("Nothing of this fits.", "stop", []),
    ],
)
def test_calls_that_a_teacher_left_in_its_text_are_read(text: str, finish: str, calls: Any) -> None:
    completion = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
    candidate = {"candidates": [{"content": {"parts": [{"text": text}]}, "finishReason": "STOP"}]}
    for answer in (
        read_completion(json.dumps(completion), {"f": "f"}),
        read_answer(json.dumps(candidate), {"f": "f"}),
    ):
        assert answer.finish == finish
        assert [(call.name, call.arguments) for call in answer.calls] == calls


def test_a_call_that_gemini_calls_malformed_is_read_where_it_can_be() -> None:
    said = "Malformed function call: print(default_api.f(x=1))"
    body = {"candidates": [{"finishReason": "MALFORMED_FUNCTION_CALL", "finishMessage": said}]}
    answer = read_answer(json.dumps(body), {"f": "f"})
    assert (answer.finish, [(call.name, call.arguments) for call in answer.calls]) == ("stop", [("f", {"x": 1})])


def test_an_openai_endpoint_is_asked_and_its_errors_are_understood() -> None:
    seen: list[dict[str, Any]] = []
    replies = [(429, {"Retry-After": "3"}), (503, {}), (400, {}), (401, {}), (200, {})]

    async def chat(request: web.Request) -> web.Response:
        seen.append(await request.json())
        assert request.headers["Authorization"] == "Bearer k"
        status, headers = replies[len(seen) - 1]
        call = {"type": "function", "function": {"name": "tool_0_a_tool", "arguments": '{"x": 1}'}}
        body = {
            "model": "m-1",
            "choices": [{"message": {"tool_calls": [call]}, "finish_reason": "tool_calls"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 2},
        }
        return web.json_response(
            body if status == 200 else {"error": {"message": "no"}}, status=status, headers=headers
        )

    async def talk() -> list[Any]:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", chat)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        teacher = OpenAI("m", "k", f"http://127.0.0.1:{runner.addresses[0][1]}/v1", timeout=2.0)
        ask = Ask("label", "m", "be brief", "do it", (Tool("a tool", "does it"),))
        found: list[Any] = []
        for _ in replies:
            try:
                found.append(teacher.read(ask, await teacher.ask(ask)))
            except Fault as fault:
                found.append((fault.kind, fault.retry_after, fault.charged))
        await runner.cleanup()
        try:
            await teacher.ask(ask)
        except Fault as fault:
            found.append((fault.kind, fault.retry_after, fault.charged))
        await teacher.close()
        return found

    *faults, answer, gone = asyncio.run(talk())
    assert faults == [("rate", 3.0, False), ("busy", None, False), ("refused", None, False), ("denied", None, False)]
    assert gone == ("connection", None, True)
    assert [call.to_json() for call in answer.calls] == [{"name": "a tool", "arguments": {"x": 1}}]
    assert (answer.finish, answer.usage.input, answer.usage.output, answer.model) == ("stop", 5, 2, "m-1")
    assert [message["role"] for message in seen[0]["messages"]] == ["system", "user"]
    assert seen[0]["tools"][0]["function"]["name"] == "tool_0_a_tool"


def test_what_the_server_says_about_an_error_decides_what_is_done() -> None:
    async def faults() -> list[Fault]:
        found = []
        for name, seconds in (("rate_hint", 0.0), ("busy", 0.0), ("drop", 0.0), ("hang", 0.0)):
            runner, url = await serve(Server({name: 1.0}))
            teacher = Gemini("m", "k", url, timeout=0.5)
            started = time.monotonic()
            with pytest.raises(Fault) as caught:
                await teacher.ask(Ask("label", "m", "s", "t", tools=(Tool("f"),)))
            assert time.monotonic() - started < 3 + seconds, "one try, whatever happens"
            found.append(caught.value)
            await teacher.close()
            await runner.cleanup()
        return found

    rate, busy, drop, hang = asyncio.run(faults())
    assert (rate.kind, rate.retry_after, rate.charged) == ("rate", 0.2, False)
    assert (busy.kind, busy.charged) == ("busy", False)
    assert (drop.kind, drop.charged) == ("connection", True)
    assert (hang.kind, hang.charged) == ("timeout", True)


def test_ctrl_c_waits_for_what_is_under_way_and_the_same_command_goes_on(tmp_path: Path, loopback: str) -> None:
    command = [sys.executable, "-m", "tests.collecting", str(tmp_path), loopback, "150", "5"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while _account(loopback, 0)["requests"] < 40:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert out.strip() == "interrupted; the same command goes on"
    with sqlite3.connect(tmp_path / "ledger.sqlite") as ledger:
        assert ledger.execute("SELECT COUNT(*) FROM requests WHERE state IN ('sent', 'reserved')").fetchone() == (0,)
        assert ledger.execute("SELECT reserved FROM money").fetchone() == (0,)
    assert "lost" not in json.loads((tmp_path / "manifest.json").read_text())["events"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "finished"
    assert json.loads((tmp_path / "manifest.json").read_text())["records"] >= 150


# kill -9


@pytest.fixture
def loopback() -> Iterator[str]:
    """A server in a process of its own, which outlives the runs against it."""
    process = subprocess.Popen([sys.executable, "-m", "tests.gemini_server", "--faults", json.dumps({"busy": 0.03,
        "drop": 0.02, "no_usage": 0.02}), "--delay", "0.05"], stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.kill()


def _account(url: str, start: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/bill?from={start}") as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def _killed(folder: Path, url: str, kills: int, records: int, budget: float) -> None:
    source = random.Random(0)
    done = 0
    while True:
        stored = (
            Counter(name_of(row["text"], [tool["name"] for tool in row["tools"]]) for row in Answers(folder))
            if (folder / "ledger.sqlite").exists()
            else Counter[str]()
        )
        asked = _account(url, 0)["requests"]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.collecting", str(folder), url, str(records), str(budget)],
            stdout=subprocess.PIPE,
            text=True,
        )
        if done < kills:
            before = asked
            while _account(url, 0)["requests"] == before and process.poll() is None:
                time.sleep(0.02)  # it reads, recovers, begins
            deadline = time.monotonic() + source.uniform(0.05, 0.7)
            while time.monotonic() < deadline and process.poll() is None:
                assert _account(url, 0)["bill"] <= budget * DOLLAR
                time.sleep(0.05)
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                done += 1
        out, _ = process.communicate()
        account = _account(url, asked)
        assert account["bill"] <= budget * DOLLAR
        again = [name for name in account["log"] if stored[name]]
        # Requests that differ only in the sample's number say the same; those are no repetitions.
        twice = [name for name in set(again) if stored[name] + account["log"].count(name) > 3]
        assert not twice, "a request whose answer is stored was sent again"
        if process.returncode == 0:
            assert out.strip() == "finished"
            break
    assert done == kills, "it was finished too soon to be killed this often"
    with sqlite3.connect(folder / "ledger.sqlite") as ledger:
        book = {row[0] for row in ledger.execute("SELECT id FROM requests WHERE state = 'done'")}
        charged, reserved = ledger.execute("SELECT charged, reserved FROM money").fetchone()
        frames = [zstandard.decompress(data) for (data,) in ledger.execute("SELECT data FROM frames")]
    disk = [row["id"] for row in Answers(folder)]
    assert len(disk) == len(set(disk)), "no answer was paid for twice"
    assert set(disk) == book, "requests and answers agree"
    assert sorted(disk) == sorted(json.loads(line)["id"] for frame in frames for line in frame.splitlines())
    assert reserved == 0
    assert _account(url, 0)["bill"] <= charged <= budget * DOLLAR
    assert json.loads((folder / "manifest.json").read_text())["records"] >= records


def test_kill_9_loses_no_answer_and_pays_for_none_twice(tmp_path: Path, loopback: str) -> None:
    _killed(tmp_path, loopback, 4, 250, 5.0)


@pytest.mark.slow
def test_thirty_kills_in_one_run_of_2000_records(tmp_path: Path, loopback: str) -> None:
    _killed(tmp_path, loopback, 30, 2000, 20.0)
