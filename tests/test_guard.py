"""Who may ask and how often, and what is counted."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from needle.serve.app import create_app
from needle.serve.desk import ServeConfig
from needle.serve.guard import KEYS, Rates, read_keys
from tests.test_fallback import LAMP, student

SECRET = "prompt-that-nobody-may-see"


def client(config: ServeConfig, confidence: float = 0.9) -> TestClient:
    return TestClient(create_app(student(confidence), config), raise_server_exceptions=False)


def ask(client: TestClient, **headers: str) -> Any:
    body = {"prompt": SECRET, "available_functions": [LAMP]}
    return client.post(
        "/tool-call", json=body, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )


@pytest.fixture
def keys(tmp_path: Path) -> str:
    path = tmp_path / "keys"
    hashed = hashlib.sha256(b"second").hexdigest()
    path.write_text(f"# ours\nfirst\n\nsha256:{hashed}\n")
    return str(path)


@pytest.mark.parametrize("sent", [{"authorization": "Bearer first"}, {"x_api_key": "second"}])
def test_a_key_opens_every_address_and_none_opens_none(keys: str, sent: dict[str, str]) -> None:
    one = client(ServeConfig(keys=keys))
    assert ask(one, **sent).status_code == 200
    for wrong in ({}, {"authorization": "Bearer third"}, {"x_api_key": ""}, {"authorization": "first "}):
        refused = ask(one, **wrong)
        assert refused.status_code == 401
        assert "Bearer KEY" in refused.json()["detail"][0]["msg"]
    error = one.post("/v1/chat/completions", json={"messages": []}).json()["error"]
    assert error["type"] == "authentication_error"
    assert one.get("/metrics").status_code == 401
    assert (
        one.get("/health/live").status_code == one.get("/health/ready").status_code == one.get("/").status_code == 200
    )


def test_keys_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS, "a, b")
    assert ask(client(ServeConfig()), authorization="Bearer b").status_code == 200
    assert ask(client(ServeConfig())).status_code == 401


def test_a_server_for_others_needs_keys_or_to_be_called_open(keys: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="can be reached from elsewhere: set serve.keys=FILE"):
        ServeConfig(host="0.0.0.0")
    ServeConfig(host="0.0.0.0", keys=keys)
    ServeConfig(host="0.0.0.0", open=True)
    with pytest.raises(ValueError, match="can't be read"):
        read_keys(str(tmp_path / "none"))
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(ValueError, match="holds no key"):
        read_keys(str(tmp_path / "empty"))


def test_rates_are_of_each_client_and_say_when_to_come_back(keys: str) -> None:
    one = client(ServeConfig(keys=keys, per_minute=3))
    mine = [ask(one, authorization="Bearer first") for _ in range(5)]
    assert [response.status_code for response in mine] == [200] * 3 + [429] * 2
    assert 1 <= int(mine[-1].headers["Retry-After"]) <= 21
    assert ask(one, authorization="Bearer second").status_code == 200
    assert one.get("/health/live").status_code == 200


def test_a_bucket_fills_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("needle.serve.guard.time.monotonic", lambda: now[0])
    rates = Rates(60)
    assert [rates.wait("a") for _ in range(60)] == [0.0] * 60
    assert rates.wait("a") == pytest.approx(1.0)
    now[0] = 2.0
    assert [rates.wait("a"), rates.wait("a")] == [0.0, 0.0]
    assert rates.wait("a") > 0
    now[0] = 1000.0
    assert [rates.wait("a") for _ in range(61)].count(0.0) == 60


def test_metrics_tell_what_happened_and_nothing_that_was_said(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    one = client(ServeConfig())
    with caplog.at_level(logging.DEBUG):
        named = ask(one, x_request_id="trace-7")
        odd = ask(one, x_request_id="no good: a b")
        one.get("/nowhere/at/all")
        one.post("/tool-call", json={"prompt": ""})
    assert named.headers["x-request-id"] == "trace-7"
    assert len(odd.headers["x-request-id"]) == 16
    told = one.get("/metrics").text
    assert 'needle_requests_total{path="/tool-call",status="200"} 2.0' in told
    assert 'needle_requests_total{path="/tool-call",status="422"} 1.0' in told
    assert 'needle_requests_total{path="other",status="404"} 1.0' in told
    assert 'needle_stage_seconds_count{stage="answer"} 2.0' in told
    assert "needle_calls_total 2.0" in told
    assert 'needle_confidence_bucket{le="0.9"} 2.0' in told
    out, err = capfd.readouterr()
    assert SECRET not in told + caplog.text + out + err
