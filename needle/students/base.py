"""What every student is: a module that answers `logits [B, T, V]` for a batch, and decodes step by step.

Legend: B records, T target positions, S positions so far, V vocabulary, D width, H heads, d width of a head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from needle.students.batch import Batch
from needle.tokenizer import ARGUMENT_LABELS, TOOL_LABELS


@dataclass
class Trace:
    """What a student thought on its way to the target positions, layer by layer: for teachers that show their insides."""

    attend: bool = False  # whether to collect attention, which then isn't computed by the fast kernel
    hidden: list[Tensor] = field(default_factory=list)  # [B, T, D] after each layer of the decoder
    attention: list[Tensor] = field(default_factory=list)  # [B, T, S] over the prompt's positions, the mean of the heads


class Student(nn.Module, ABC):
    """Base of all students. `layout` says which source of the batch it reads."""

    layout = "flat"
    vocabulary: int
    checkpointing = False  # forget what a block computed, and compute it again for the gradient

    @property
    @abstractmethod
    def traced(self) -> tuple[int, int]:
        """How many layers a `Trace` gets, and their width D."""

    @abstractmethod
    def forward(self, batch: Batch, trace: Trace | None = None) -> Tensor:
        """[B, T, V] scores or normalised log-probabilities in float32; labels that a record lacks are -inf."""

    def run(self, block: Callable[..., Any], *inputs: Any) -> Any:
        """A block's output, through activation checkpointing while training if asked for."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    @abstractmethod
    def start(self, batch: Batch, cache: Any = None) -> State:
        """Reads prompts; `step` then decodes. `cache` may keep encodings of tools between calls."""

    @abstractmethod
    def step(self, state: State, tokens: Tensor, open_tool: Tensor) -> Tensor:
        """Appends `tokens` [B] (the first are `<answer>`) and returns the next scores, [B, V].

        `open_tool` [B] is the index of the tool that is open after `tokens`, or -1.
        """


class State(Protocol):
    """What a student keeps between steps of one batch."""

    def select(self, rows: Tensor) -> None:
        """Keeps only these rows of the batch."""


def mean_attention(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """[B, T, S] attention of queries [B, H, T, d] over keys [B, G, S, d], the mean of the heads; `mask` is true where allowed."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = (q.float() @ k.float().transpose(-1, -2)) * q.shape[-1] ** -0.5
    shares: Tensor = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return shares.mean(1)


def mask_labels(logits: Tensor, batch: Batch, open_tool: Tensor) -> Tensor:
    """Puts -inf on the labels that a record lacks: tools beyond its own, arguments beyond those of the open tool.

    Args:
        logits: [B, T, V].
        open_tool: [B, T], -1 for none.
    """
    arguments = batch.argument_count.gather(1, open_tool.clamp_min(0)).masked_fill(open_tool < 0, 0)
    no_tool = torch.arange(TOOL_LABELS, device=logits.device) >= batch.tool_count[:, None, None]
    no_argument = torch.arange(ARGUMENT_LABELS, device=logits.device) >= arguments[..., None]
    text = logits.shape[-1] - TOOL_LABELS - ARGUMENT_LABELS
    mask = torch.cat([no_tool.expand(*logits.shape[:2], -1), no_argument], dim=-1)
    return torch.cat([logits[..., :text], logits[..., text:].masked_fill(mask, -torch.inf)], dim=-1)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32 (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


@dataclass
class Rope:
    """Rotary positions in the half-split layout that Llama weights use (Su et al. 2021, arXiv:2104.09864)."""

    cos: Tensor  # [..., S, d]
    sin: Tensor

    @classmethod
    def at(cls, positions: Tensor, head: int, theta: float) -> Rope:
        """`positions` [..., S]; the tables get a heads dimension when positions have a batch one."""
        frequencies = theta ** (-torch.arange(0, head, 2, device=positions.device).float() / head)
        angles = positions[..., None].float() * frequencies
        angles = torch.cat([angles, angles], dim=-1)
        if angles.dim() == 3:
            angles = angles.unsqueeze(1)
        return cls(angles.cos(), angles.sin())

    def __call__(self, x: Tensor) -> Tensor:
        """Rotates [B, H, S, d]."""
        left, right = x.float().chunk(2, dim=-1)
        rotated = torch.cat([-right, left], dim=-1)
        return (x.float() * self.cos + rotated * self.sin).to(x.dtype)


def init_weights(module: nn.Module, residuals: int) -> None:
    """Unit-variance maps: weights of variance 1/fan-in, and 1/`residuals` of that where a branch joins the residual stream.

    The usual fixed 0.02 is made for widths near 2,500; in a student of width 128 it leaves attention uniform for
    thousands of steps.
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            joins = name.endswith(("o_proj", "down_proj", "mlp.2"))
            nn.init.normal_(part.weight, std=(part.in_features * (residuals if joins else 1)) ** -0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=part.embedding_dim**-0.5)


def count_parameters(module: nn.Module) -> int:
    """Trainable numbers, a shared tensor counted once."""
    return sum({id(p): p.numel() for p in module.parameters()}.values())
