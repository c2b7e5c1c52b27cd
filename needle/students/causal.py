"""The decoder-only students: `seed`, the article's network, and `llama`. Both read tools, request and answer in one
row.

Legend: B records, S positions, T target positions, V vocabulary, D width, H heads, G key/value heads, d width of a
head.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from needle.students.base import (
    Dropout,
    RMSNorm,
    Rope,
    State,
    Student,
    SwiGLU,
    Trace,
    at_positions,
    attention,
    init_weights,
    mask_labels,
    mean_attention,
    working_precision,
)
from needle.students.batch import Batch, FlatBatch


@dataclass
class SeedConfig:
    """Learned positions, LayerNorm, GELU, full attention. With a vocabulary of 32,000 these are 52.7M parameters."""

    family: str = "seed"
    width: int = 512
    layers: int = 6
    heads: int = 8
    hidden: int = 2048
    max_length: int = 2048
    tied: bool = False
    dropout: float = 0.0


@dataclass
class LlamaConfig:
    """RoPE, RMSNorm, SwiGLU, grouped queries, tied embeddings; the weights load into `LlamaForCausalLM` unchanged."""

    family: str = "llama"
    width: int = 384
    layers: int = 12
    heads: int = 6
    kv_heads: int = 2
    hidden: int = 1152
    max_length: int = 2048
    rope_theta: float = 10_000.0
    dropout: float = 0.0


@dataclass
class CausalState(State):
    """Keys and values of each layer, [B, G, S, d], and which positions hold a token."""

    batch: Batch
    cache: list[tuple[Tensor, Tensor]]
    valid: Tensor  # [B, S]
    length: Tensor  # [B] tokens so far
    pending: Tensor | None  # [B, D] the prompt's last hidden state, before the first step

    def select(self, rows: Tensor) -> None:
        self.cache = [(keys[rows], values[rows]) for keys, values in self.cache]
        self.valid, self.length = self.valid[rows], self.length[rows]
        self.batch = self.batch.labels(rows)


class Attention(nn.Module):
    """Causal attention with grouped keys and values; `bias` as in the seed."""

    def __init__(self, width: int, heads: int, kv_heads: int, bias: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head = heads, kv_heads, width // heads
        self.q_proj = nn.Linear(width, heads * self.head, bias=bias)
        self.k_proj = nn.Linear(width, kv_heads * self.head, bias=bias)
        self.v_proj = nn.Linear(width, kv_heads * self.head, bias=bias)
        self.o_proj = nn.Linear(heads * self.head, width, bias=bias)

    def forward(
        self,
        x: Tensor,
        rope: Rope | None,
        past: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        seen_from: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor | None]:
        """`seen_from` [B, T] asks for the attention of these positions, [B, T, S]."""
        q = rearrange(self.q_proj(x), "B S (H d) -> B H S d", d=self.head)
        k = rearrange(self.k_proj(x), "B S (G d) -> B G S d", d=self.head)
        v = rearrange(self.v_proj(x), "B S (G d) -> B G S d", d=self.head)
        if rope is not None:
            q, k = rope(q), rope(k)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        # A causal row never sees the padding to its right, so training needs no mask.
        out = attention(q, k, v, mask, causal=mask is None)
        seen = None
        if seen_from is not None:
            chosen = q.gather(2, seen_from[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3]))
            seen = mean_attention(chosen, k, torch.arange(k.shape[2], device=k.device) <= seen_from[:, None, :, None])
        return self.o_proj(rearrange(out, "B H S d -> B S (H d)")), (k, v), seen


class Block(nn.Module):
    def __init__(
        self, attention: Attention, mlp: nn.Module, norms: tuple[nn.Module, nn.Module], dropout: float
    ) -> None:
        super().__init__()
        self.self_attn, self.mlp = attention, mlp
        self.input_layernorm, self.post_attention_layernorm = norms
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        rope: Rope | None,
        past: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        seen_from: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor | None]:
        attended, cache, seen = self.self_attn(self.input_layernorm(x), rope, past, mask, seen_from)
        x = x + self.dropout(attended)
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x))), cache, seen


class CausalStudent(Student):
    """The shared trunk; subclasses choose blocks, positions and head."""

    max_length: int

    def __init__(self, vocabulary: int, width: int, blocks: list[Block], norm: nn.Module) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(blocks)
        self.norm = norm

    @abstractmethod
    def positions(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Rope | None]:
        """Puts positions [B, S] into embeddings [B, S, D], or returns the rotation that attention applies."""

    def head(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embed_tokens.weight)

    @property
    def traced(self) -> tuple[int, int]:
        return len(self.layers), self.embed_tokens.embedding_dim

    def trunk(
        self,
        ids: Tensor,
        positions: Tensor,
        past: list[tuple[Tensor, Tensor]] | None,
        mask: Tensor | None,
        predicts: Tensor | None = None,
        trace: Trace | None = None,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """[B, S] ids to [B, S, D] hidden states and the layers' keys and values; `trace` gets those at `predicts` [B,
        T]."""
        if ids.shape[1] > self.max_length:
            raise ValueError(f"a row of {ids.shape[1]} tokens is longer than student.max_length={self.max_length}")
        x, rope = self.positions(self.embed_tokens(ids), positions)
        x = working_precision(x)
        cache = []
        for index, layer in enumerate(self.layers):
            x, kept, seen = self.run(
                layer, x, rope, past[index] if past else None, mask, predicts if trace and trace.attend else None
            )
            cache.append(kept)
            if trace is not None and predicts is not None:
                trace.hidden.append(_at(x, predicts))
                trace.attention += [] if seen is None else [seen]
        return self.norm(x), cache

    def forward(self, batch: Batch, trace: Trace | None = None, wanted: Tensor | None = None) -> Tensor:
        assert isinstance(batch, FlatBatch), "decoder-only students read everything in one row"
        ids = batch.sequence
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        hidden, _ = self.trunk(ids, positions, None, None, batch.predicts, trace)
        hidden = at_positions(_at(hidden, batch.predicts), wanted)
        return mask_labels(self.head(hidden).float(), batch, batch.open_tool, wanted)

    def start(self, batch: Batch, cache: Any = None) -> CausalState:
        assert isinstance(batch, FlatBatch), "decoder-only students read everything in one row"
        length = batch.prompt_length
        ids = batch.sequence[:, : int(length.max())]
        steps = torch.arange(ids.shape[1], device=ids.device)
        hidden, kept = self.trunk(ids, steps.expand_as(ids), None, None)
        last = hidden[torch.arange(len(ids), device=ids.device), length - 1]
        return CausalState(batch, kept, steps < length[:, None], length, last)

    def step(self, state: CausalState, tokens: Tensor, open_tool: Tensor) -> Tensor:  # type: ignore[override]
        if state.pending is not None:  # <answer> was read with the prompt
            hidden, state.pending = state.pending[:, None], None
        else:
            state.valid = F.pad(state.valid, (0, 1), value=True)
            hidden, state.cache = self.trunk(tokens, state.length[:, None], state.cache, state.valid[:, None, None])
            state.length = state.length + 1
        return mask_labels(self.head(hidden).float(), state.batch, open_tool)


def _at(x: Tensor, positions: Tensor) -> Tensor:
    """[B, S, D] at positions [B, T]: [B, T, D]."""
    return x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1]))


class SeedStudent(CausalStudent):
    def __init__(self, config: SeedConfig, vocabulary: int) -> None:
        def block() -> Block:
            mlp = nn.Sequential(
                nn.Linear(config.width, config.hidden), nn.GELU(), nn.Linear(config.hidden, config.width)
            )
            norms = (nn.LayerNorm(config.width), nn.LayerNorm(config.width))
            return Block(Attention(config.width, config.heads, config.heads, bias=True), mlp, norms, config.dropout)

        super().__init__(vocabulary, config.width, [block() for _ in range(config.layers)], nn.LayerNorm(config.width))
        self.max_length = config.max_length
        self.embed_positions = nn.Embedding(config.max_length, config.width)
        self.lm_head = None if config.tied else nn.Linear(config.width, vocabulary, bias=False)
        init_weights(self, 2 * config.layers)

    def positions(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Rope | None]:
        return x + self.embed_positions(positions), None

    def head(self, hidden: Tensor) -> Tensor:
        return super().head(hidden) if self.lm_head is None else self.lm_head(hidden)


class LlamaStudent(CausalStudent):
    def __init__(self, config: LlamaConfig, vocabulary: int) -> None:
        def block() -> Block:
            attention = Attention(config.width, config.heads, config.kv_heads, bias=False)
            norms = (RMSNorm(config.width), RMSNorm(config.width))
            return Block(attention, SwiGLU(config.width, config.hidden), norms, config.dropout)

        super().__init__(vocabulary, config.width, [block() for _ in range(config.layers)], RMSNorm(config.width))
        self.max_length = config.max_length
        self.theta = config.rope_theta
        self.head_width = config.width // config.heads
        init_weights(self, 2 * config.layers)

    def positions(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Rope | None]:
        return x, Rope.at(positions, self.head_width, self.theta)
