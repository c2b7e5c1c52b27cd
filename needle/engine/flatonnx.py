"""Exports of students that read tools and request in one row, in onnxruntime: the graphs of `needle.exports.flat`.

One answer at a time. Legend: as there, and K tools of a record.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from needle.engine.backend import Floats
from needle.engine.onnx import Export, OneByOne
from needle.text.folder import Model
from needle.text.prompt import Example, RenderedTool, prompt_ids
from needle.text.tokenizer import ARGUMENT_LABELS, TOOL_LABELS


class FlatOnnx:
    """An export as what computes; it may be asked by several threads at once."""

    name, concurrent = "onnxruntime", True
    read_at_once = "the request and its tools are"
    can_rank = False

    def __init__(self, model: Model, export: Export) -> None:
        self.model, self.export, self.precision = model, export, export.precision
        self.parameters: int = export.facts["parameters"]
        student = export.facts["student"]
        layers = student.get("layers") or student["decoder_layers"]
        self.scale = student["width"] ** 0.5 if model.family == "san" else 1.0
        self.no_past = [np.zeros((1, student["heads"], 0, student["width"] // student["heads"]), np.float32)]
        self.no_past *= 2 * layers
        self.positions = export.tables.get("positions")

    def read_length(self, example: Example) -> int:
        return example.prompt_length

    def room(self, example: Example, max_length: int) -> int:
        return max_length - example.prompt_length

    def start(self, examples: Sequence[Example]) -> OneByOne:
        return OneByOne([_Answering(self, example) for example in examples])

    def tool_keys(self, tools: Sequence[RenderedTool]) -> Floats:
        raise NotImplementedError("this student doesn't rank tools")

    def request_key(self, example: Example) -> Floats:
        raise NotImplementedError("this student doesn't rank tools")

    def embedded(self, ids: Sequence[int], position: int) -> Floats:
        """[1, n, D]"""
        x = self.export.rows("embed", np.asarray(ids)) * np.float32(self.scale)
        if self.positions is not None:
            x = x + self.positions[position : position + len(ids)]
        found: Floats = x[None]
        return found


class _Answering:
    """One answer in the making. The prompt ends in `<answer>`, which a decoder reads with it."""

    def __init__(self, backend: FlatOnnx, example: Example) -> None:
        self.backend, self.past, self.position = backend, backend.no_past, 0
        self.counts = [len(tool.markers) for tool in example.tools]
        self.prompt: list[Floats] = []
        self.pending: Floats | None = None
        ids = prompt_ids(example, backend.model.tokenizer)
        if "prompt" in backend.export.facts["graphs"]:
            self.prompt = backend.export.run("prompt", backend.embedded(ids, 0))
        else:
            self.pending = self._read(ids)

    def step(self, tokens: Sequence[int], open_tool: int) -> Floats:
        """[1, V] scores behind a token."""
        scores, self.pending = (self._read(tokens) if self.pending is None else self.pending), None
        names = self.backend.model.tokenizer
        scores[names.first_tool_label + len(self.counts) : names.first_tool_label + TOOL_LABELS] = -np.inf
        known = self.counts[open_tool] if open_tool >= 0 else 0
        scores[names.first_argument_label + known : names.first_argument_label + ARGUMENT_LABELS] = -np.inf
        return scores[None]

    def draft(self, token: int, most: int) -> list[int]:
        return []

    def cut(self, count: int) -> None:
        raise NotImplementedError("this student doesn't draft")

    def _read(self, ids: Sequence[int]) -> Floats:
        """[V] scores behind the last of some tokens."""
        given: dict[str, np.ndarray] = {
            "x": self.backend.embedded(ids, self.position),
            "position": np.asarray([self.position], np.int64),
        }
        names = [f"{part}_{number}" for number in range(len(self.past) // 2) for part in "kv"]
        given |= {f"past_{name}": own for name, own in zip(names, self.past, strict=True)}
        given |= {f"prompt_{name}": own for name, own in zip(names, self.prompt, strict=False)}
        scores, *self.past = self.backend.export.run_named("step", given)
        self.position += len(ids)
        found: Floats = scores[0, 0]
        return found
