"""A study: arms crossed with seeds, judged once, each failure named, parts shared out, and goes on where it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from needle.engine.decode import Answer
from needle.judging import study as module
from needle.judging.evaluate import judge, read_predictions, write_predictions
from needle.judging.study import Plan, Study, Trained
from needle.release.recipe import RecipeConfig, run_recipe
from needle.students.build import build_student
from needle.students.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from needle.text.records import Record
from needle.text.tokenizer import TextTokenizer
from needle.training.budget import steps_within
from tests.conftest import TINY


class Trainer:
    """Saves a tiny student with random weights, and remembers what it was told."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer
        self.told: list[list[str]] = []

    def __call__(self, words: Sequence[str], name: str) -> Trained | None:
        self.told.append(list(words))
        if "loss=broken" in words:
            raise ValueError("it can't be trained")
        if "loss=absent" in words:
            return None
        told = dict(word.split("=", 1) for word in words)
        folder = Path(told["output"])
        if not folder.exists():
            torch.manual_seed(int(told.get("train.seed", 0)))
            student = build_student(TINY["pointer"], self.tokenizer.size).eval()
            save_checkpoint(folder, Checkpoint(student, TINY["pointer"], self.tokenizer, "decisions", 1024))
        return Trained(folder, {"training_records": 40, "seconds": 1.0}, {"alpha": 0.0, "beta": 1.0})


ARMS = [Plan("b", ("loss=b", "data.size=40"), 40), Plan("a", ("loss=a",)), Plan("broken", ("loss=broken",))]


def study(folder: Path, tests: dict[str, Sequence[Record]], trainer: Trainer, **more: Any) -> Study:
    given: dict[str, Any] = {"arms": ARMS, "seeds": [0, 1], "teacher": Plan("teacher", ("train.steps=9",)), **more}
    return Study(folder, tests, trainer, common=["x=1"], taught=["teacher=local"], max_tokens=8, **given)


def test_arms_and_seeds_are_crossed_and_every_model_is_judged_on_every_set(
    tmp_path: Path, tokenizer: TextTokenizer, records: list[Record]
) -> None:
    trainer = Trainer(tokenizer)
    results = study(tmp_path, {"one": records[:4], "two": records[4:7]}, trainer).run()
    for test, count in (("one", 4), ("two", 3)):
        arms = results.arms[test]
        assert [(arm.name, arm.data_size, [run.seed for run in arm.runs]) for arm in arms] == [
            ("a", 40, [0, 1]),
            ("b", 40, [0, 1]),
        ]
        assert {len(run.scores) for arm in arms for run in arm.runs} == {count}
        assert len(results.teacher[test].answers) == count
    assert results.missing == [{"arm": f"broken, seed {seed}", "reason": "it can't be trained"} for seed in (0, 1)]
    assert len(results.runs) == 5
    assert trainer.told[0] == ["x=1", "train.steps=9", f"output={tmp_path}/teacher"]
    assert trainer.told[1][:5] == ["x=1", "teacher=local", "loss=b", "data.size=40", "train.seed=0"]
    assert trainer.told[1][-1] == f"output={tmp_path}/arms/loss-b_data.size-40_train.seed-0"


def test_what_was_judged_is_not_asked_again_unless_something_has_changed(
    tmp_path: Path, tokenizer: TextTokenizer, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def counted(*arguments: Any) -> Any:
        nonlocal asked
        asked += 1
        return judge(*arguments)

    monkeypatch.setattr(module, "judge", counted)
    first = study(tmp_path, {"one": records[:4]}, Trainer(tokenizer)).run()
    assert asked == 2  # of the five models those of one seed have the same weights
    again = study(tmp_path, {"one": records[:4]}, Trainer(tokenizer)).run()
    assert asked == 2
    for one, two in zip(first.runs, again.runs, strict=True):
        assert [answer.calls for answer in one.answers] == [answer.calls for answer in two.answers]
        assert [score.rates for score in one.scores] == [score.rates for score in two.scores]
    study(tmp_path, {"one": records[:5]}, Trainer(tokenizer)).run()
    assert asked == 4


def test_processes_take_parts_and_together_they_do_everything(
    tmp_path: Path, tokenizer: TextTokenizer, records: list[Record]
) -> None:
    parts = [Trainer(tokenizer), Trainer(tokenizer)]
    for number, trainer in enumerate(parts):
        study(tmp_path, {"one": records[:2]}, trainer, teacher=None).run(number, 2)
    told = [[words[-1] for words in trainer.told] for trainer in parts]
    assert not set(told[0]) & set(told[1])
    assert len(told[0]) + len(told[1]) == 6


def test_a_run_that_is_not_there_and_may_not_be_trained_is_missing(
    tmp_path: Path, tokenizer: TextTokenizer, records: list[Record]
) -> None:
    arms = [Plan("a", ("loss=a",)), Plan("absent", ("loss=absent",))]
    results = study(tmp_path, {"one": records[:2]}, Trainer(tokenizer), arms=arms, seeds=[0]).run()
    assert results.missing == [{"arm": "absent, seed 0", "reason": "not trained"}]


def test_a_teacher_may_be_there_already(tmp_path: Path, tokenizer: TextTokenizer, records: list[Record]) -> None:
    trainer = Trainer(tokenizer)
    trainer([f"output={tmp_path}/given"], "")
    results = study(tmp_path / "study", {"one": records[:2]}, trainer, teacher=tmp_path / "given").run()
    assert results.teacher["one"].summary["resumed"] == "given"


def test_predictions_are_read_as_they_were_written(tmp_path: Path, records: list[Record]) -> None:
    answers = [Answer(records[0].answers, 0.25, "stop"), Answer(None, 0.0, "refused", error="too long")]
    from needle.judging.metrics import score

    scores = [score(record, answer.calls) for record, answer in zip(records[:2], answers, strict=True)]
    write_predictions(tmp_path / "answers.jsonl", records[:2], answers, scores)
    assert read_predictions(tmp_path / "answers.jsonl") == answers


def test_a_recipe_goes_on_from_part_to_part_and_averages(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    trainer = Trainer(tokenizer)
    recipe = RecipeConfig(str(tmp_path), [["a=1", "train.seed=1"], ["b=2", "train.seed=2"]], [1, 2])
    last = run_recipe(recipe, trainer, ["c=3"], say=lambda text: None)
    one, two = tmp_path / "part_1", tmp_path / "part_2"
    assert trainer.told == [
        ["a=1", "train.seed=1", f"output={one}", "c=3"],
        *([["a=1", "train.seed=1", "b=2", "train.seed=2", f"train.start={one}", f"tokenizer.path={one}"]
           + [f"output={two}", "c=3"]]),
    ]  # fmt: skip
    assert last.folder == two
    first, second, mean = (load_checkpoint(folder).student.state_dict() for folder in (one, two, tmp_path / "mean"))
    name = "embed.weight"
    torch.testing.assert_close(mean[name], (first[name] + second[name]) / 2)
    with pytest.raises(ValueError, match="recipe.mean names part 3; there are parts 1 to 2"):
        replace(recipe, mean=[3])
    with pytest.raises(ValueError, match="recipe.output is missing"):
        RecipeConfig(None, [["a=1"]])


def test_the_steps_that_fit_a_budget_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []

    def build() -> Any:
        from needle.cli.app import compose
        from needle.config import build_job, settings

        built.append(1)
        small = ["data.synthetic.train=60", "data.synthetic.validation=0", "data.synthetic.test=0"]
        tiny = ["student.width=16", "student.heads=2", "student.hidden=16", "tokenizer.size=700"]
        words = [*small, *tiny, "data.synthetic.unseen=0", "train.batch_size=2", "train.micro_batch=2"]
        return build_job(settings(compose([*words, f"cache={tmp_path}/cache", f"output={tmp_path}/run"])))

    path = tmp_path / "steps" / "steps.json"
    steps = steps_within(0.1, build, path)
    assert steps >= 1
    assert steps_within(0.1, build, path) == steps
    assert built == [1]
    steps_within(0.2, build, path)
    assert built == [1, 1]
