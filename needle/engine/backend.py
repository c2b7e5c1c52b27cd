"""What computes: a student in torch, or its export in onnxruntime. The engine asks either for scores and chooses.

Legend: B records, n tokens of a step, V vocabulary, D width of a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from needle.text.folder import Model
from needle.text.prompt import Example, RenderedTool

if TYPE_CHECKING:
    from needle.students.checkpoint import Checkpoint

Floats = NDArray[np.float32]


class Answers(Protocol):
    """The answers of one batch in the making."""

    def step(self, tokens: Sequence[Sequence[int]], open_tool: Sequence[Sequence[int]]) -> Floats:
        """Appends `tokens` [B][n] (the first are `<answer>`) and returns the next scores behind each, [B, n, V]; -inf
        for labels that a record lacks. `open_tool` [B][n] is the index of the tool that is open after each, or -1. n is
        1 unless `draft` gave more."""

    def select(self, rows: Sequence[int]) -> None:
        """Keeps only these of the answers."""

    def sources(self) -> list[list[int]] | None:
        """[B][n] where in the request the last tokens were copied from, -1 for none; None if that can't be told."""

    def draft(self, token: int, most: int) -> list[int]:
        """Tokens that may follow `token` in the only answer, to be scored together with it."""

    def confirms(self, token: int, step: int) -> bool:
        """Whether a drafted `token` that was chosen after the last tokens' `step` means what the draft meant."""

    def cut(self, count: int) -> None:
        """Forgets the last `count` tokens of those that came together."""


class Backend(Protocol):
    """Weights that can be asked. Encodings of tools are kept between calls."""

    model: Model
    name: str  # torch, or onnxruntime
    precision: str  # of an export, int8 or fp32; else torch
    parameters: int
    read_at_once: str  # what `read_length` counts, for messages
    concurrent: bool  # whether several threads may ask at once
    can_rank: bool  # whether `tool_keys` and `request_key` choose a few tools among many

    def read_length(self, example: Example) -> int:
        """Tokens of a prompt that are read at once."""

    def room(self, example: Example, max_length: int) -> int:
        """How many tokens an answer may have when prompt and answer together have at most `max_length`."""

    def start(self, examples: Sequence[Example]) -> Answers:
        """Reads prompts."""

    def tool_keys(self, tools: Sequence[RenderedTool]) -> Floats:
        """[m, D] of tools: what `request_key` of a fitting request is close to."""

    def request_key(self, example: Example) -> Floats:
        """[D] of a request without tools: its products with `tool_keys` say how well each tool fits."""


def backend_of(given: Backend | Checkpoint) -> Backend:
    """Itself, or a checkpoint in torch."""
    if hasattr(given, "student") and not hasattr(given, "start"):
        from needle.engine.eager import EagerBackend

        return EagerBackend(given)
    return cast(Backend, given)
