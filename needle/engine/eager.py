"""A student in torch as what computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from needle.engine.backend import Floats
from needle.students.base import State, Student, count_parameters
from needle.students.batch import move
from needle.students.checkpoint import Checkpoint
from needle.text.prompt import Example, RenderedTool


class EagerBackend:
    """A checkpoint's student."""

    name, precision, concurrent = "torch", "torch", False

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.model, self.student = checkpoint.model, checkpoint.student
        self.parameters = count_parameters(self.student)
        self.read_at_once, self.can_rank = self.student.read_at_once, self.student.can_rank
        self.read_length, self.room = self.student.read_length, self.student.room
        self.cache = self.student.new_cache()

    @torch.inference_mode()
    def start(self, examples: Sequence[Example]) -> EagerAnswers:
        batch = move(self.student.collate(examples, self.model.tokenizer), self.device)
        return EagerAnswers(self.student, self.student.start(batch, self.cache), self.device)

    @torch.inference_mode()
    def tool_keys(self, tools: Sequence[RenderedTool]) -> Floats:
        keys: Floats = self.student.tool_keys(tools).float().cpu().numpy()
        return keys

    @torch.inference_mode()
    def request_key(self, example: Example) -> Floats:
        batch = move(self.student.collate([example], self.model.tokenizer), self.device)
        key: Floats = self.student.request_keys(batch)[0].float().cpu().numpy()
        return key

    @property
    def device(self) -> torch.device:
        return next(self.student.parameters()).device


class EagerAnswers:
    """The answers of one batch in the making."""

    def __init__(self, student: Student, state: State, device: torch.device) -> None:
        self.student, self.state, self.device = student, state, device

    @torch.inference_mode()
    def step(self, tokens: Sequence[Sequence[int]], open_tool: Sequence[Sequence[int]]) -> Floats:
        fed, opened = (torch.tensor(own, device=self.device) for own in (tokens, open_tool))
        scores: Floats = self.student.step(self.state, fed, opened).float().cpu().numpy()
        return scores

    @torch.inference_mode()
    def select(self, rows: Sequence[int]) -> None:
        self.state.select(torch.tensor(rows, device=self.device))

    def sources(self) -> list[list[int]] | None:
        return self.student.sources(self.state)

    def draft(self, token: int, most: int) -> list[int]:
        return self.student.draft(self.state, token, most)

    def confirms(self, token: int, step: int) -> bool:
        return self.state.confirms(token, step)

    def cut(self, count: int) -> None:
        self.state.cut(count)
