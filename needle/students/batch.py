"""A batch of examples as tensors: what all students share, and the row that decoder-only and encoder-decoder students
read. What the pointer student reads stands in `pointer.batch`.

Legend: B records, T target positions, P prompt positions, K tools of one record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from needle.text.prompt import IGNORE, Example, prompt_ids
from needle.text.tokenizer import TextTokenizer

B = TypeVar("B", bound="Batch")


@dataclass
class Batch:
    """Targets, and how many labels each record has. Each layout of the source is a class of its own."""

    ids: list[str]
    targets: Tensor  # [B, T], -100 is padding
    weights: Tensor  # [B, T] how much each target counts; 0 on padding
    inputs: Tensor  # [B, T] what stands before each target: <answer>, then the targets shifted by one
    open_tool: Tensor  # [B, T] index among the record's tools of the one whose arguments target t may name; -1 is none
    tool_count: Tensor  # [B]
    argument_count: Tensor  # [B, K] arguments of each of the record's tools

    @classmethod
    def of(cls, examples: Sequence[Example], tokenizer: TextTokenizer, kind_weights: Sequence[float] = ()) -> Self:
        """Tensors of `examples`; for a prompt without targets T is 1.

        `kind_weights` are the weights of a target token by its kind (`prompt.KINDS`); 1 when empty.
        """
        width = max([1, *(len(example.target) for example in examples)])
        tools = max([1, *(len(example.tools) for example in examples)])
        shared = Batch(
            ids=[example.id for example in examples],
            targets=pad([example.target for example in examples], width, IGNORE),
            weights=pad([target_weights(example, kind_weights) for example in examples], width, 0, np.float32),
            inputs=pad([(tokenizer.answer, *example.target[:-1]) for example in examples], width, tokenizer.pad),
            open_tool=pad([example.open_tool for example in examples], width, -1),
            tool_count=torch.tensor([len(example.tools) for example in examples]),
            argument_count=pad([[len(tool.markers) for tool in example.tools] for example in examples], tools, 0),
        )
        return cls(**vars(shared), **cls.source(examples, tokenizer, width))

    @classmethod
    def source(cls, examples: Sequence[Example], tokenizer: TextTokenizer, width: int) -> dict[str, Any]:
        """The fields that a layout has on top; `width` is T."""
        return {}

    def labels(self, rows: Tensor) -> Batch:
        """Only these rows, and of them only what says which labels they have: what the steps after the prompt need."""
        shared = {field.name: getattr(self, field.name) for field in fields(Batch)}
        per_record = ("targets", "weights", "inputs", "open_tool", "tool_count", "argument_count")
        return Batch(**{**shared, "ids": [], **{name: shared[name][rows] for name in per_record}})


@dataclass
class FlatBatch(Batch):
    """Tools, request and target in one row."""

    sequence: Tensor  # [B, P+T-1] ids, right-padded
    predicts: Tensor  # [B, T] the position in `sequence` whose output predicts target t
    prompt_length: Tensor  # [B]

    @classmethod
    def source(cls, examples: Sequence[Example], tokenizer: TextTokenizer, width: int) -> dict[str, Any]:
        prompts = [prompt_ids(example, tokenizer) for example in examples]
        rows = [prompt + list(example.target[:-1]) for prompt, example in zip(prompts, examples, strict=True)]
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        size = max(len(row) for row in rows)
        predicts = (lengths.unsqueeze(1) - 1 + torch.arange(width)).clamp_max(size - 1)
        return {"sequence": pad(rows, size, tokenizer.pad), "predicts": predicts, "prompt_length": lengths}


def target_weights(example: Example, kind_weights: Sequence[float] = ()) -> list[float]:
    """How much each target token counts: the record's weight times that of the token's kind."""
    if not kind_weights:
        return [example.weight] * len(example.target)
    return [example.weight * kind_weights[kind] for kind in example.kinds]


def pad(rows: Sequence[Any], width: int, value: int, dtype: type[np.generic] = np.int64) -> Tensor:
    """[len(rows), width] of int64, or another type."""
    out = np.full((len(rows), width), value, dtype=dtype)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return torch.from_numpy(out)


def move(batch: B, device: torch.device) -> B:
    """The same batch on `device`."""
    moved: B = to_device(batch, device)
    return moved


def to_device(value: Any, device: torch.device) -> Any:
    """The tensors of a dataclass or list on `device`; what isn't a tensor stays as it is."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, list):
        return [to_device(item, device) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: to_device(getattr(value, field.name), device) for field in fields(value)})
    return value
