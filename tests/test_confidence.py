"""Confidence: what is noticed, what is made of it, and whether what is said of it holds."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from needle.api import Needle
from needle.cli.calibrate import run
from needle.config import Settings
from needle.data.sources import DataConfig
from needle.data.synthetic import SyntheticConfig
from needle.engine.confidence import (
    ARGUMENT,
    CALL,
    FILE,
    FIRST,
    NAMES,
    VALUE,
    Calibration,
    Decision,
    Map,
    Noticed,
    how_sure,
    load_calibration,
    save_calibrations,
)
from needle.engine.open import open_engine
from needle.judging import calibrate as calibrating
from needle.judging.calibrate import Judged, coverage, crossed, fit, held, most_wrong, quality, threshold
from needle.judging.pages import render_calibration, verdict
from needle.text.folder import CheckpointError
from needle.text.records import Call, Missing, Record, Tool
from needle.text.tokenizer import TextTokenizer

LAMP = Tool(
    "set_lamp",
    "Sets a lamp",
    {
        "type": "object",
        "properties": {"colour": {"type": "string", "enum": ["red", "blue"]}, "room": {"type": "string"}},
        "required": ["room"],
    },
)
FAN = Tool("start_fan", "Starts a fan", {"type": "object", "properties": {}})
IDENTITY = Map((0.0, 1.0), (0.0, 1.0))


def decision(kind: int, chosen: float, other: int, next: float = 0.01, call: int = 0, argument: int = -1) -> Decision:
    return Decision(kind, call, argument, 0, math.log(chosen), other, math.log(next), 0.0)


def noticed(request: str, calls: tuple[Call, ...], *decisions: Decision, missing: tuple[Missing, ...] = ()) -> Noticed:
    return Noticed(decisions, request, (LAMP, FAN), calls, missing)


def reasons(one: Noticed, tokenizer: TextTokenizer) -> tuple[str, ...]:
    return how_sure(one, 0.1, range(len(one.calls)), tokenizer, None).reasons


# What is noticed


def test_reasons_say_what_is_in_doubt(tokenizer: TextTokenizer) -> None:
    room = Call("set_lamp", {"room": "den"}, {"room": ((12, 15),)})
    fan = tokenizer.first_tool_label + 1
    said = "lamp in the den"
    assert reasons(noticed(said, (room,), decision(FIRST, 0.5, fan, 0.41)), tokenizer) == (
        "another tool is close: start_fan 0.41",
    )
    assert reasons(noticed(said, (), decision(FIRST, 0.5, fan, 0.41)), tokenizer) == (
        "a tool is close: start_fan 0.41",
    )
    assert reasons(noticed(said, (room,), decision(FIRST, 0.6, tokenizer.eos, 0.39)), tokenizer) == (
        "no call is close: 0.39",
    )
    assert reasons(noticed(said, (room,), decision(CALL, 0.6, tokenizer.eos, 0.39)), tokenizer) == (
        "an end is close: 0.39",
    )
    unsure = decision(ARGUMENT, 0.6, tokenizer.eos, argument=1)
    assert reasons(noticed(said, (room,), unsure), tokenizer) == ("argument in doubt: room",)
    assert reasons(noticed(said, (room,), decision(VALUE, 0.6, 9, argument=1)), tokenizer) == ("value in doubt: room",)
    # Firm decisions say nothing.
    assert reasons(noticed(said, (room,), decision(VALUE, 0.99, 9, argument=1)), tokenizer) == ()


def test_reasons_say_what_is_noticed_in_the_request(tokenizer: TextTokenizer) -> None:
    made_up = Call("set_lamp", {"room": "attic"})
    assert "value not in the request: room" in reasons(noticed("lamp on", (made_up,)), tokenizer)
    member = Call("set_lamp", {"colour": "red", "room": "den"}, {"room": ((9, 12),)})
    assert reasons(noticed("lamp the den", (member,)), tokenizer) == ()
    missing = (Missing("set_lamp", ("room",)),)
    assert reasons(noticed("lamp on", (), missing=missing), tokenizer) == ("unsaid: room",)
    assert reasons(noticed("don't start the fan", (Call("start_fan", {}),)), tokenizer)[0] == "negation: don't"
    assert "unread: neighbours complain about noise" in reasons(
        noticed("neighbours complain about noise", (Call("start_fan", {}),)), tokenizer
    )


def test_calls_and_arguments_have_their_own_confidence(tokenizer: TextTokenizer) -> None:
    calls = (Call("start_fan", {}), Call("set_lamp", {"room": "den"}))
    made = [
        decision(FIRST, 0.9, 0, call=0),
        decision(CALL, 0.8, 0, call=2),
        decision(ARGUMENT, 0.5, 0, call=2, argument=1),
        decision(VALUE, 0.5, 0, call=2, argument=1),
    ]
    # The second call that was begun lacks a value, and isn't among the calls.
    sure = how_sure(noticed("fan, lamp in the den", calls, *made), 0.18, [0, 2], tokenizer, None)
    assert sure.whole == 0.18
    assert sure.calls == pytest.approx((0.9, 0.2))
    assert sure.arguments[0] == {}
    assert sure.arguments[1] == pytest.approx({"room": 0.25})


def test_where_nobody_knows_which_token_is_whose_all_is_as_sure_as_the_whole(tokenizer: TextTokenizer) -> None:
    calls = (Call("start_fan", {}), Call("set_lamp", {"room": "den"}))
    sure = how_sure(noticed("fan, lamp in the den", calls), 0.3, [], tokenizer, None)
    assert (sure.calls, sure.arguments, sure.reasons) == ((0.3, 0.3), ({}, {"room": 0.3}), ())


def test_features_are_finite_for_every_answer(exported: Path, records: list[Record]) -> None:
    engine = open_engine(exported, backend="torch")
    answers = [engine.answer(record.query, record.tools, max_tokens=40) for record in records[:40]]
    stopped = [answer for answer in answers if answer.finish == "stop"]
    assert stopped
    for answer in stopped:
        assert answer.noticed is not None
        assert answer.noticed.features().shape == (len(NAMES),)
        assert np.isfinite(answer.noticed.features()).all()
        assert not answer.calibrated
        assert len(answer.call_confidence) == len(answer.argument_confidence) == len(answer.calls or ())
        for call, parts in zip(answer.calls or (), answer.argument_confidence, strict=True):
            assert set(parts) == set(call.arguments)


# What is made of it


def made_up(families: int = 30, each: int = 40, seed: int = 0) -> Judged:
    """Answers whose first feature tells how likely they are right."""
    drawn = np.random.default_rng(seed)
    count = families * each
    features = np.zeros((count, len(NAMES)))
    features[:, 0] = drawn.normal(size=count) * 3
    likely = 1 / (1 + np.exp(-features[:, 0]))
    right = (drawn.random(count) < likely).astype(float)
    raw = likely**3  # which orders them as well, and is wrong
    pairs = [(float(own), float(one)) for own, one in zip(raw, right, strict=True)]
    family = [f"f{number // each}" for number in range(count)]
    return Judged(features, raw, right, family, [{"said": "1", "calls": "1", "source": "x"}] * count, pairs, pairs)


def test_a_calibrated_confidence_is_true_where_the_raw_one_is_not() -> None:
    judged = made_up()
    sure = crossed(judged)
    raw, calibrated = quality(judged.raw, judged.right), quality(sure, judged.right)
    assert raw["ece"] > 0.1
    assert calibrated["ece"] < 2 * calibrated["ece_by_chance"]
    assert calibrated["auroc"] == pytest.approx(raw["auroc"], abs=0.01)
    assert sure.min() > 0
    assert sure.max() < 1


def test_no_family_has_a_part_in_what_judges_it() -> None:
    judged = made_up()
    mine = np.asarray([name == "f3" for name in judged.family])
    other = replace(judged, right=np.where(mine, 1 - judged.right, judged.right))
    assert crossed(judged)[mine] == pytest.approx(crossed(other)[mine])


def test_coverage_is_that_of_the_best_threshold() -> None:
    drawn = random.Random(0)
    for _ in range(30):
        sure = np.asarray([drawn.choice((0.1, 0.3, 0.5, 0.7, 0.9)) for _ in range(40)])
        right = np.asarray([float(drawn.random() < own) for own in sure])
        shares = [np.mean(sure >= level) for level in set(sure) if np.mean(1 - right[sure >= level]) <= 0.1]
        assert coverage(sure, right, 0.1) == pytest.approx(max(shares, default=0.0))


def test_a_threshold_keeps_its_bound_about_as_often_as_it_says() -> None:
    judged = made_up(families=40, each=60)
    sure = crossed(judged)
    assert threshold(sure, judged.right, judged.family) is not None
    found = held(sure, judged.right, judged.family, resplits=60)
    assert found["held"] >= 0.9
    assert found["answered"] > 0.03
    assert threshold(sure, np.zeros_like(sure), judged.family) is None
    assert threshold(sure[:20], np.ones(20), ["f"] * 20) is None, "twenty answers can't show that 95% are right"


def test_a_few_hard_families_raise_the_limit() -> None:
    wrong, names = np.zeros(1000), np.arange(1000) // 100
    wrong[::50] = 1  # 2% everywhere
    even = most_wrong(wrong, names, 0.1)
    gathered = np.zeros(1000)
    gathered[:20] = 1  # 2%, all in one family
    assert 0.02 < even < 0.03 < most_wrong(gathered, names, 0.1)
    assert most_wrong(gathered, np.zeros(1000, np.int64), 0.1) == even


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_too_little_to_fit_on_is_said(right: float) -> None:
    judged = made_up(families=5, each=10)
    with pytest.raises(ValueError, match="at least 100, some right and some wrong"):
        fit(judged)
    many = made_up()
    with pytest.raises(ValueError, match="some right and some wrong"):
        fit(replace(many, right=np.full_like(many.right, right)))


# Kept beside the weights


def test_a_calibration_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    judged = made_up()
    found = fit(judged, {"records": 3})
    save_calibrations(tmp_path, "abc", {"int8": found})
    back = load_calibration(tmp_path, "abc", "int8")
    assert back is not None
    assert back.facts == {"records": 3}
    row = judged.features[7]
    assert back(row) == found(row)
    assert back.call(0.3) == found.call(0.3)
    # Of another precision it is better than none; of other weights it isn't.
    assert load_calibration(tmp_path, "abc", "torch") is not None
    assert load_calibration(tmp_path, "other", "int8") is None
    assert load_calibration(None, "abc", "int8") is None


@pytest.mark.parametrize(("key", "value"), [("format", 99), ("precisions", {"int8": {}}), ("precisions", 3)])
def test_a_broken_calibration_is_refused_with_the_way_out(tmp_path: Path, key: str, value: Any) -> None:
    save_calibrations(tmp_path, "abc", {"int8": fit(made_up())})
    row = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps({**row, key: value}))
    with pytest.raises(CheckpointError, match="make it again with needle calibrate"):
        load_calibration(tmp_path, "abc", "int8")


def test_the_command_makes_answers_calibrated_and_a_page(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = made_up()
    monkeypatch.setattr(calibrating, "answered", lambda *_: judged)  # a student with random weights is never right
    data = DataConfig(synthetic=SyntheticConfig(train=10, validation=0, test=20, unseen=0))
    config = Settings(checkpoint=str(exported), data=data, output=str(tmp_path), precision="int8")
    try:
        run(config, [f"checkpoint={exported}"])
        known = Needle(exported, precision="int8").engine
        assert isinstance(known.calibration, Calibration)
        answer = known.answer("turn it on", [FAN], max_tokens=40)
        assert answer.calibrated
        page = (tmp_path / "calibration.html").read_text(encoding="utf-8")
        table = json.loads((tmp_path / "calibration.json").read_text())
        assert verdict(table).replace("'", "&#39;") in page
        assert page.count("<svg") == 2
        assert "needle calibrate" in page
    finally:
        (exported / FILE).unlink(missing_ok=True)


def test_a_page_says_so_where_no_threshold_holds() -> None:
    judged = made_up()
    judged = replace(judged, right=(np.arange(len(judged.right)) % 2).astype(float))
    level = threshold(judged.raw, judged.right, judged.family)
    assert level is None
    table = {
        "threshold": {"0.05": level}, "bound": {"risk": 0.05, "held": 1.0, "answered": 0.0, "resplits": 1},
        "calibrated": quality(judged.raw, judged.right), "raw": quality(judged.raw, judged.right), "groups": {},
        "curve": {"confidence": judged.raw.tolist(), "raw": judged.raw.tolist(), "right": judged.right.tolist()},
        "checkpoint": "x", "precision": "int8", "records": 1200, "families": 3, "sources": ["x"], "right": 0.5,
    }  # fmt: skip
    assert "No threshold" in render_calibration(table, "needle calibrate")
