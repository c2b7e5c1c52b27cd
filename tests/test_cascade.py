"""Cascades: what asking elsewhere costs and brings."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest

from needle.cli.cascade import run
from needle.config import Settings
from needle.data.sources import DataConfig
from needle.engine.decode import Answer
from needle.judging.cascade import CascadeConfig, curve, gain, orders, simulated, tabled, verdict
from needle.judging.evaluate import write_predictions
from needle.judging.metrics import score
from needle.text.records import DataError, Record, write_jsonl


def drawn(count: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidences that are true, whether the student is right, and whether the other model is."""
    source = np.random.default_rng(seed)
    sure = source.random(count)
    return sure, (source.random(count) < sure).astype(float), (source.random(count) < 0.9).astype(float)


def test_a_curve_is_the_mean_over_all_orders_of_equally_sure_answers() -> None:
    source = random.Random(1)
    for _ in range(20):
        sure = np.asarray([source.choice((0.2, 0.5)) for _ in range(5)])
        own, cloud = (np.asarray([float(source.random() < 0.5) for _ in range(5)]) for _ in range(2))
        every = []
        for order in itertools.permutations(range(5)):
            if all(sure[a] <= sure[b] for a, b in itertools.pairwise(order)):
                mixed = own.copy()
                accuracies = [mixed.mean()]
                for place in order:
                    mixed[place] = cloud[place]
                    accuracies.append(mixed.mean())
                every.append(accuracies)
        assert curve(sure, own, cloud) == pytest.approx(np.mean(every, axis=0))


def test_an_oracle_gains_all_and_a_constant_nothing() -> None:
    sure, own, cloud = drawn()
    assert gain(np.zeros_like(sure), own, cloud) == pytest.approx(0, abs=1e-9)
    assert gain(own - cloud, own, cloud) == pytest.approx(1)
    assert gain(-sure, own, cloud) < 0 < gain(sure, own, cloud) < 1
    assert gain(sure, own, own) == 0, "where both always agree there is nothing to gain"


def test_a_simulated_cloud_is_wrong_as_often_as_was_said(records: list[Record]) -> None:
    assert simulated(records, 0.0).all()
    right = simulated(records, 0.3)
    assert right.mean() == pytest.approx(0.7, abs=0.06)
    assert (simulated(records[::-1], 0.3)[::-1] == right).all(), "of the same record always the same"


def test_the_table_finds_the_cheapest_that_is_as_good_as_the_cloud() -> None:
    sure, own, cloud = drawn()
    measures = {"confidence": sure, "random": np.random.default_rng(9).random(len(sure))}
    table = tabled(measures, own, cloud, CascadeConfig())
    even = table["as_good_as_the_cloud"]
    made = curve(sure, own, cloud)
    k = round(even["share"] * len(own))
    assert made[k] >= cloud.mean() - 1e-9
    assert (made[:k] < cloud.mean()).all()
    assert even["dollars"] == pytest.approx(0.002 * 847 * 30 * even["share"])
    assert np.mean(sure < even["below"]) == pytest.approx(even["share"])
    assert table["best"]["accuracy"] == made.max()
    ahead = table["measures"]["random"]
    assert 0 < ahead["behind_low"] < ahead["behind"] < ahead["behind_high"]
    assert f"{100 * even['share']:.0f}% of the requests" in verdict(table)


def test_the_verdict_says_so_where_a_cascade_is_not_worth_it() -> None:
    sure, own, cloud = drawn()
    assert "nothing needs to be asked elsewhere" in verdict(tabled({"confidence": sure}, own, own * 0, CascadeConfig()))
    hopeless = tabled({"confidence": sure}, own * 0, cloud, CascadeConfig())
    assert "a fifth of the requests" in verdict(hopeless)


def test_no_answer_is_the_least_sure() -> None:
    answers = [Answer((), 0.5, "stop", calibrated=True), Answer(None, 0.0, "length")]
    found = orders(answers)
    assert set(found) == {"confidence", "raw product", "margin", "doubt"}
    assert "raw product" not in orders([Answer((), 0.5, "stop")]), "uncalibrated, it is the confidence"


@pytest.mark.parametrize("settings", [{"error": 1.0}, {"error": -0.1}, {"price": 0.0}, {"per_day": -1.0}])
def test_what_cannot_be_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"cascade\."):
        CascadeConfig(**settings)  # type: ignore[arg-type]


def test_the_command_writes_table_and_page(exported: Path, records: list[Record], tmp_path: Path) -> None:
    some = records[:20]
    write_jsonl(tmp_path / "some.jsonl", some)
    answers = [Answer(record.answers, 1.0, "stop") for record in some]
    scores = [score(record, answer.calls) for record, answer in zip(some, answers, strict=True)]
    write_predictions(tmp_path / "cloud.jsonl", some, answers, scores)
    data = DataConfig(kind="jsonl", path=str(tmp_path / "some.jsonl"))
    cloud = CascadeConfig(cloud=str(tmp_path / "cloud.jsonl"), price=0.01, per_day=100)
    config = Settings(checkpoint=str(exported), data=data, cascade=cloud, output=str(tmp_path / "out"), max_tokens=40)
    run(config, [f"checkpoint={exported}"])
    table = json.loads((tmp_path / "out" / "cascade.json").read_text())
    assert (table["records"], table["cloud"], table["month"]) == (20, 1.0, 30.0)
    page = (tmp_path / "out" / "cascade.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 1
    assert verdict(table) in page
    write_predictions(tmp_path / "cloud.jsonl", some[:3], answers[:3], scores[:3])
    with pytest.raises(DataError, match="holds 3 answers, but there are 20 records"):
        run(config, [])
