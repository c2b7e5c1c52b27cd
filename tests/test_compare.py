"""The statistics of a comparison, by simulation and by hand, and the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from needle.engine.decode import Answer
from needle.judging.compare import Arm, Run, build_report, holm, paired, seeds_interval, verdict, worth, write_report
from needle.judging.metrics import Score, score
from needle.text.declarations import normalise_tool
from needle.text.records import Call, Record

TOOL = normalise_tool({"name": "a", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}})
RECORDS = [Record(str(i), f"say <b>{i}</b>", (TOOL,), (Call("a", {"x": str(i)}),), "s") for i in range(60)]


def arm(name: str, alpha: float, rate: float, size: int = 500, seeds: int = 3, seed: int = 0) -> Arm:
    random = np.random.default_rng(seed)
    runs = []
    for number in range(seeds):
        right = random.random(len(RECORDS)) < rate
        answers = [
            Answer(record.answers if ok else (), 0.9, "stop", 3) for record, ok in zip(RECORDS, right, strict=True)
        ]
        scores: list[Score] = [score(record, answer.calls) for record, answer in zip(RECORDS, answers, strict=True)]
        summary = {
            "seconds": 10.0,
            "steps": 5,
            "records_per_second": 50.0,
            "parameters": 1_000_000,
            "training_records": size,
        }
        runs.append(Run(scores, answers, number, summary, 1.0, Path()))
    return Arm(name, {"alpha": alpha, "beta": 1 - alpha, "temperature": 4.0}, size, runs)


def test_a_clear_difference_is_found_and_none_is_not_invented() -> None:
    better = paired(arm("distill", 0.7, 0.8, seeds=5, seed=1), arm("finetune", 0, 0.4, seeds=5, seed=2))
    assert better["low"] > 0.2
    assert better["p"] < 0.01
    same = paired(arm("distill", 0.7, 0.5, seed=1), arm("finetune", 0, 0.5, seed=2))
    assert same["low"] < 0 < same["high"]
    assert same["p"] > 0.05
    self = arm("finetune", 0, 0.5)
    assert paired(self, self)["difference"] == paired(self, self)["low"] == paired(self, self)["high"] == 0
    assert paired(self, self)["p"] == 1.0


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    hits = 0
    for trial in range(60):
        random = np.random.default_rng(trial)
        rates = np.stack([(random.random((3, 80)) < 0.6).astype(float), np.ones((3, 80))], axis=-1)
        found = seeds_interval(rates)
        assert found["low"] is not None
        assert found["high"] is not None
        hits += found["low"] <= 0.6 <= found["high"]
    assert hits >= 54


def test_the_luck_of_few_seeds_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two equal arms whose seeds differ by four points: resampled, three seeds would tell them apart in a quarter of
    the trials."""
    monkeypatch.setattr("needle.judging.compare.RESAMPLES", 300)
    found = 0
    for trial in range(60):
        random = np.random.default_rng(trial)
        chances = np.clip(random.random((1, 500)) + random.normal(0, 0.04, (6, 1)), 0, 1)
        hits = random.random(chances.shape) < chances
        runs = [
            Run([Score({"exact_call": (float(hit), 1.0)}, {}, {}) for hit in row], [], seed % 3, {}, 0.0, Path())
            for seed, row in enumerate(hits)
        ]
        pair = paired(Arm("a", {}, 5, runs[:3]), Arm("b", {}, 5, runs[3:]))
        found += pair["low"] > 0 or pair["high"] < 0
    assert found <= 6


def test_a_seed_without_a_case_does_not_count() -> None:
    rates = np.zeros((3, 20, 2))
    rates[:2, :, 1] = 1
    rates[0, :, 0] = 1
    found = seeds_interval(rates)
    assert (found["mean"], found["low"], found["high"]) == (0.5, 0.0, 1.0)
    assert seeds_interval(np.zeros((3, 20, 2))) == {"mean": None, "low": None, "high": None}


def test_arms_with_other_seeds_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="other seeds"):
        paired(arm("a", 0.7, 0.5, seeds=2), arm("b", 0, 0.5, seeds=3))


def test_an_arm_with_one_seed_twice_is_refused() -> None:
    twice = arm("finetune", 0, 0.5)
    twice.runs[1].seed = 0
    with pytest.raises(ValueError, match="two runs of one seed"):
        build_report([twice], None, RECORDS, 1.0, {}, 0)


def test_the_verdict_is_plain_and_symmetric() -> None:
    row = {"a": "distill", "b": "finetune", "data_size": 500, "seeds": 3, "p_holm": 0.01}
    assert "beats" in verdict([{**row, "difference": 0.1, "low": 0.05, "high": 0.15}])
    assert "loses to" in verdict([{**row, "difference": -0.1, "low": -0.15, "high": -0.05}])
    assert "no difference" in verdict([{**row, "difference": 0.01, "low": -0.05, "high": 0.07}])
    assert "no difference" in verdict([{**row, "difference": 0.1, "low": 0.05, "high": 0.15, "p_holm": 0.06}])
    assert "with 1 seed, too few to tell" in verdict(
        [{**row, "difference": 0.1, "low": 0.05, "high": 0.15, "seeds": 1}]
    )


def test_the_verdict_on_many_arms_sorts_them_by_what_came_out() -> None:
    row = {"b": "finetune", "data_size": 2000, "seeds": 3, "p_holm": 0.01}
    pairs = [
        {**row, "a": "argmax", "difference": 0.01, "low": -0.05, "high": 0.07},
        {**row, "a": "placebo", "difference": -0.2, "low": -0.3, "high": -0.1},
        {**row, "a": "distill", "difference": 0.03, "low": 0.01, "high": 0.05},
        {**row, "a": "unlabelled", "difference": 0.1, "low": 0.05, "high": 0.15},
        {**row, "a": "unlabelled", "b": "distill", "difference": 0.07, "low": 0.05, "high": 0.1},
    ]
    assert (
        verdict(pairs)
        == "With 2,000 records, against finetune: better: unlabelled +10.0 points (+5.0 to +15.0), distill +3.0 points"
        " (+1.0 to +5.0); no difference shows: argmax +1.0 points (-5.0 to +7.0); worse: placebo -20.0 points (-30.0"
        " to -10.0)."
    )


def test_p_values_are_corrected_for_their_number() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_named_pairs_are_compared_too_and_unfinished_arms_share_their_seeds() -> None:
    arms = [
        arm("finetune", 0, 0.5),
        arm("distill", 0.7, 0.6, seeds=2),
        arm("placebo", 0.7, 0.4),
        arm("argmax", 0, 0.5, size=2000),
        arm("finetune", 0, 0.6, size=8000, seeds=1),
    ]
    facts = {"title": "T", "subtitle": "S", "commands": [], "student": {}}
    report = build_report(arms, None, RECORDS, 1.0, facts, 0, [("distill", "placebo"), ("distill", "label_smoothing")])
    assert [(pair["a"], pair["b"], pair["seeds"]) for pair in report["paired"]] == [
        ("distill", "finetune", 2),
        ("placebo", "finetune", 3),
        ("distill", "placebo", 2),
    ]
    assert all(pair["p"] <= pair["p_holm"] <= 1 for pair in report["paired"])
    assert [row["seeds"] for row in report["worth"]] == [1, 1, 1]
    with pytest.raises(ValueError, match="nothing to report"):
        build_report([], None, RECORDS, 1.0, facts, 0)


def test_parts_of_several_sources_are_shown_apart() -> None:
    other = [replace(record, source="t" if index % 3 else "s") for index, record in enumerate(RECORDS)]
    run = Run([score(record, record.answers) for record in other], [], 0, {}, 1.0, Path())
    report = build_report([Arm("finetune", {"alpha": 0}, 500, [run])], None, other, 1.0, {}, 0)
    assert {member: row["records"] for member, row in report["arms"][0]["groups"]["source"].items()} == {
        "s": 20,
        "t": 40,
    }


def test_an_arm_is_worth_the_records_at_which_the_plain_curve_meets_it() -> None:
    curve = [
        arm("finetune", 0, rate, size, seeds=8, seed=size) for size, rate in ((500, 0.2), (2000, 0.4), (8000, 0.8))
    ]
    between = worth(arm("distill", 0.7, 0.6, 500, seeds=8, seed=9), curve)
    assert 2000 < between["low"] < between["records"] < between["high"] < 8000
    itself = worth(curve[1], curve)
    assert itself["records"] == itself["low"] == itself["high"] == 2000
    assert worth(arm("distill", 0.7, 0.99, 500), curve)["records"] is None  # more than was measured
    assert worth(arm("distill", 0.7, 0.05, 2000), curve)["records"] == 500
    dip = [arm("finetune", 0, rate, size, seed=size) for size, rate in ((500, 0.5), (2000, 0.3), (8000, 0.8))]
    assert 2000 < worth(arm("distill", 0.7, 0.65, 500, seed=9), dip)["records"] < 8000
    level = [Arm("finetune", {"alpha": 0}, size, curve[1].runs) for size in (500, 2000, 8000)]
    assert (
        worth(Arm("distill", {"alpha": 0.7}, 500, curve[1].runs), level)["records"] == 500
    )  # the first size that comes to it


def test_every_arm_is_compared_with_fine_tuning_whatever_else_has_no_teacher() -> None:
    arms = [
        arm(name, alpha, 0.5, seed=seed)
        for seed, (name, alpha) in enumerate((("argmax", 0), ("distill", 0.7), ("finetune", 0), ("label_smoothing", 0)))
    ]
    report = build_report(arms, None, RECORDS, 1.0, {"title": "T", "subtitle": "S", "commands": [], "student": {}}, 0)
    assert [(pair["a"], pair["b"]) for pair in report["paired"]] == [
        (name, "finetune") for name in ("argmax", "distill", "label_smoothing")
    ]
    assert report["verdict"].count("With 500 records") == 1
    assert report["worth"] == []  # one size is no curve


def test_the_report_has_what_it_promises_and_stands_alone(tmp_path: Path) -> None:
    arms = [
        arm("finetune", 0, 0.4),
        arm("distill", 0.7, 0.6, seed=1),
        arm("finetune", 0, 0.5, 2000),
        arm("distill", 0.7, 0.7, 2000, seed=1),
    ]
    facts = {"title": "T", "subtitle": "S", "commands": ["needle compare"], "student": {}}
    report = build_report(arms, arm("teacher", 0, 0.9, 16000, 1).runs[0], RECORDS, 12.5, facts, 6)
    write_report(tmp_path, report)
    stored = json.loads((tmp_path / "report.json").read_text())
    assert set(stored) >= {"arms", "teacher", "paired", "test_records", "wall_seconds", "versions"}
    assert stored["test_records"] == 60
    for row in stored["arms"]:
        assert set(row["loss"]) == {"alpha", "beta", "temperature"}
        assert row["seeds"] == [0, 1, 2]
        for metric in ("exact_call", "tool_name", "false_call_rate"):
            assert set(row["metrics"][metric]) == {"mean", "low", "high"}
    assert {tuple(sorted(row)) for row in stored["paired"]} == {
        ("a", "b", "data_size", "difference", "high", "low", "p", "p_holm", "seeds")
    }
    html = (tmp_path / "report.html").read_text()
    assert "<svg" in html
    assert "http://" not in html.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert "<b>0</b>" not in html  # what users wrote is escaped
    assert "say &lt;b&gt;" in html
    assert "| distill | 2,000 |" in (tmp_path / "report.md").read_text()
    assert "more than 2,000" in (tmp_path / "report.md").read_text()
    assert "What its records are worth" in html
