"""Asking somebody else: no request lost, no budget exceeded, whatever goes wrong there."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from needle.engine.confidence import Calibration, Map
from needle.engine.decode import Answer
from needle.engine.decode import Request as Asked
from needle.serve.app import create_app
from needle.serve.desk import ServeConfig
from needle.serve.fallback import FallbackConfig, least_confidence
from needle.text.formats import read_records
from needle.text.records import Call
from tests.gemini_server import PRICE, Server, serve

KEY = "the-secret-key"
LAMP = {
    "name": "set_lamp",
    "parameters": {
        "type": "object",
        "properties": {"room": {"type": "string"}, "level": {"type": "integer"}},
        "required": ["room"],
    },
}
OWN = Call("set_lamp", {"room": "attic"})
RIGHT = {"name": "set_lamp", "args": {"room": "den", "level": 3}}


@contextmanager
def loopback(server: Server) -> Iterator[str]:
    """The server in a thread of its own; its address."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    runner, url = asyncio.run_coroutine_threadsafe(serve(server), loop).result(20)
    try:
        yield url
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)


def student(confidence: float, calls: tuple[Call, ...] | None = (OWN,), calibration: Calibration | None = None) -> Any:
    """An engine that always says the same."""
    sure = tuple(confidence for _ in calls or ())
    parts = tuple({"room": confidence} for _ in calls or ())
    answer = Answer(
        calls, confidence if calls is not None else 0.0, "stop" if calls is not None else "invalid",
        call_confidence=sure, argument_confidence=parts, calibrated=calibration is not None,
    )  # fmt: skip

    def answer_one(asked: Asked, max_tokens: int) -> Answer:
        return answer

    backend = SimpleNamespace(concurrent=True, parameters=0, precision="int8")
    model = SimpleNamespace(folder=None, family="span", weights="", max_length=1)
    return SimpleNamespace(answer_one=answer_one, calibration=calibration, backend=backend, model=model)


@contextmanager
def serving(url: str, folder: Path, engine: Any = None, **more: Any) -> Iterator[TestClient]:
    given: dict[str, Any] = {
        "fallback": "gemini",
        "min_confidence": 0.8,
        "budget_usd": 1.0,
        "price": [PRICE[0] / 1000, PRICE[1] / 1000],
        "ledger": str(folder / "ledger"),
        "fallback_url": url,
        "fallback_key_file": str(folder / "key"),
    }
    (folder / "key").write_text(KEY)
    app = create_app(engine or student(0.3), ServeConfig(**{**given, **more}))
    with TestClient(app) as client:
        yield client


def ask(client: TestClient, text: str = "den light to three") -> dict[str, Any]:
    response = client.post("/tool-call", json={"prompt": text, "available_functions": [LAMP]})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def charged(folder: Path) -> int:
    with sqlite3.connect(folder / "ledger" / "ledger.sqlite") as base:
        (spent,) = base.execute("SELECT charged + reserved FROM money").fetchone()
    return int(spent)


def test_an_unsure_answer_is_asked_for_elsewhere_and_paid_for_once(tmp_path: Path) -> None:
    server = Server()
    server.known["den light to three"] = [RIGHT]
    keep = tmp_path / "kept.jsonl"
    with loopback(server) as url, serving(url, tmp_path, keep=str(keep)) as client:
        body = ask(client)
    assert body["calls"] == [{"name": "set_lamp", "arguments": {"room": "den", "level": 3}}]
    assert body["function_name"] == "set_lamp"
    assert body["answered_by"] == "gemini-3.5-flash-lite"
    assert body["escalated_because"] == "confidence 0.30 < 0.80"
    assert body["confidence"] is None
    assert not body["calibrated"]
    assert body["cost_usd"] == server.bill / 1e9 == charged(tmp_path) / 1e9
    (kept,) = read_records(keep)
    assert kept.query == "den light to three"
    assert [call.arguments for call in kept.answers] == [{"room": "den", "level": 3}]
    left = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and file.name != "key")
    assert KEY.encode() not in left


def test_nobody_is_asked_where_the_student_is_sure(tmp_path: Path) -> None:
    server = Server()
    with loopback(server) as url, serving(url, tmp_path, student(0.9)) as client:
        body = ask(client)
    assert not server.log
    assert body["answered_by"] == "needle"
    assert body["cost_usd"] == 0
    assert "escalated_because" not in body
    assert body["calls"][0]["argument_confidence"] == {"room": 0.9}


def test_without_a_fallback_nothing_is_said_of_one() -> None:
    with TestClient(create_app(student(0.1), ServeConfig())) as client:
        body = ask(client)
    assert not {"answered_by", "cost_usd", "escalated_because"} & set(body)


def test_no_answer_of_the_student_is_reason_enough(tmp_path: Path) -> None:
    server = Server()
    server.known["den light to three"] = [RIGHT]
    with loopback(server) as url, serving(url, tmp_path, student(0.9, calls=None)) as client:
        body = ask(client)
    assert body["escalated_because"] == "no answer: invalid"
    assert body["finish"] == "stop"


def test_whatever_goes_wrong_elsewhere_every_request_is_answered(tmp_path: Path) -> None:
    faults = (
        "rate", "busy", "drop", "hang", "malformed_call", "empty", "blocked", "no_candidate", "html",
        "no_usage", "merged", "max_tokens", "wrong_value",
    )  # fmt: skip
    server = Server({name: 0.05 for name in faults}, seed=4)
    texts = [f"den light to three, number {number}" for number in range(150)]
    server.known = {text: [RIGHT] for text in texts}
    took: list[float] = []

    def one(text: str) -> dict[str, Any]:
        started = time.perf_counter()
        body = ask(client, text)
        took.append(time.perf_counter() - started)
        return body

    with loopback(server) as url, serving(url, tmp_path, fallback_timeout=0.5) as client:
        # The fuse is for services that are down; here each kind of fault has its turn.
        client.app.state.desk.elsewhere.fuse = 1000  # type: ignore[attr-defined]
        with ThreadPoolExecutor(8) as pool:
            bodies = list(pool.map(one, texts))
    by = [body["answered_by"] for body in bodies]
    assert {"needle", "gemini-3.5-flash-lite"} == set(by)
    for body in bodies:
        own = body["answered_by"] == "needle"
        assert body["calls"][0]["arguments"] == ({"room": "attic"} if own else {"room": "den", "level": 3})
        assert own == ("escalation_failed" in body)
    said = " ".join(body.get("escalation_failed", "") for body in bodies)
    for reason in ("no answer within 0.5 s", "the service says: 503", "ended with", "doesn't fit the functions"):
        assert reason in said
    assert max(took) < 5
    # Of what wasn't answered in time the most that it may cost stays charged.
    assert server.bill <= charged(tmp_path) <= 1e9


def test_a_budget_is_never_exceeded_by_several_workers(tmp_path: Path) -> None:
    server = Server(delay=0.01)
    budget = 0.006
    texts = [f"den light, number {number}" for number in range(60)]
    server.known = {text: [RIGHT] for text in texts}
    with (
        loopback(server) as url,
        serving(url, tmp_path, budget_usd=budget) as one,
        serving(url, tmp_path, budget_usd=budget) as other,
        ThreadPoolExecutor(8) as pool,
    ):
        bodies = list(pool.map(lambda pair: ask(*pair), zip([one, other] * 30, texts, strict=True)))
    assert server.bill <= charged(tmp_path) <= budget * 1e9
    answered = [body["answered_by"] != "needle" for body in bodies]
    assert any(answered)
    assert not all(answered)
    assert {body["escalation_failed"] for body in bodies if body["answered_by"] == "needle"} == {"the budget is spent"}
    assert sum(body["cost_usd"] for body in bodies) == pytest.approx(server.bill / 1e9)


def test_a_service_that_is_down_is_left_alone(tmp_path: Path) -> None:
    server = Server({"busy": 1.0})
    with loopback(server) as url, serving(url, tmp_path) as client:
        bodies = [ask(client, f"number {number}") for number in range(12)]
    assert len(server.log) == 5
    assert {body["answered_by"] for body in bodies} == {"needle"}
    assert "left alone" in bodies[-1]["escalation_failed"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fallback": "cloud"}, "expected one of none, gemini, openai"),
        ({"fallback": "openai", "budget_usd": 1.0, "min_confidence": 0.5}, "needs serve.fallback_model=NAME"),
        ({"fallback": "gemini", "budget_usd": 1.0}, "one of serve.min_confidence=0.8 and serve.max_error=0.05"),
        (
            {"fallback": "gemini", "budget_usd": 1.0, "min_confidence": 0.5, "max_error": 0.1},
            "one of serve.min_confidence=0.8 and serve.max_error=0.05",
        ),
        ({"fallback": "gemini", "min_confidence": 0.5}, "serve.budget_usd is missing"),
        ({"fallback": "gemini", "min_confidence": 0.5, "budget_usd": 1.0, "fallback_timeout": 0.0}, "above 0 seconds"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_what_can(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServeConfig(**settings)


def test_a_wanted_error_becomes_the_threshold_of_the_calibration() -> None:
    same = Map((0.0, 1.0), (0.0, 1.0))
    known = Calibration(
        [0.0], [1.0], [0.0], 0.0, same, same, same, {"threshold": {"0.05": 0.93, "0.1": 0.8, "0.01": None}}
    )
    config = FallbackConfig("gemini", max_error=0.07, budget_usd=1.0)
    assert least_confidence(config, known) == 0.93
    assert least_confidence(FallbackConfig("gemini", max_error=0.02, budget_usd=1.0), known) > 1, "everything is asked"
    with pytest.raises(ValueError, match="there is no calibration: make one with needle calibrate"):
        least_confidence(config, None)
    with pytest.raises(ValueError, match=r"the calibration knows 0\.01, 0\.05, 0\.1"):
        least_confidence(FallbackConfig("gemini", max_error=0.001, budget_usd=1.0), known)


def test_kept_answers_are_what_collecting_reads(tmp_path: Path) -> None:
    from needle.collect.run import take_traffic
    from needle.collect.settings import CollectConfig

    server = Server()
    server.known["den light to 3"] = [RIGHT]
    keep = tmp_path / "kept.jsonl"
    with loopback(server) as url, serving(url, tmp_path, keep=str(keep)) as client:
        ask(client, "den light to 3")
    count, skipped = take_traffic(keep, tmp_path / "collected", CollectConfig(traffic=str(keep)))
    assert (count, skipped) == (1, [])
    assert json.loads(keep.read_text())["source"] == "fallback gemini-3.5-flash-lite"
