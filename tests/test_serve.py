"""The server: the article's request, bad input of every kind, and nothing that a client sends is a 500."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from needle.engine.decode import Answer, Engine
from needle.judging.evaluate import judge
from needle.serve.app import create_app
from needle.serve.desk import ServeConfig
from needle.text.records import Record
from needle.text.tokenizer import TextTokenizer
from tests.test_engine import random_checkpoint

ARTICLE = {
    "prompt": "What is the weather in San Francisco?",
    "available_functions": [
        {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "units": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                },
            },
        }
    ],
}


@pytest.fixture(scope="module")
def client(tokenizer: TextTokenizer) -> TestClient:
    engine = Engine(random_checkpoint(tokenizer))
    return TestClient(create_app(engine, ServeConfig(max_body=200_000)), raise_server_exceptions=False)


def test_the_articles_request_works_as_it_stands(client: TestClient) -> None:
    response = client.post("/tool-call", json=ARTICLE)
    assert response.status_code == 200
    body = response.json()
    assert set(body) - {"reasons"} == {"function_name", "parameters", "confidence", "calibrated", "calls", "finish"}
    assert body["function_name"] in ("get_weather", None)
    assert [call["name"] for call in body["calls"]][:1] == ([body["function_name"]] if body["function_name"] else [])


def test_no_fitting_tool_is_null_and_200(client: TestClient) -> None:
    response = client.post("/tool-call", json={"prompt": "hello", "available_functions": []})
    assert response.status_code == 200
    assert response.json() == {
        "function_name": None,
        "parameters": None,
        "confidence": 1.0,
        "calibrated": False,
        "calls": [],
        "finish": "stop",
    }


def test_health_says_what_is_served(client: TestClient) -> None:
    assert client.get("/health").json()["status"] == "ok"
    assert client.get("/health").json()["family"] == "pointer"


def function(**schema: Any) -> dict[str, Any]:
    return {
        "prompt": "x",
        "available_functions": [{"name": "f", "parameters": {"type": "object", "properties": {"a": schema}}}],
    }


@pytest.mark.parametrize(
    ("body", "status", "path", "message"),
    [
        ({"available_functions": []}, 422, "/prompt", "Field required"),
        ({"prompt": "x"}, 422, "/available_functions", "Field required"),
        ({"prompt": 3, "available_functions": []}, 422, "/prompt", "valid string"),
        ({"prompt": "", "available_functions": []}, 422, "/prompt", "at least 1"),
        ({**ARTICLE, "max_tokens": 0}, 422, "/max_tokens", "greater than or equal"),
        ({"prompt": "x", "available_functions": [{}]}, 422, "/available_functions/0/name", "expected the tool's name"),
        ({"prompt": "x", "available_functions": ["f"]}, 422, "/available_functions/0", "expected a tool as an object"),
        (function(type="strin"), 422, "/available_functions/0/parameters/properties/a/type", "unknown type"),
        (function(type="string", pattern="("), 422, "/available_functions/0/parameters/properties/a/pattern", "regex"),
        (
            function(**{"$ref": "http://example.com/x"}),
            422,
            "/available_functions/0/parameters/properties/a/$ref",
            "inside the schema",
        ),
        (
            {"prompt": "x", "strict": True, "available_functions": [{"name": "f"}, {"name": "f", "description": "g"}]},
            422,
            "/available_functions/1/name",
            "declared twice",
        ),
        (
            {"prompt": "x", "strict": True, "available_functions": [{"name": "f"}, {"type": "web_search"}]},
            422,
            "/available_functions/1/name",
            "declares no function",
        ),
        ({**ARTICLE, "now": "soon"}, 422, "/now", "valid datetime"),
        ({**ARTICLE, "unfit": "guess"}, 422, "/unfit", "'invalid' or 'omit'"),
        ({"prompt": "word " * 3000, "available_functions": []}, 413, "/", "tokens long"),
        ({"prompt": "x", "available_functions": [{"name": f"f{i}"} for i in range(200)]}, 413, "/", "at most 128"),
        ({"prompt": "x" * 300_000, "available_functions": []}, 413, "/", "longer than 200,000 bytes"),
    ],
)
def test_bad_input_names_the_path_of_the_fault(
    client: TestClient, body: Any, status: int, path: str, message: str
) -> None:
    response = client.post("/tool-call", json=body)
    assert response.status_code == status, response.text
    detail = response.json()["detail"][0]
    assert message in detail["msg"]
    assert detail["path"] == path


def test_a_tool_that_can_not_be_used_is_left_out_and_named(client: TestClient) -> None:
    long = {"name": "long", "description": "", "parameters": {"type": "object", "properties": {"x" * 9000: {}}}}
    wordy = {"name": "wordy", "description": "It does something. " * 1500}
    body = {**ARTICLE, "available_functions": [{"type": "web_search"}, *ARTICLE["available_functions"], long, wordy]}
    answer = client.post("/tool-call", json=body).json()
    assert [(tool["index"], tool["name"]) for tool in answer["skipped"]] == [(0, "web_search"), (2, "long")]
    assert [(tool["index"], tool["name"]) for tool in answer["shortened"]] == [(3, "wordy")]
    assert "at most are read" in answer["skipped"][1]["reason"]
    assert "of 1500 sentences" in answer["shortened"][0]["reason"]
    strict = client.post("/tool-call", json={**body, "strict": True})
    assert (strict.status_code, strict.json()["detail"][0]["path"]) == (422, "/available_functions/0/name")


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "application/x-www-form-urlencoded"}, {"Content-Type": ""}])
def test_a_body_is_json_whatever_a_client_calls_it(client: TestClient, headers: dict[str, str]) -> None:
    response = client.post("/tool-call", content=json.dumps(ARTICLE), headers=headers)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/tool-call", 405), ("POST", "/tool-cal", 404)])
def test_every_refusal_has_one_shape(client: TestClient, method: str, path: str, status: int) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    (detail,) = response.json()["detail"]
    assert detail.keys() == {"loc", "path", "msg"}
    assert f"{method} {path}" in detail["msg"]


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"prompt": "\\ud800", "available_functions": []}',
            b'{"prompt": "x", "available_functions": [{"name": "\\udfff"}]}',
        b'{"prompt": "x", "available_functions": [{"name": "f", "parameters": '
            + b'{"a":' * 3000 + b"1" + b"}" * 3000 + b"}]}",
        b"[" * 60_000 + b"]" * 60_000,
        b'{"prompt": "x", "available_functions": [{"name": "f", "parameters": {"type": "object",'
            b'"properties": {"a": {"type": "integer", "minimum": 1e999}}}}]}',
    ],
)  # fmt: skip
def test_broken_bodies_are_the_clients_fault(client: TestClient, raw: bytes) -> None:
    response = client.post("/tool-call", content=raw, headers={"content-type": "application/json"})
    assert 400 <= response.status_code < 500, response.text
    assert response.json()["detail"]


def test_one_bad_request_leaves_the_server_well(client: TestClient) -> None:
    before = client.post("/tool-call", json=ARTICLE).json()
    client.post("/tool-call", content=b"[" * 50_000)
    client.post("/tool-call", json=function(type="string", pattern="^(a+)+b$"))
    assert client.post("/tool-call", json=ARTICLE).json() == before


SCHEMA_WORDS = st.sampled_from(
    [
        "type",
        "enum",
        "properties",
        "required",
        "items",
        "anyOf",
        "pattern",
        "minimum",
        "maxLength",
        "const",
        "default",
        "$ref",
        "nullable",
        "multipleOf",
        "minItems",
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["string", "object", "array", "integer", "(", "#/"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCHEMA_WORDS | st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(st.text(max_size=30), VALUES, VALUES, VALUES)
def test_nothing_that_a_client_sends_is_a_500(
    client: TestClient, prompt: str, name: Any, parameters: Any, schema: Any
) -> None:
    functions = [
        {"name": name, "parameters": parameters},
        {"name": "g", "parameters": {"type": "object", "properties": {"a": schema}}},
    ]
    for available in (functions, functions[1:], parameters):
        body = json.dumps({"prompt": prompt, "available_functions": available, "max_tokens": 8})
        response = client.post("/tool-call", content=body, headers={"content-type": "application/json"})
        assert response.status_code in (200, 413, 422), (response.text, body)


def test_the_server_answers_as_the_evaluator_does(
    client: TestClient, tokenizer: TextTokenizer, records: list[Record]
) -> None:
    answers, _ = judge(Engine(random_checkpoint(tokenizer)), records[:10], max_tokens=20)
    for record, answer in zip(records, answers, strict=False):
        body = {
            "prompt": record.query,
            "available_functions": [tool.to_json() for tool in record.tools],
            "max_tokens": 20,
        }
        served = client.post("/tool-call", json=body).json()
        assert served["calls"] == [call.to_json() for call in answer.calls or ()]
        assert served["finish"] == answer.finish


def test_health_answers_while_others_wait_and_a_full_queue_is_a_503(
    tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, gate = Engine(random_checkpoint(tokenizer)), threading.Event()
    answer = engine.answer

    def slow(*arguments: Any) -> Answer:
        assert gate.wait(30)
        return answer(*arguments)

    async def scenario() -> tuple[int, list[int]]:
        transport = httpx.ASGITransport(create_app(engine, ServeConfig(max_waiting=4)))
        async with httpx.AsyncClient(transport=transport, base_url="http://needle") as client:
            tasks = [asyncio.create_task(client.post("/tool-call", json=ARTICLE)) for _ in range(8)]
            while sum(task.done() for task in tasks) < 3:
                await asyncio.sleep(0.01)
            health = await client.get("/health")
            gate.set()
            return health.status_code, sorted(response.status_code for response in await asyncio.gather(*tasks))

    monkeypatch.setattr(engine, "answer", slow)
    assert asyncio.run(asyncio.wait_for(scenario(), 60)) == (200, [200] * 5 + [503] * 3)


def test_several_workers_answer_and_one_that_dies_is_replaced(exported: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [f"checkpoint={exported}", f"serve.port={port}", "serve.workers=2"]
    process = subprocess.Popen([sys.executable, "-m", "needle.cli", "serve", *words], cwd=tmp_path)
    body = {"prompt": "wake me", "available_functions": [{"name": "wake", "description": "Wake"}], "max_tokens": 5}

    def answered() -> dict[str, object]:
        for _ in range(600):
            try:
                return httpx.post(f"http://127.0.0.1:{port}/tool-call", json=body, timeout=10).json()  # type: ignore[no-any-return]
            except httpx.HTTPError:
                time.sleep(0.1)
        pytest.fail("no worker answered within a minute")

    try:
        first = answered()
        workers = [child for child in psutil.Process(process.pid).children(recursive=True) if child.num_threads() > 1]
        assert len(workers) >= 2
        for worker in workers:
            worker.kill()
        assert answered() == first
    finally:
        process.terminate()
        process.wait(30)
