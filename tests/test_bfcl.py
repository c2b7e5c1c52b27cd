"""The leaderboard's single-turn categories: its checker imported without vendors' SDKs, its means, and a run of the
command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from needle.engine.decode import Answer
from needle.judging import bfcl
from needle.students.build import build_student
from needle.students.checkpoint import Checkpoint, save_checkpoint
from needle.text.records import Call, DataError
from needle.text.tokenizer import TextTokenizer
from tests.conftest import TINY
from tests.test_cli import needle

pytest.importorskip("bfcl_eval", reason="pip install --no-deps bfcl-eval")


def rows(category: str) -> list[dict[str, Any]]:
    return bfcl._rows(bfcl._data(), category)


def first_allowed(row: dict[str, Any]) -> tuple[Call, ...]:
    """An answer that the checker must accept: of each argument the first allowed value, what may be omitted left
    out."""
    calls = []
    for entry in row["ground_truth"]:
        ((name, arguments),) = entry.items()
        required = next(function["parameters"]["required"] for function in row["function"] if function["name"] == name)
        calls.append(
            Call(name, {key: values[0] for key, values in arguments.items() if "" not in values or key in required})
        )
    return tuple(calls)


@pytest.mark.parametrize("category", ["simple_python", "multiple", "parallel"])
def test_the_official_checker_accepts_allowed_answers_and_refuses_others(category: str) -> None:
    check = bfcl._checker()
    plain = [
        row
        for row in rows(category)
        if not any(
            isinstance(v, dict | list)
            for entry in row["ground_truth"]
            for a in entry.values()
            for vs in a.values()
            for v in vs
        )
    ][:60]
    assert len(plain) > 20
    for row in plain:
        right = first_allowed(row)
        assert bfcl._judge(row, Answer(right, 1.0, "stop"), category, check) == ""
        assert bfcl._judge(row, Answer((*right, right[0]), 1.0, "stop"), category, check).endswith(
            ("wrong_count", "wrong_func_name")
        )
        assert bfcl._judge(row, Answer((Call("nothing", {}), *right[1:]), 1.0, "stop"), category, check)
        assert bfcl._judge(row, Answer(None, 0.0, "length"), category, check) == "no_answer:length"


def test_the_checker_comes_without_any_vendors_sdk() -> None:
    before = set(sys.modules)
    bfcl._checker()
    assert bfcl.TABLE not in sys.modules
    assert not {name.split(".")[0] for name in set(sys.modules) - before} & {
        "openai",
        "anthropic",
        "google",
        "cohere",
        "boto3",
        "mistralai",
    }


def test_relevance_counts_calls_and_irrelevance_their_absence() -> None:
    call, silence = Answer((Call("a", {}),), 1.0, "stop"), Answer((), 1.0, "stop")
    check = bfcl._checker()
    assert [bfcl._judge({}, answer, "irrelevance", check) for answer in (call, silence)] == [
        "irrelevance_error:call",
        "",
    ]
    assert [bfcl._judge({}, answer, "live_relevance", check) for answer in (call, silence)] == [
        "",
        "relevance_error:no_call",
    ]


def test_means_are_the_leaderboards() -> None:
    share = {name: (number + 1) / 20 for number, name in enumerate(bfcl.CATEGORIES)}
    table = {
        name: {"records": 10 * (number + 1), "accuracy": {"value": share[name]}}
        for number, name in enumerate(bfcl.CATEGORIES)
    }
    found = bfcl.means(table)
    simple = sum(share[name] for name in ("simple_python", "simple_java", "simple_javascript")) / 3
    assert found["non_live_ast"] == pytest.approx(
        (simple + share["multiple"] + share["parallel"] + share["parallel_multiple"]) / 4
    )
    live = bfcl.LIVE[:4]
    assert found["live_ast"] == pytest.approx(
        sum(share[n] * table[n]["records"] for n in live) / sum(table[n]["records"] for n in live)
    )
    assert "live_ast" not in bfcl.means({name: table[name] for name in bfcl.NON_LIVE})


def test_arguments_of_java_are_strings_for_the_student_and_checked_as_java() -> None:
    row = next(row for row in rows("simple_java") if row["id"] == "simple_java_1")
    function = bfcl._in_words(row["function"][0], "simple_java")
    assert {schema["type"] for schema in function["parameters"]["properties"].values()} == {"string"}
    assert bfcl._in_words(row["function"][0], "simple_python") is row["function"][0]


def test_an_unknown_category_is_an_error_that_names_the_others() -> None:
    with pytest.raises(
        DataError, match="category=nonsense is unknown; expected all, non_live, live or one of simple_python"
    ):
        bfcl.evaluate_bfcl(None, "nonsense")  # type: ignore[arg-type]


def test_the_command_judges_a_checkpoint(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    torch.manual_seed(0)
    save_checkpoint(
        tmp_path / "student",
        Checkpoint(build_student(TINY["pointer"], tokenizer.size), TINY["pointer"], tokenizer, "decisions", 4096),
    )
    result = needle(
        "evaluate",
        "checkpoint=student",
        "data=bfcl",
        "category=live_parallel",
        f"output={tmp_path}/m.json",
        f"predictions={tmp_path}/p.jsonl",
        folder=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    stored = json.loads((tmp_path / "m.json").read_text())
    assert stored["categories"]["live_parallel"]["records"] == 16
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 16
    refused = needle("train", "data=bfcl", folder=tmp_path)
    assert refused.returncode == 2
    assert "never training data" in refused.stderr
