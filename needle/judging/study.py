"""A study: models that differ in one thing, each trained with several seeds, all judged on the same records.

`needle compare` is one, and experiments define theirs in a few lines:

    study = Study(folder, {"test": records}, train_words, arms=[Plan("finetune", ("loss=finetune",))], seeds=[0, 1, 2])
    results = study.run()

What is trained and what is judged stays in the study's folder, so that the same study goes on where it was stopped, and
several processes may each take a part of it.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from needle.data.encoding import data_fingerprint
from needle.engine.decode import MAX_TOKENS, Engine
from needle.judging.compare import Arm, Run
from needle.judging.evaluate import judge, read_predictions, write_predictions
from needle.judging.metrics import score
from needle.students.checkpoint import load_checkpoint
from needle.text.files import replacing, write_json
from needle.text.folder import weights_fingerprint
from needle.text.records import Record

UNTOLD = {"seconds": 0.0, "steps": 0, "training_records": 0, "parameters": 0, "records_per_second": 0.0}


@dataclass(frozen=True)
class Plan:
    """A model to train: the settings that tell it from the others. `size` is its number of training records, if it
    isn't all of them; `folder` the name of its runs' folders, in place of one made of its settings."""

    name: str
    words: tuple[str, ...] = ()
    size: int | None = None
    folder: str | None = None


@dataclass(frozen=True)
class Trained:
    """A finished run: its folder, the summary of its training, and the weights of its loss."""

    folder: Path
    summary: Mapping[str, Any]
    loss: Mapping[str, float] = field(default_factory=dict)


Train = Callable[[Sequence[str], str], Trained | None]
"""Trains what the settings say unless that is done; the second argument names it in messages. None for a run that isn't
trained and may not be. Raises `ValueError`."""


@dataclass
class Results:
    """What came of a study, for each test set: the teacher and the arms, and what is missing."""

    teacher: dict[str, Run]
    arms: dict[str, list[Arm]]
    missing: list[dict[str, str]]

    @property
    def runs(self) -> list[Run]:
        """Every model once, the teacher first, as judged on the first test set."""
        arms = next(iter(self.arms.values()), [])
        return [*list(self.teacher.values())[:1], *(run for arm in arms for run in arm.runs)]


class Study:
    """`arms` and `seeds` are crossed. `common` are settings of all runs, the teacher's too if it is a `Plan`; `taught`
    are those of all arms. `teacher` may be the folder of a checkpoint that is there already. `tests` are the sets to
    judge on, by name."""

    def __init__(
        self,
        folder: Path,
        tests: Mapping[str, Sequence[Record]],
        train: Train,
        *,
        arms: Sequence[Plan],
        seeds: Sequence[int] = (0,),
        teacher: Plan | Path | None = None,
        common: Sequence[str] = (),
        taught: Sequence[str] = (),
        decoding: str = "constrained",
        max_tokens: int = MAX_TOKENS,
        say: Callable[[str], None] = print,
    ) -> None:
        self.folder, self.tests, self.train = folder, tests, train
        self.arms, self.seeds, self.teacher = list(arms), list(seeds), teacher
        self.common, self.taught = list(common), list(taught)
        self.decoding, self.max_tokens, self.say = decoding, max_tokens, say

    def run(self, part: int = 0, parts: int = 1) -> Results:
        """Trains and judges everything that isn't yet; of several processes each takes a `part`, from 0. An arm that
        fails is among the missing, and the others go on."""
        results = Results({}, {name: [] for name in self.tests}, [])
        teacher = self._teach(results)
        if teacher is not None:
            results.teacher = {name: self._judged(teacher, name, 0, "teacher  ") for name in self.tests}
        runs = [(plan, seed) for seed in self.seeds for plan in self.arms]
        found: dict[tuple[str, int], dict[str, Arm]] = {}
        for number, (plan, seed) in enumerate(runs[part::parts], 1):
            name = f"arm {number}/{len(runs[part::parts])}  "
            self.say(f"{name}{' '.join((*plan.words, f'train.seed={seed}'))}")
            trained = self._train(self.words(plan, seed), name, f"{plan.name}, seed {seed}", results)
            if trained is None:
                continue
            size = plan.size or trained.summary["training_records"]
            arms = found.setdefault((plan.name, size), {t: Arm(plan.name, trained.loss, size, []) for t in self.tests})
            for test, arm in arms.items():
                arm.runs.append(self._judged(trained, test, seed, name))
        for arms in found.values():
            for test, arm in arms.items():
                results.arms[test].append(arm)
        for own in results.arms.values():
            own.sort(key=lambda arm: (arm.data_size, arm.name))
        return results

    def words(self, plan: Plan, seed: int) -> list[str]:
        """The settings of one run."""
        own = f"train.seed={seed}"
        folder = arm_folder(self.folder, [plan.folder, own] if plan.folder else [*plan.words, own])
        return [*self.common, *self.taught, *plan.words, own, f"output={folder}"]

    def _teach(self, results: Results) -> Trained | None:
        if isinstance(self.teacher, Path):
            path = self.teacher / "train.json"
            known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            return Trained(self.teacher, {**UNTOLD, **known, "resumed": "given"})
        if self.teacher is None:
            return None
        words = [*self.common, *self.teacher.words, f"output={self.folder / 'teacher'}"]
        return self._train(words, "teacher  ", "teacher", results)

    def _train(self, words: Sequence[str], name: str, arm: str, results: Results) -> Trained | None:
        reason = "not trained"
        try:
            if (trained := self.train(words, name)) is not None:
                return trained
        except ValueError as error:
            reason = str(error)
        self.say(f"{name}missing: {reason}")
        results.missing.append({"arm": arm, "reason": reason})
        return None

    def _judged(self, trained: Trained, test: str, seed: int, name: str) -> Run:
        """A model's answers to a test set, asked for once and kept under a name made of everything that they depend
        on."""
        records = self.tests[test]
        known = [weights_fingerprint(trained.folder), data_fingerprint(records), self.decoding, self.max_tokens]
        digest = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]
        path = self.folder / "judged" / f"{digest}.jsonl"
        about = path.with_suffix(".json")
        checkpoint = load_checkpoint(trained.folder)
        if not about.is_file():
            started = time.perf_counter()
            answers, scores = judge(Engine(checkpoint, self.decoding), records, self.max_tokens)
            seconds = time.perf_counter() - started
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                write_predictions(temporary, records, answers, scores)
            write_json(about, {"seconds": seconds, "folder": str(trained.folder), "test": test})
        answers, seconds = read_predictions(path), json.loads(about.read_text(encoding="utf-8"))["seconds"]
        seen = checkpoint.model.seen_tools or None
        scores = [score(record, answer.calls, seen) for record, answer in zip(records, answers, strict=True)]
        exact = sum(one.exact for one in scores) / max(len(scores), 1)
        self.say(f"{name}exact call {100 * exact:.1f}% on {len(records)} records of {test}, {seconds:.1f} s")
        return Run(scores, answers, seed, trained.summary, seconds, trained.folder)


def arm_folder(root: Path, choice: Sequence[str]) -> Path:
    """Where an arm trains, below the folder of its comparison."""
    return root / "arms" / "_".join(re.sub(r"[=/, ]+", "-", word) for word in choice)
