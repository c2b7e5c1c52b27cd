"""What is said of data before anything is trained on it."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from needle.cli import evaluate as evaluate_command
from needle.data.check import as_people_read_it, problems, request_key, sizes
from needle.data.sources import DataConfig, load_splits
from needle.judging.metrics import METRICS
from needle.text.declarations import normalise_tool
from needle.text.records import Call, Record, write_jsonl

ALARM = normalise_tool(
    {
        "name": "set_alarm",
        "parameters": {"type": "object", "properties": {"time": {}, "note": {}}, "required": ["time"]},
    }
)


def record(name: str, query: str, time: str | None = None, source: str = "s") -> Record:
    return Record(name, query, (ALARM,), (Call("set_alarm", {"time": time}),) if time else (), source)


def test_a_split_in_figures() -> None:
    rows = [record("1", "wake me at 7", "7"), record("2", "Wake me at 7!", "7"), record("3", "hello")]
    rows.append(replace(rows[0], id="4", answers=rows[0].answers * 2))
    found = sizes(rows, lambda text: len(text.split()))
    assert (found.records, found.without_call, found.several_calls, found.tools) == (4, 1, 1, 1)
    assert found.request == (3.25, 4)
    assert found.repeated == 1
    assert sizes([], len).request == (0, 0)


@pytest.mark.parametrize(("one", "two"), [("Wake me at 7!", "wake  me at 7"), ("ÜBER", "über")])
def test_requests_are_the_same_whatever_their_letters(one: str, two: str) -> None:
    assert request_key(one) == request_key(two)


def test_what_is_probably_a_mistake_is_said() -> None:
    splits = {
        "train": [record("a", "wake me at 7", "7"), record("a", "wake me at 8", "8")],
        "validation": [],
        "test": [record("b", "Wake me at 7", "7"), record("c", "wake me at 9", "9")],
    }
    found = problems(splits, {"train": ["a.jsonl"], "validation": ["v.jsonl"], "test": ["./a.jsonl"]})
    assert [sentence.partition(";")[0] for sentence in found] == [
        "./a.jsonl is given for train and test",
        "2 train records share an id with another",
        "there are no validation records in v.jsonl",
        "1 of 2 test requests stand in training as well, such as 'Wake me at 7'",
    ]
    assert problems({"train": splits["train"][:1], "test": splits["test"][1:]}, {"train": ["a"], "test": ["b"]}) == []


def test_records_that_share_an_id_are_limited_one_by_one(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [record("same", f"wake me at {number}", str(number)) for number in range(10)])
    config = DataConfig(kind="jsonl", train=[str(tmp_path / "a.jsonl")], limits={"s": 3})
    assert len(load_splits(config).train) == 3


def test_a_record_is_shown_as_people_read_it() -> None:
    turn = {"request": "hello", "calls": "[]"}
    text = as_people_read_it(replace(record("1", "wake me at 7", "7"), meta={"history": [turn]}))
    assert text.splitlines() == [
        "1  'wake me at 7'",
        "  before: 'hello'",
        "  calls  set_alarm(time='7')",
        "  offers set_alarm(time*, note)",
    ]
    assert "calls  nothing" in as_people_read_it(record("2", "hello"))


def needle(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "needle.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_commands_check_and_show_files(tmp_path: Path) -> None:
    path = tmp_path / "a b.jsonl"
    write_jsonl(path, [record("1", "wake me at 7", "7")])
    checked = needle("data", "check", str(path), f"data.test=['{path}']")
    said = " ".join((checked.stdout + checked.stderr).split())
    assert checked.returncode == 0, said
    assert "records" in said
    assert "is given for train and test" in said
    shown = needle("data", "show", str(path))
    assert "set_alarm(time='7')" in shown.stdout + shown.stderr
    assert needle("data", "chek").returncode == 2
    assert "needle data check FILE" in needle("data").stdout


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_the_table_of_an_evaluation_takes_the_columns_that_fit(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(evaluate_command, "console", Console(file=out, width=width))
    row = {metric: {"value": 1.0, "low": 1.0, "high": 1.0} for metric in METRICS} | {"records": 12345}
    groups = {"source": {"needle-and-thread": row}}
    summary = row | {"decoding": "constrained", "seconds": 1.0, "groups": groups, "finish": {}}
    evaluate_command._print(summary)
    assert max(len(line) for line in out.getvalue().splitlines()) <= width
    assert "…" not in out.getvalue()
    assert "exact" in out.getvalue()
    assert ("no room for" in out.getvalue()) == (width < 200)
