"""A hosted model is judged by the same evaluator, within a budget, and never paid for twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from needle.cli.evaluate import run
from needle.collect.services.build import ServiceConfig
from needle.collect.settings import CollectConfig
from needle.config import Settings
from needle.data.sources import DataConfig
from needle.judging.evaluate import read_predictions
from needle.text.records import Record, write_jsonl
from tests.gemini_server import PRICE, Server
from tests.test_fallback import loopback


def settings(folder: Path, url: str, budget: float | None = 1.0, **more: Any) -> Settings:
    key = folder / "key"
    key.write_text("k")
    return Settings(
        service=ServiceConfig("gemini", "gemini-3.5-flash-lite", url, str(key), timeout=5.0),
        collect=CollectConfig(budget_usd=budget, price=[PRICE[0] / 1000, PRICE[1] / 1000], concurrency=4),
        data=DataConfig(kind="jsonl", path=str(folder / "some.jsonl")),
        cache=str(folder / "cache"),
        output=str(folder / "summary.json"),
        predictions=str(folder / "predictions.jsonl"),
        **more,
    )


def known(server: Server, records: list[Record]) -> list[Record]:
    """Records whose calls the server gives, but for the last two, of which it says that no function fits."""
    some = [record for record in records if record.answers][:12]
    for record in some[:-2]:
        server.known[record.query] = [{"name": call.name, "args": dict(call.arguments)} for call in record.answers]
    return some


def test_it_is_judged_once_and_paid_for_once(records: list[Record], tmp_path: Path) -> None:
    server = Server({"busy": 0.2}, seed=1)
    some = known(server, records)
    write_jsonl(tmp_path / "some.jsonl", some)
    with loopback(server) as url:
        run(settings(tmp_path, url), [])
        summary = json.loads((tmp_path / "summary.json").read_text())
        asked = len(server.log)
        run(settings(tmp_path, url), [])
        assert len(server.log) == asked
        assert json.loads((tmp_path / "summary.json").read_text())["exact_call"] == summary["exact_call"]
    assert summary["records"] == 12
    assert summary["exact_call"]["value"] == pytest.approx(10 / 12)
    assert summary["missed_call_rate"]["value"] == pytest.approx(2 / 12)
    assert summary["checkpoint"] == "gemini: gemini-3.5-flash-lite"
    assert summary["books"]["dollars"] == server.bill / 1e9
    answers = read_predictions(tmp_path / "predictions.jsonl")
    assert [answer.calls == record.answers for answer, record in zip(answers, some, strict=True)] == [True] * 10 + [
        False
    ] * 2


def test_what_the_budget_does_not_reach_is_said_and_wrong(records: list[Record], tmp_path: Path) -> None:
    server = Server()
    write_jsonl(tmp_path / "some.jsonl", known(server, records))
    with loopback(server) as url:
        run(settings(tmp_path, url, budget=0.004), [])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert "budget is spent" in summary["stopped"]
    assert 0 < summary["finish"]["stop"] < 12
    assert summary["finish"]["refused"] == 12 - summary["finish"]["stop"]
    assert server.bill <= 0.004e9


def test_it_needs_a_budget_and_records_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set collect.budget_usd"):
        run(settings(tmp_path, "http://127.0.0.1:1", budget=None), [])
    config = settings(tmp_path, "http://127.0.0.1:1")
    config.data.kind = "bfcl"
    with pytest.raises(ValueError, match="of checkpoints alone"):
        run(config, [])
