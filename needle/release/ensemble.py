"""Students of one tokenizer as one: the mean of their probabilities, token by token. Not one student's answers, but
what more of its kind could give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from needle.students.base import State, Student, Trace
from needle.students.batch import Batch
from needle.text.prompt import Example


@dataclass
class EnsembleState(State):
    states: list[State]

    def select(self, rows: Tensor) -> None:
        for state in self.states:
            state.select(rows)


class Ensemble(Student):
    """All read alike: what a prompt's length and room are, the first of them tells."""

    def __init__(self, students: Sequence[Student]) -> None:
        super().__init__()
        self.students = nn.ModuleList(students)
        self.first = students[0]
        self.batch_type, self.read_at_once = self.first.batch_type, self.first.read_at_once
        self.vocabulary = self.first.vocabulary

    @property
    def traced(self) -> tuple[int, int]:
        return self.first.traced

    def forward(self, batch: Batch, trace: Trace | None = None, wanted: Tensor | None = None) -> Tensor:
        return self._mean([student(batch, None, wanted) for student in self.students])

    def read_length(self, example: Example) -> int:
        return self.first.read_length(example)

    def room(self, example: Example, max_length: int) -> int:
        return self.first.room(example, max_length)

    def start(self, batch: Batch, cache: Any = None) -> EnsembleState:
        return EnsembleState([student.start(batch) for student in self.students])  # type: ignore[operator]

    def step(self, state: EnsembleState, tokens: Tensor, open_tool: Tensor) -> Tensor:  # type: ignore[override]
        pairs = zip(self.students, state.states, strict=True)
        return self._mean([student.step(own, tokens, open_tool) for student, own in pairs])  # type: ignore[operator]

    def _mean(self, scores: Sequence[Tensor]) -> Tensor:
        """Of the probabilities, as scores."""
        return torch.stack([own.float().log_softmax(-1) for own in scores]).logsumexp(0)
