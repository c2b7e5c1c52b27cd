"""What a pointer student is made of: its sizes, what it remembers of a batch, its attention and its layers.

Legend: as in `batch`, and D width, H heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from needle.students.base import GELU, Dropout, LayerNorm, Rope, SwiGLU, attention
from needle.students.batch import Split


@dataclass
class PointerConfig:
    """`width` of both parts, `encoder_layers` for request and tools, `decoder_layers` for the answer.

    `encoder` names the pretrained BERT-like encoder that the student starts from (`pretrained.find_encoder`). It
    settles `width`, `encoder_layers` and the last three, which say how many heads, how wide a feed-forward layer and
    how many learned positions the encoder has; without it, these are `heads`, `hidden` and rotary positions.
    """

    family: str = "pointer"
    width: int = 384
    encoder_layers: int = 8
    decoder_layers: int = 2
    heads: int = 6
    hidden: int = 1024
    rope_theta: float = 10_000.0
    dropout: float = 0.1
    token_dropout: float = 0.0  # share of the request's tokens that the encoder doesn't see in training
    tool_gradient: float = (
        1.0  # share of a batch's tools whose encoding is learned from; all are read, the rest at a third of the cost
    )
    # a tool, an argument, a request is the mean of its tokens' encodings, and the answer begins with the request's
    pool: bool = False
    blind: float = (
        0.0  # share of records whose tools can only be pointed at in training, not read: what choosing among many needs
    )
    lexical: bool = False  # start from the words that request and tool share, each with a learned weight
    encoder: str | None = None
    encoder_heads: int = 0
    encoder_hidden: int = 0
    positions: int = 0


@dataclass
class Memory:
    """What the decoder attends to. Tools are packed, with one empty slot in front for records without tools."""

    query: Tensor  # [B, Q, D]
    tools: Tensor  # [1+M, D]
    segments: (
        Tensor  # [1+G, D] what stands for each tool and argument: its marker's encoding, or the mean of its tokens'
    )
    asked: Tensor | None  # [B, D] the mean of each request, if that is how an answer begins
    owned: Tensor  # [B, S] rows of `tools` that each record may look at
    visible: Tensor  # [B, S] false on padding
    split: Split
    projected: list[Tensor] | None = None  # [1+M, 2D] keys and values of `tools` for each layer, where they were kept


@dataclass
class Keys:
    """What an answer may point at, projected for the whole batch."""

    query: Tensor  # [B, Q, D]
    schema: Tensor  # [C, D]
    tools: Tensor  # [U, D]
    arguments: Tensor  # [G, D]
    words: Tensor | None  # [B, U] the weight of the words that request and tool share

    def select(self, rows: Tensor) -> Keys:
        return replace(self, query=self.query[rows], words=None if self.words is None else self.words[rows])


@dataclass
class PointerState:
    memory: Memory
    keys: Keys
    cross: list[tuple[Tensor, Tensor, Tensor, Tensor]]  # keys and values of request and tools, each layer
    cache: list[tuple[Tensor, Tensor] | None]
    pointed: Tensor  # [B, n, Q] the scores of the request's positions behind each of the tokens that came last together
    sources: Tensor  # [B, n] where in the request these tokens were copied from, -1 for none
    position: int = 0

    def cut(self, count: int) -> None:
        """Forgets the last `count` tokens of those that came together."""
        if count:
            self.position -= count
            self.pointed, self.sources = self.pointed[:, :-count], self.sources[:, :-count]
            self.cache = [None if kv is None else (kv[0][:, :, :-count], kv[1][:, :, :-count]) for kv in self.cache]

    def copied_from(self, tokens: Tensor, step: int = -1) -> Tensor:
        """[B] where in the request `tokens` [B], chosen after the last tokens' `step`, are copied from: of their
        positions the likeliest; -1 for none."""
        query = self.memory.split.query
        matches = (query == tokens[:, None]) & (tokens != 0)[:, None]
        best = self.pointed[:, step].masked_fill(~matches, -torch.inf).argmax(1)
        return torch.where(matches.any(1), best, -1)

    def confirms(self, token: int, step: int) -> bool:
        """Whether `token`, chosen after the last tokens' `step` in the only row, is copied from where the token fed
        after it was taken to be from."""
        return bool(self.copied_from(self.sources.new_tensor([token]), step) == self.sources[0, step + 1])

    def select(self, rows: Tensor) -> None:
        memory = self.memory
        asked = None if memory.asked is None else memory.asked[rows]
        self.memory = Memory(
            memory.query[rows],
            memory.tools,
            memory.segments,
            asked,
            memory.owned[rows],
            memory.visible[rows],
            memory.split.select(rows),
        )
        self.keys = self.keys.select(rows)
        self.pointed, self.sources = self.pointed[rows], self.sources[rows]
        self.cross = [(qk[rows], qv[rows], tk[rows], tv[rows]) for qk, qv, tk, tv in self.cross]
        self.cache = [None if kv is None else (kv[0][rows], kv[1][rows]) for kv in self.cache]


class Heads(nn.Module):
    """Projections of one attention: queries from `x`, keys and values from a source."""

    def __init__(self, width: int, heads: int, bias: bool = False) -> None:
        super().__init__()
        self.head = width // heads
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.kv_proj = nn.Linear(width, 2 * width, bias=bias)
        self.o_proj = nn.Linear(width, width, bias=bias)

    def heads(self, x: Tensor) -> Tensor:
        """[..., S, H*d] to [..., H, S, d]."""
        return x.view(*x.shape[:-1], -1, self.head).transpose(
            -3, -2
        )  # by hand: one step of decoding has dozens of these

    def queries(self, x: Tensor) -> Tensor:
        return self.heads(self.q_proj(x))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.kv_proj(x).chunk(2, dim=-1)
        return self.heads(keys), self.heads(values)

    def join(self, x: Tensor) -> Tensor:
        return self.o_proj(x.transpose(-3, -2).flatten(-2))  # type: ignore[no-any-return]


class EncoderBlock(nn.Module):
    def __init__(self, config: PointerConfig) -> None:
        super().__init__()
        self.attention = Heads(config.width, config.heads)
        self.mlp = SwiGLU(config.width, config.hidden)
        self.norm_attention, self.norm_mlp = LayerNorm(config.width), LayerNorm(config.width)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, rope: Rope, mask: Tensor) -> Tensor:
        normed = self.norm_attention(x)
        q = rope(self.attention.queries(normed))
        k, v = self.attention.keys_values(normed)
        x = x + self.dropout(self.attention.join(attention(q, rope(k), v, mask)))
        return x + self.dropout(self.mlp(self.norm_mlp(x)))  # type: ignore[no-any-return]


class BertBlock(nn.Module):
    """A layer of BERT (Devlin et al. 2018, arXiv:1810.04805): norms after the sums, GELU, biases; positions came with
    the input."""

    def __init__(self, config: PointerConfig) -> None:
        super().__init__()
        self.attention = Heads(config.width, config.encoder_heads, bias=True)
        self.mlp = GELU(config.width, config.encoder_hidden)
        self.norm_attention, self.norm_mlp = (LayerNorm(config.width, 1e-12, bias=True) for _ in range(2))
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, rope: Rope | None, mask: Tensor) -> Tensor:
        q, (k, v) = self.attention.queries(x), self.attention.keys_values(x)
        x = self.norm_attention(x + self.dropout(self.attention.join(attention(q, k, v, mask))))
        return self.norm_mlp(x + self.dropout(self.mlp(x)))  # type: ignore[no-any-return]


class DecoderBlock(nn.Module):
    def __init__(self, config: PointerConfig) -> None:
        super().__init__()
        self.own, self.query, self.tools = (Heads(config.width, config.heads) for _ in range(3))
        self.mlp = SwiGLU(config.width, config.hidden)
        self.norm_own, self.norm_cross, self.norm_mlp = (LayerNorm(config.width) for _ in range(3))
        self.dropout = Dropout(config.dropout)

    def cross_keys(self, memory: Memory, projected: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tools are projected once for the batch, or were before, then dealt out to the records that offer them."""
        if projected is not None:
            keys, values = F.embedding(memory.owned, projected).chunk(2, dim=-1)
        else:
            keys, values = (
                F.embedding(memory.owned, part.contiguous())
                for part in self.tools.kv_proj(memory.tools).chunk(2, dim=-1)
            )
        return *self.query.keys_values(memory.query), self.tools.heads(keys), self.tools.heads(values)

    def forward(
        self,
        x: Tensor,
        rope: Rope,
        memory: Memory,
        cross: tuple[Tensor, Tensor, Tensor, Tensor],
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        normed = self.norm_own(x)
        q = rope(self.own.queries(normed))
        k, v = self.own.keys_values(normed)
        k = rope(k)
        earlier = None
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
            if q.shape[2] > 1:
                earlier = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=x.device).tril(past[0].shape[2])[
                    None, None
                ]
        x = x + self.dropout(self.own.join(attention(q, k, v, earlier, causal=past is None)))
        normed = self.norm_cross(x)
        query_keys, query_values, tool_keys, tool_values = cross
        read = attention(self.query.queries(normed), query_keys, query_values, memory.split.query_mask[:, None, None])
        seen = attention(self.tools.queries(normed), tool_keys, tool_values, memory.visible[:, None, None])
        x = x + self.dropout(self.query.join(read)) + self.dropout(self.tools.join(seen))
        return x + self.dropout(self.mlp(self.norm_mlp(x))), (k, v)


def by_length(
    rows: Sequence[Sequence[int]], device: torch.device, most: int = 64
) -> Iterator[tuple[list[int], Tensor]]:
    """Rows of ids in right-padded pieces [n, S] of similar length, and which rows each piece holds."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for start in range(0, len(order), most):
        chosen = order[start : start + most]
        width = max(len(rows[index]) for index in chosen)
        yield (
            chosen,
            torch.tensor([[*rows[index], *[0] * (width - len(rows[index]))] for index in chosen], device=device),
        )
