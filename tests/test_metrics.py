"""Scores by hand: multisets, empty answers, groups and intervals."""

from __future__ import annotations

import pytest

from needle.judging.metrics import score, summarise
from needle.text.declarations import normalise_tool
from needle.text.records import Call, Record

TOOLS = tuple(
    normalise_tool(
        {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"x": {"type": "string"}, "n": {"type": "number"}},
                "required": ["x"],
            },
        }
    )
    for name in ("a", "b")
)


def record(*answers: Call) -> Record:
    return Record("1", "q", TOOLS, tuple(answers), "s")


def exact(gold: list[Call], predicted: list[Call] | None) -> bool:
    return score(record(*gold), predicted).exact


def test_exact_call_compares_multisets_of_json_values() -> None:
    one, two = Call("a", {"x": "1", "n": 1}), Call("b", {"x": "2"})
    assert exact([one, two], [two, one])
    assert exact([one], [Call("a", {"n": 1.0, "x": "1"})])
    assert not exact([one, one], [one])
    assert not exact([one], [one, one])
    assert not exact([one], [Call("a", {"x": "1", "n": True})])
    assert not exact([one], [])


@pytest.mark.parametrize("answered", ["1", "2"])
def test_a_right_value_counts_whatever_the_order_of_gold(answered: str) -> None:
    gold = record(Call("a", {"x": "1"}), Call("a", {"x": "2"}))
    assert score(gold, [Call("a", {"x": answered})]).values == {"string": (1, 1)}
    assert score(gold, [Call("a", {"x": "3", "n": 10**400})]).values == {"string": (0, 1)}
    assert score(record(Call("a", {"x": "1", "n": 10**400})), [Call("a", {"x": "1", "n": 2})]).values == {
        "string": (1, 1),
        "integer": (0, 1),
    }


def test_an_empty_answer_counts_like_any_other() -> None:
    assert exact([], [])
    assert not exact([], [Call("a", {"x": "1"})])
    assert not exact([], None)  # no answer at all isn't the answer that nothing fits


def test_false_and_missed_calls_have_their_own_denominators() -> None:
    call = Call("a", {"x": "1"})
    table = summarise(
        [
            score(record(), [call]),
            score(record(), []),
            score(record(call), []),
            score(record(call), [call]),
            score(record(call), [call]),
        ]
    )
    assert table["false_call_rate"]["value"] == pytest.approx(1 / 2)
    assert table["missed_call_rate"]["value"] == pytest.approx(1 / 3)
    assert table["exact_call"]["value"] == pytest.approx(3 / 5)
    assert table["records"] == 5


def test_argument_f1_counts_name_and_value_together() -> None:
    gold = [Call("a", {"x": "1", "n": 2})]
    table = summarise([score(record(*gold), [Call("a", {"x": "1", "n": 3})])])
    assert (
        table["argument_precision"]["value"]
        == table["argument_recall"]["value"]
        == table["argument_f1"]["value"]
        == pytest.approx(0.5)
    )
    assert table["values"] == {
        "integer": {"value": 0.0, "low": 0.0, "high": 0.0},
        "string": {"value": 1.0, "low": 1.0, "high": 1.0},
    }


def test_schema_validity_sees_undeclared_tools_and_wrong_types() -> None:
    for predicted, valid in (
        ([Call("a", {"x": "1"})], 1),
        ([Call("c", {})], 0),
        ([Call("a", {"x": 1})], 0),
        ([Call("a", {})], 0),
        (None, 0),
        ([], 1),
    ):
        assert score(record(), predicted).rates["schema_valid"] == (valid, 1)


def test_groups_tell_seen_from_unseen_tools_and_numbers_of_calls() -> None:
    call = Call("a", {"x": "1"})
    assert score(record(call), [call], frozenset({"a"})).groups == {
        "calls": "1",
        "tools": "2",
        "source": "s",
        "seen": "seen",
    }
    assert score(record(call), [call], frozenset({"b"})).groups["seen"] == "unseen"
    table = summarise([score(record(call), [call], frozenset({"a"})), score(record(), [], frozenset())])
    assert table["groups"]["calls"]["0"]["records"] == table["groups"]["calls"]["1"]["records"] == 1


def test_intervals_hold_the_value_shrink_with_records_and_repeat() -> None:
    call = Call("a", {"x": "1"})
    few = [score(record(call), [call] if i % 2 else []) for i in range(20)]
    small, large = summarise(few)["exact_call"], summarise(few * 20)["exact_call"]
    assert small["low"] < small["value"] < small["high"]
    assert large["high"] - large["low"] < (small["high"] - small["low"]) / 3
    assert summarise(few) == summarise(few)


def test_a_rate_without_a_case_has_no_value() -> None:
    assert summarise([score(record(), [])])["missed_call_rate"] == {"value": None, "low": None, "high": None}
