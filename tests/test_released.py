"""The released student: small enough, answers out of the box, and says of itself what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from needle.engine.decode import Engine
from needle.engine.open import open_engine
from needle.release.card import card
from needle.students.checkpoint import load_checkpoint
from needle.text.declarations import normalise_tools
from needle.text.folder import EXPORT, WEIGHTS, released
from needle.text.formats import read_records
from needle.text.records import Tool

WEATHER = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "units": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
    },
}
TIMER = {
    "name": "set_timer",
    "description": "Starts a timer",
    "parameters": {"type": "object", "properties": {"minutes": {"type": "integer"}}, "required": ["minutes"]},
}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(load_checkpoint())


def tools(*rows: object) -> tuple[Tool, ...]:
    return normalise_tools(list(rows), "tools")


def test_it_fits_into_55_megabytes_of_bfloat16_and_its_export_into_30() -> None:
    own = [path for path in released().iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in own) <= 55e6
    assert not [path.name for path in own if path.suffix not in (".safetensors", ".json", ".md")]
    assert (released() / WEIGHTS).stat().st_size < 2 * 27e6
    exported = [path for path in (released() / EXPORT).rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in exported) <= 30e6
    assert open_engine().backend.name == "onnxruntime"


def test_it_answers_the_first_request_of_the_readme_and_finds_nothing_where_nothing_fits(engine: Engine) -> None:
    answer = engine.answer("What is the weather in San Francisco?", tools(WEATHER, TIMER))
    assert answer.calls
    assert [(call.name, call.arguments.get("city")) for call in answer.calls] == [("get_weather", "San Francisco")]
    assert engine.answer("Who wrote Hamlet?", tools(TIMER)).calls == ()


def test_the_program_of_the_docs_runs_and_prints_what_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(program, "docs/serving.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == re.findall(r"^# (.*)", program, re.MULTILINE)


def test_the_order_of_tools_and_arguments_changes_nothing(engine: Engine) -> None:
    turned = {
        **WEATHER,
        "parameters": {"type": "object", "properties": dict(reversed(WEATHER["parameters"]["properties"].items()))},
    }  # type: ignore[index]
    asked = "is it hot in Oslo right now"
    one, other = engine.answer(asked, tools(WEATHER, TIMER)), engine.answer(asked, tools(TIMER, turned))
    assert one.calls == other.calls
    assert one.confidence == pytest.approx(other.confidence, rel=1e-3)


def test_a_fresh_look_finds_the_accuracy_that_its_card_tells(engine: Engine, real_data: Path) -> None:
    """The first hundred records of two sets, against what was measured on all of them."""
    known = json.loads((released() / "metrics.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    for name in ("snips", "hwu64"):
        records = list(read_records(real_data / name / f"{known['split']}.jsonl.gz"))[:100]
        found = [engine.answer(record.query, record.tools).calls for record in records]
        exact = sum(
            calls is not None and sorted(c.key for c in calls) == sorted(c.key for c in record.answers)
            for record, calls in zip(records, found, strict=True)
        )
        low, high = (known["sets"][name]["exact_call"][bound] for bound in ("low", "high"))
        assert low - 0.1 < exact / len(records) < high + 0.1


def test_its_confidence_is_a_probability() -> None:
    known = open_engine().calibration
    assert known is not None
    figures = json.loads((released() / "metrics.json").read_text(encoding="utf-8"))["confidence"]
    assert known.facts["records"] == figures["records"]
    assert figures["calibrated"]["ece"] < figures["raw"]["ece"]


def test_the_card_is_made_of_the_figures_beside_it() -> None:
    figures = json.loads((released() / "metrics.json").read_text(encoding="utf-8"))
    assert (released() / "README.md").read_text(encoding="utf-8") == card(load_checkpoint(released()), figures)
