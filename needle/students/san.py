"""The `san` student: an encoder-decoder of attention alone, as the public 26M tool caller is built, or with
feed-forward layers.

The encoder reads tools and request, both ways; the decoder writes the answer. Queries and keys are normalised, norms
are centred on zero, each branch joins the residual stream through a learned gate, rotary positions turn self-attention
only, and one table serves encoder, decoder and output.

Legend: B records, P prompt positions, T target positions, V vocabulary, D width, H heads, G key/value heads, d width of
a head.
"""

from __future__ import annotations

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
class SanConfig:
    """`hidden` 0 leaves feed-forward layers out."""

    family: str = "san"
    width: int = 512
    encoder_layers: int = 12
    decoder_layers: int = 8
    heads: int = 8
    kv_heads: int = 4
    hidden: int = 0
    rope_theta: float = 10_000.0
    dropout: float = 0.0


@dataclass
class SanState(State):
    """Keys and values of the prompt and of the answer so far, [B, G, S, d] in each layer."""

    batch: Batch
    prompt: list[tuple[Tensor, Tensor]]
    visible: Tensor  # [B, P] false on padding
    cache: list[tuple[Tensor, Tensor] | None]
    position: int = 0

    def select(self, rows: Tensor) -> None:
        self.batch, self.visible = self.batch.labels(rows), self.visible[rows]
        self.prompt = [(keys[rows], values[rows]) for keys, values in self.prompt]
        self.cache = [None if kept is None else (kept[0][rows], kept[1][rows]) for kept in self.cache]


class Branch(nn.Module):
    """Attention with normalised queries and keys, before the gate."""

    def __init__(self, config: SanConfig) -> None:
        super().__init__()
        self.head = config.width // config.heads
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(config.width, config.kv_heads * self.head, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(config.width, config.width, bias=False)
        self.norm_q, self.norm_k = RMSNorm(self.head, centred=True), RMSNorm(self.head, centred=True)

    def queries(self, x: Tensor) -> Tensor:
        return self.norm_q(rearrange(self.q_proj(x), "B S (H d) -> B H S d", d=self.head))  # type: ignore[no-any-return]

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = (rearrange(part(x), "B S (G d) -> B G S d", d=self.head) for part in (self.k_proj, self.v_proj))
        return self.norm_k(keys), values

    def join(self, x: Tensor) -> Tensor:
        return self.o_proj(rearrange(x, "B H S d -> B S (H d)"))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Self-attention, in the decoder attention to the prompt, and a feed-forward layer if there are any."""

    def __init__(self, config: SanConfig, cross: bool) -> None:
        super().__init__()
        self.own, self.norm_own = Branch(config), RMSNorm(config.width, centred=True)
        self.cross = Branch(config) if cross else None
        self.norm_cross = RMSNorm(config.width, centred=True) if cross else None
        self.mlp = SwiGLU(config.width, config.hidden) if config.hidden else None
        self.norm_mlp = RMSNorm(config.width, centred=True) if config.hidden else None
        self.gates = nn.Parameter(torch.zeros(1 + cross + bool(config.hidden)))  # half open
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        rope: Rope,
        mask: Tensor | None,
        prompt: tuple[Tensor, Tensor] | None,
        visible: Tensor | None,
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """`mask` is the encoder's; the decoder's own attention is causal. `prompt` holds keys and values, `visible` [B,
        P]."""
        gates = iter(self.gates.to(x.dtype).sigmoid())
        normed = self.norm_own(x)
        q, (k, v) = rope(self.own.queries(normed)), self.own.keys_values(normed)
        k = rope(k)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        causal = mask is None and past is None
        x = x + next(gates) * self.dropout(self.own.join(attention(q, k, v, mask, causal=causal)))
        if self.cross is not None and self.norm_cross is not None and prompt is not None and visible is not None:
            read = attention(self.cross.queries(self.norm_cross(x)), *prompt, visible[:, None, None])
            x = x + next(gates) * self.dropout(self.cross.join(read))
        if self.mlp is not None and self.norm_mlp is not None:
            x = x + next(gates) * self.dropout(self.mlp(self.norm_mlp(x)))
        return x, (k, v)


class SanStudent(Student):
    def __init__(self, config: SanConfig, vocabulary: int) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.embed = nn.Embedding(vocabulary, config.width)
        self.encoder = nn.ModuleList([Layer(config, cross=False) for _ in range(config.encoder_layers)])
        self.decoder = nn.ModuleList([Layer(config, cross=True) for _ in range(config.decoder_layers)])
        self.norm_encoder, self.norm_decoder = RMSNorm(config.width, centred=True), RMSNorm(config.width, centred=True)
        self.dropout = Dropout(config.dropout)
        init_weights(self, 2 * config.encoder_layers)

    @property
    def traced(self) -> tuple[int, int]:
        return len(self.decoder), self.config.width

    def _enter(self, ids: Tensor, first: int = 0) -> tuple[Tensor, Rope]:
        """[B, S] ids whose first stands at position `first` to [B, S, D] and the rotation of those positions."""
        x = working_precision(self.dropout(self.embed(ids) * self.config.width**0.5))
        places = torch.arange(first, first + ids.shape[1], device=ids.device)
        return x, Rope.at(places, self.config.width // self.config.heads, self.config.rope_theta)

    def _encode(self, batch: Batch) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Keys and values of the prompt for each layer of the decoder, and which of its positions [B, P] hold a
        token."""
        assert isinstance(batch, FlatBatch), "the san student reads everything in one row"
        ids = batch.sequence[:, : int(batch.prompt_length.max())]
        visible = torch.arange(ids.shape[1], device=ids.device) < batch.prompt_length[:, None]
        x, rope = self._enter(ids)
        for layer in self.encoder:
            x, _ = self.run(layer, x, rope, visible[:, None, None], None, None, None)
        x = self.norm_encoder(x)
        return [layer.cross.keys_values(x) for layer in self.decoder], visible  # type: ignore[operator,union-attr]

    def forward(self, batch: Batch, trace: Trace | None = None, wanted: Tensor | None = None) -> Tensor:
        prompt, visible = self._encode(batch)
        x, rope = self._enter(batch.inputs)
        for layer, read in zip(self.decoder, prompt, strict=True):
            if trace is not None and trace.attend:
                queries = layer.cross.queries(layer.norm_cross(x))  # type: ignore[operator,union-attr]
                trace.attention.append(mean_attention(queries, read[0], visible[:, None, None]))
            x, _ = self.run(layer, x, rope, None, read, visible, None)
            if trace is not None:
                trace.hidden.append(x)
        hidden = at_positions(self.norm_decoder(x), wanted)
        return mask_labels(F.linear(hidden, self.embed.weight).float(), batch, batch.open_tool, wanted)

    def start(self, batch: Batch, cache: Any = None) -> SanState:
        prompt, visible = self._encode(batch)
        return SanState(batch, prompt, visible, [None] * len(self.decoder))

    def step(self, state: SanState, tokens: Tensor, open_tool: Tensor) -> Tensor:  # type: ignore[override]
        x, rope = self._enter(tokens, state.position)
        for index, layer in enumerate(self.decoder):
            x, state.cache[index] = layer(x, rope, None, state.prompt[index], state.visible, state.cache[index])
        state.position += 1
        logits = F.linear(self.norm_decoder(x), self.embed.weight)
        return mask_labels(logits.float(), state.batch, open_tool)
