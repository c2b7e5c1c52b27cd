"""What reads: the encoder of requests and tools, from random weights or a pretrained BERT-like one, and the cache of
encoded tools.

Legend: as in `pointer.batch`, and D width, H heads, d width of a head, R rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from cachetools import LRUCache
from torch import Tensor, nn

from needle.students.base import GELU, Dropout, ReadsApart, Rope, SwiGLU, attention, working_precision
from needle.students.pointer.batch import PointerBatch
from needle.text.tokenizer import ARGUMENT_LABELS, MARKERS, TOOL_LABELS

START = MARKERS.index("<query>")  # what the encoder reads in front of a request; a tool begins with its marker
CACHED_BYTES = 512 * 2**20  # of encoded tools

Encoded = tuple[Tensor, ...]  # a tool's encoding [m, D], then keys and values of it for each layer [m, 2D]


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
    tool_gradient: float = 1.0  # share of a batch's tools learned from; the rest are read, at a third of the cost
    pool: bool = False  # tool, argument, request: the mean of its tokens' encodings; an answer begins with the last
    blind: float = 0.0  # share of records whose tools can only be pointed at in training: for choosing among many
    lexical: bool = False  # start from the words that request and tool share, each with a learned weight
    encoder: str | None = None
    encoder_heads: int = 0
    encoder_hidden: int = 0
    positions: int = 0


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
        # By hand: one step of decoding has dozens of these.
        return x.view(*x.shape[:-1], -1, self.head).transpose(-3, -2)

    def queries(self, x: Tensor) -> Tensor:
        return self.heads(self.q_proj(x))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.kv_proj(x).chunk(2, dim=-1)
        return self.heads(keys), self.heads(values)

    def join(self, x: Tensor) -> Tensor:
        return self.o_proj(x.transpose(-3, -2).flatten(-2))  # type: ignore[no-any-return]


class EncoderBlock(nn.Module):
    """A layer of an encoder from random weights: norms before the branches, rotary positions."""

    def __init__(self, config: PointerConfig) -> None:
        super().__init__()
        self.attention = Heads(config.width, config.heads)
        self.mlp = SwiGLU(config.width, config.hidden)
        self.norm_attention, self.norm_mlp = (nn.LayerNorm(config.width, bias=False) for _ in range(2))
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
        self.norm_attention, self.norm_mlp = (nn.LayerNorm(config.width, eps=1e-12) for _ in range(2))
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, rope: Rope | None, mask: Tensor) -> Tensor:
        q, (k, v) = self.attention.queries(x), self.attention.keys_values(x)
        x = self.norm_attention(x + self.dropout(self.attention.join(attention(q, k, v, mask))))
        return self.norm_mlp(x + self.dropout(self.mlp(x)))  # type: ignore[no-any-return]


class Reader(ReadsApart):
    """A student that reads requests and tools apart. Subclasses add what answers."""

    batch_type = PointerBatch
    decoder: nn.ModuleList

    def __init__(self, config: PointerConfig, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        self.head_width = config.width // config.heads
        self.first_label = vocabulary - TOOL_LABELS - ARGUMENT_LABELS
        D = config.width
        self.embed = nn.Embedding(self.first_label, D)
        self.kind = nn.Embedding(3, D)  # request, tool, answer
        self.no_tool = nn.Parameter(torch.zeros(D))  # the empty slot
        self.position: nn.Embedding | None = None
        self.dropout = Dropout(config.dropout)
        if config.encoder is None:
            self.encoder = nn.ModuleList([EncoderBlock(config) for _ in range(config.encoder_layers)])
            self.norm_encoder = nn.LayerNorm(D, bias=False)
        else:
            self.encoder = nn.ModuleList([BertBlock(config) for _ in range(config.encoder_layers)])
            self.norm_encoder = nn.LayerNorm(D, eps=1e-12)  # BERT's of the input: its layers end in one
            self.position = nn.Embedding(config.positions, D)
            self.pretrained = ("embed.", "kind.", "position.", "norm_encoder.", "encoder.")

    # Encoding

    def encode_rows(self, ids: Tensor, mask: Tensor, kinds: Tensor) -> Tensor:
        """[R, S] ids of requests (kind 0, behind `<query>`) and tools (kind 1) to [R, S, D]."""
        x = self.embed(ids)
        if self.training and self.config.token_dropout:
            seen = (torch.rand(ids.shape, device=ids.device) >= self.config.token_dropout) | (kinds[:, None] == 1)
            x = x * seen[..., None]
        places, rope = torch.arange(ids.shape[1], device=ids.device), None
        if self.position is None:
            rope = Rope.at(places, self.head_width, self.config.rope_theta)
            x = x * self.config.width**0.5 + self.kind(kinds)[:, None]
        else:  # what stands beyond the last position that the encoder learned is read as if it stood there
            learned = self.position(places.clamp_max(self.config.positions - 1))
            x = self.norm_encoder(x + self.kind(kinds)[:, None] + learned)
        x = working_precision(self.dropout(x))
        for block in self.encoder:
            x = self.run(block, x, rope, mask[:, None, None])
        return self.raised(x if self.position is not None else self.norm_encoder(x))

    def set_precision(self, reading: torch.dtype, answering: torch.dtype) -> None:
        """What reads and the vocabulary in `reading`, what decodes in `answering`.

        Encoding multiplies many rows at once, which a CPU does faster in bfloat16. A step of decoding one answer
        multiplies a row, or five with guesses, which takes about half the time in float32. The output layer is bound by
        memory, so it stays with the vocabulary.
        """
        self.to(answering)
        for part in (self.embed, self.kind, self.encoder, self.norm_encoder, self.position):
            if part is not None:
                part.to(reading)

    def new_cache(self) -> LRUCache[str, Encoded]:
        return LRUCache(CACHED_BYTES, getsizeof=_bytes)

    def raised(self, x: Tensor) -> Tensor:
        """`x` of the encoder or the vocabulary, in the precision of what decodes, if they are held in two."""
        return x if self.embed.weight.dtype == self.no_tool.dtype else x.to(self.no_tool.dtype)

    def _encode_chunk(self, ids: Tensor, kinds: Tensor) -> Tensor:
        """`encode_rows`, in training without the gradient of all but a drawn share of the tools."""
        share = self.config.tool_gradient
        still = None
        if self.training and share < 1:
            still = (kinds == 1) & (torch.rand(kinds.shape, device=kinds.device) >= share)
        if still is None or not still.any():
            return self.encode_rows(ids, ids != 0, kinds)
        with torch.no_grad():
            quiet = self.encode_rows(ids[still], ids[still] != 0, kinds[still])
        if still.all():
            return quiet
        loud = self.encode_rows(ids[~still], ids[~still] != 0, kinds[~still])
        order = torch.cat([still.nonzero()[:, 0], (~still).nonzero()[:, 0]]).argsort()
        return torch.cat([quiet, loud]).index_select(0, order)

    def encode(self, batch: PointerBatch) -> tuple[Tensor, Tensor]:
        """[B, Q, D] of the requests and [1+M, D] of their tools, the empty slot in front; for training."""
        chunks = batch.chunks
        rows = torch.cat(
            [self._encode_chunk(ids, kinds).flatten(0, 1) for ids, kinds in zip(chunks.ids, chunks.kinds, strict=True)]
        )
        tools = torch.cat([self.no_tool[None].to(rows.dtype), rows.index_select(0, chunks.pack)])
        return F.embedding(chunks.unpack, rows), tools

    def encode_requests(self, batch: PointerBatch) -> Tensor:
        """[B, Q, D] of the requests by themselves."""
        ids = F.pad(batch.requests.ids, (1, 0), value=START)
        mask = F.pad(batch.requests.mask, (1, 0), value=True)
        return self.encode_rows(ids, mask, torch.zeros_like(ids[:, 0]))[:, 1:]

    def encode_tools(self, tools: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Tools by themselves, those of similar length together: which of them, their ids [n, S] and encodings
        [n, S, D]."""
        for rows, ids in _by_length(tools, self.no_tool.device):
            yield rows, ids, self.encode_rows(ids, ids != 0, torch.ones_like(ids[:, 0]))

    def cached_tools(self, batch: PointerBatch, cache: LRUCache[str, Encoded]) -> list[Tensor]:
        """[1+M, D] of the tools, the empty slot in front, then [1+M, 2D] for each layer of the decoder; for answers.

        `cache` keeps all these by a tool's content.
        """
        tools = batch.tools
        sizes = torch.bincount(tools.tool_of, minlength=len(tools.keys)).tolist() if tools.keys else []
        places = [slice(head, head + size) for head, size in zip(tools.heads.tolist(), sizes, strict=True)]
        known = {key: cache.get(key) for key in tools.keys}
        missing = [number for number, key in enumerate(tools.keys) if known[key] is None]
        for rows, _, encoded in self.encode_tools([tools.ids[places[number]].tolist() for number in missing]):
            for row, encoding in zip(rows, encoded, strict=True):
                number = missing[row]
                known[tools.keys[number]] = found = self._project(encoding[: sizes[number]].clone())
                if _bytes(found) <= cache.maxsize:
                    cache[tools.keys[number]] = found
        every = [self._project(self.no_tool[None])]
        every += [own for key in tools.keys if (own := known[key]) is not None]
        return [torch.cat(part) for part in zip(*every, strict=True)]

    def _project(self, encoding: Tensor) -> Encoded:
        return encoding, *(block.tools.kv_proj(encoding) for block in self.decoder)  # type: ignore[operator,union-attr]


def _bytes(tensors: Encoded) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _by_length(
    rows: Sequence[Sequence[int]], device: torch.device, most: int = 64
) -> Iterator[tuple[list[int], Tensor]]:
    """Rows of ids in right-padded pieces [n, S] of similar length, and which rows each piece holds."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for start in range(0, len(order), most):
        chosen = order[start : start + most]
        width = max(len(rows[index]) for index in chosen)
        padded: list[Any] = [[*rows[index], *[0] * (width - len(rows[index]))] for index in chosen]
        yield chosen, torch.tensor(padded, device=device)
