"""What reads: one encoder for requests, for the cards by which tools are chosen, and for a request and its tool.

Legend: as in `span.batch`, and D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cachetools import LRUCache
from torch import Tensor, nn

from needle.students.base import GELU, Dropout, ReadsApart, attention, working_precision
from needle.students.batch import to_device
from needle.students.pointer.encoder import CACHED_BYTES, Heads
from needle.students.span.batch import STEP, Forms, Pairs, PieceRows, SpanBatch, coarse, groups_of, up
from needle.text.literal import LEVELS, SAID
from needle.text.pieces import CASES, SPECIAL
from needle.text.prompt import RenderedTool

BEGIN = SPECIAL.index("[CLS]")  # what is read in front of a request

Encoded = tuple[Tensor, ...]


@dataclass
class SpanConfig:
    """`encoder` names the pretrained BERT-like encoder that the student starts from (`pretrained.find_encoder`), which
    settles `width`, `encoder_layers`, `encoder_heads`, `encoder_hidden` and `positions`; `pieces` is how many of its
    word pieces are kept. Without it, the encoder starts from random weights. `joint` of its layers read a request and
    the chosen tool together.
    """

    family: str = "span"
    width: int = 384
    encoder_layers: int = 6
    encoder_heads: int = 12
    encoder_hidden: int = 1536
    positions: int = 512
    decoder_layers: int = 2
    heads: int = 6
    hidden: int = 1024
    pieces: int = 22_000
    joint: int = 3
    names: bool = False  # a readout of its own for tools' names
    literal: bool = False  # told which names and enum members stand in the request
    rope_theta: float = 10_000.0
    dropout: float = 0.0
    case_dropout: float = 0.3  # share of rows whose cases aren't told in training
    tool_gradient: float = 1.0  # share of a batch's tools learned from; the rest are read, at a third of the cost
    blind: float = 0.0  # share of records whose tools can only be pointed at in training: for choosing among many
    frozen: bool = True  # keep the encoder's pieces as they are
    encoder: str | None = None


@dataclass
class Tools:
    """The cards of a batch. Positions are packed, with one empty slot in front."""

    read: Tensor  # [1+M, D]
    uses: Tensor  # [U, D] their means
    names: Tensor | None  # [U, D] the means of their names


@dataclass
class Rows:
    """What an answer reads: requests alone, and with the tool that is open."""

    query: Tensor  # [R, Q, D]
    mask: Tensor  # [R, Q+A] false on padding, and on arguments where no tool is open
    arguments: Tensor  # [R, A, D] the markers of the tool's arguments
    first: Tensor  # [R, A] the first member of each argument, of all that were read
    count: Tensor  # [R, A] how many it has; -1 on padding
    levels: Tensor  # [R, L] how much is said of each enum member of the tool


class ReadingBlock(nn.Module):
    """A layer of BERT (Devlin et al. 2018, arXiv:1810.04805): norms after the sums, GELU, biases."""

    def __init__(self, config: SpanConfig) -> None:
        super().__init__()
        self.attention = Heads(config.width, config.encoder_heads, bias=True)
        self.mlp = GELU(config.width, config.encoder_hidden)
        self.norm_attention, self.norm_mlp = (nn.LayerNorm(config.width, eps=1e-12) for _ in range(2))
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor, beside: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[R, s, D], and the keys and values that were made of it, [R, s, 2D]. `beside` [R, S, 2D] are those of what is
        attended to as well, and `mask` [R, s+S] is true where anything stands."""
        own = self.attention.kv_proj(x)
        k, v = (own if beside is None else torch.cat([own, beside.to(own.dtype)], dim=1)).chunk(2, dim=-1)
        q, k, v = self.attention.queries(x), self.attention.heads(k), self.attention.heads(v)
        x = self.norm_attention(x + self.dropout(self.attention.join(attention(q, k, v, mask[:, None, None]))))
        return self.norm_mlp(x + self.dropout(self.mlp(x))), own


class SpanReader(ReadsApart):
    """A student that reads in word pieces. Subclasses add what answers."""

    def __init__(self, config: SpanConfig) -> None:
        super().__init__()
        self.config = config
        D = config.width
        self.embed = nn.Embedding(config.pieces, D)
        self.case = nn.Embedding(len(CASES), D)
        self.position = nn.Embedding(config.positions, D)
        self.kind = nn.Embedding(2, D)  # request, tool
        self.no_tool = nn.Parameter(torch.zeros(D))  # the empty slot
        self.norm_encoder = nn.LayerNorm(D, eps=1e-12)
        if config.literal:
            self.said, self.heard = nn.Embedding(SAID, D), nn.Embedding(LEVELS**2, D)
        self.encoder = nn.ModuleList([ReadingBlock(config) for _ in range(config.encoder_layers)])
        self.dropout = Dropout(config.dropout)
        if config.encoder is not None:
            self.embed.requires_grad_(not config.frozen)
            self.pretrained = ("embed.", "position.", "kind.", "norm_encoder.", "encoder.")

    def _embedded(self, pieces: PieceRows, kind: int) -> Tensor:
        cases = pieces.cases
        if self.training and self.config.case_dropout:
            cases = cases * (torch.rand(len(cases), 1, device=cases.device) >= self.config.case_dropout)
        places = torch.arange(pieces.ids.shape[1], device=cases.device).clamp_max(self.config.positions - 1)
        x = self.embed(pieces.ids) + self.case(cases) + self.position(places) + self.kind.weight[kind]
        return working_precision(self.dropout(self.norm_encoder(x)))

    def _encode(self, pieces: PieceRows, mask: Tensor, kind: int) -> Encoded:
        """[R, s, D], as it was before the layers that read together, and keys and values [R, s, 2D] in those."""
        x, alone, kept = self._embedded(pieces, kind), len(self.encoder) - self.config.joint, list[Tensor]()
        lower = x
        for number, block in enumerate(self.encoder):
            lower = x if number == alone else lower
            x, own = self.run(block, x, mask)
            kept += [own] if number >= alone else []
        return (x, lower if kept else x, *kept)

    def _in_groups(
        self, rows: PieceRows, chosen: Sequence[int], sizes: Sequence[int], parts: int | None, kind: int = 1
    ) -> tuple[Encoded, list[int]]:
        """The `chosen` of rows of these sizes, the smallest first, in groups of similar size that are padded to common
        sizes, as `_encode` (the first `parts`): all laid end to end, and where each begins there."""
        found, starts, offset = [], [], 0
        for group in groups_of([sizes[row] for row in chosen]):
            width = min(coarse(sizes[chosen[group[-1]]], STEP), rows.ids.shape[1])
            count = coarse(len(group), 1) if self.training else len(group)
            index = torch.tensor([*(chosen[place] for place in group), *[chosen[group[0]]] * (count - len(group))])
            index = index.to(rows.ids.device)
            pieces = PieceRows(rows.ids[index, :width], rows.cases[index, :width])
            read = self._encode(pieces, pieces.ids != 0, kind)
            found.append([part.flatten(0, 1) for part in read[:parts]])
            starts += [offset + place * width for place in range(len(group))]
            offset += count * width
        return tuple(torch.cat(part) for part in zip(*found, strict=True)), starts

    def _cards(self, batch: SpanBatch) -> Tensor:
        """[1+M, D] of the packed cards, the empty slot in front; in training without the gradient of all but a drawn
        share."""
        sizes, share = batch.tools.sizes, self.config.tool_gradient
        empty = working_precision(self.no_tool[None])
        if not sizes:
            return empty
        loud = (torch.rand(len(sizes)) < share).tolist() if self.training and share < 1 else [True] * len(sizes)
        parts, begins, offset = [], [0] * len(sizes), 0
        for learned in (False, True):
            chosen = [row for row in range(len(sizes)) if loud[row] == learned]
            if chosen:
                with torch.set_grad_enabled(learned and torch.is_grad_enabled()):
                    (read,), starts = self._in_groups(batch.tools.cards, chosen, sizes, 1)
                for row, start in zip(chosen, starts, strict=True):
                    begins[row] = offset + start
                parts.append(read)
                offset += len(read)
        return _packed(empty, torch.cat(parts), begins, sizes, len(batch.tools.tool_of))

    def read_forms(self, batch: SpanBatch) -> Encoded:
        """As `_encode` of the packed forms, one empty slot in front: [1+n, D] twice, then [1+n, 2D]."""
        forms = batch.forms
        if not forms.sizes:
            return self.no_form()
        read, starts = self._in_groups(forms.rows, range(len(forms.sizes)), forms.sizes, None)
        packed = [
            _packed(part.new_zeros(1, part.shape[1]), part, starts, forms.sizes, sum(forms.sizes)) for part in read
        ]
        return tuple(packed)

    def no_form(self) -> Encoded:
        """What stands in front of the packed forms."""
        one = self.no_tool.detach()[None]
        return (one, one, *[torch.cat([one, one], dim=1)] * self.config.joint)

    def read_tools(self, batch: SpanBatch, cache: Any = None) -> Tools:
        read = self._cards(batch) if cache is None else self._kept(batch, cache)
        own, bare, count = batch.tools, read[1:], len(batch.tools.sizes)
        names = means(bare, own.name_of, count + 1)[:count] if self.config.names else None
        return Tools(read, means(bare, own.tool_of, count + 1)[:count], names)

    def read_requests(self, batch: SpanBatch) -> tuple[Tensor, Tensor, Tensor]:
        """[B, Q, D] of the requests, [B, 1+Q, D] before the layers that read together, and their means [B, D]."""
        ids, cases = F.pad(batch.requests.ids, (1, 0), value=BEGIN), F.pad(batch.requests.cases, (1, 0))
        sizes = (1 + batch.mask.sum(1)).tolist()
        chosen = sorted(range(len(sizes)), key=lambda row: sizes[row])
        read, starts = self._in_groups(PieceRows(ids, cases), chosen, sizes, 2, 0)
        begins = torch.empty(len(sizes), dtype=torch.long)
        begins[chosen] = torch.tensor(starts)
        places = begins.to(ids.device)[:, None] + torch.arange(ids.shape[1], device=ids.device)
        x, lower = (F.embedding(places.clamp_max(len(part) - 1), part) for part in read)
        x, mask = x[:, 1:], batch.mask[..., None]
        asked = (x * mask).sum(1, dtype=torch.float32) / mask.sum(1)
        return x, lower, asked.to(x.dtype)

    def read_together(self, lower: Tensor, mask: Tensor, forms: Encoded, pairs: Pairs) -> Rows:
        """The rows of `pairs`, whose requests stood at `lower` [P, 1+Q, D] and whose tools are the packed `forms`; only
        as many of the Q positions as the longest of them has."""
        Q = min(pairs.length, mask.shape[1])
        lower, mask = lower[:, : 1 + Q], mask[:, :Q]
        _, before, *kept = forms
        markers = F.embedding(pairs.markers, before).to(lower.dtype)
        if self.config.literal:
            lower = lower + F.pad(self.said(pairs.said[:, :Q]), (0, 0, 1, 0)).to(lower.dtype)
            markers = markers + self.heard(pairs.heard).to(lower.dtype)
        x = torch.cat([lower, markers], dim=1)
        mask = torch.cat([mask, pairs.count >= 0], dim=1)
        every = torch.cat([F.pad(mask, (1, 0), value=True), pairs.places > 0], dim=1)
        for block, beside in zip(list(self.encoder)[len(self.encoder) - len(kept) :], kept, strict=True):
            x, _ = self.run(block, x, every, F.embedding(pairs.places, beside))
        return Rows(x[:, 1 : 1 + Q], mask, x[:, 1 + Q :], pairs.first, pairs.count, pairs.levels)

    # Keeping tools

    def new_cache(self) -> LRUCache[str, Tensor]:
        return LRUCache(CACHED_BYTES, getsizeof=_bytes)

    def _kept(self, batch: SpanBatch, cache: LRUCache[str, Tensor]) -> Tensor:
        """As `_cards`; `cache` keeps cards by a tool's content, and what is in it isn't encoded again."""
        tools = batch.tools
        known = {tool.key: cache.get(tool.key) for tool in tools.rendered}
        missing = [row for row, tool in enumerate(tools.rendered) if known[tool.key] is None]
        if missing:
            (read,), starts = self._in_groups(tools.cards, missing, tools.sizes, 1)
            for row, start in zip(missing, starts, strict=True):
                key, card = tools.rendered[row].key, read[start : start + tools.sizes[row]].clone()
                known[key] = card
                _keep(cache, key, card)
        every = [self.no_tool[None], *(own for tool in tools.rendered if (own := known[tool.key]) is not None)]
        return torch.cat([own.to(self.no_tool.dtype) for own in every])

    def read_form(self, tool: RenderedTool, cache: LRUCache[str, Tensor] | None) -> Encoded:
        """As `_encode`, [w, …], of one whole tool."""
        widths = [self.config.width] * 2 + [2 * self.config.width] * self.config.joint
        key = f"whole {tool.key}"
        own = None if cache is None else cache.get(key)
        if own is None:
            pieces = to_device(PieceRows.of([tool.ids], [tool.cases]), self.no_tool.device)
            read = self._encode(pieces, pieces.ids != 0, 1)
            own = torch.cat([part[0, : len(tool.ids)].to(self.no_tool.dtype) for part in read], dim=1)
            if cache is not None:
                _keep(cache, key, own)
        return tuple(torch.split(own, widths, dim=1))


def members_of(forms: Forms, read: Tensor) -> Tensor:
    """[1+n, D] of the packed forms to the means of their enums' members, an empty one in front: [1+E, D]."""
    if not forms.members:
        return read[:1]
    return torch.cat([read[:1], means(read[1:], forms.member_of, up(1 + forms.members, STEP))[1 : 1 + forms.members]])


def means(rows: Tensor, group: Tensor, count: int) -> Tensor:
    """[M, D] to the means [count, D] of the rows of each group [M]."""
    group = group[: len(rows)]
    size = torch.bincount(group, minlength=count)[:count].clamp_min(1)
    total = torch.zeros(count, rows.shape[1], device=rows.device).index_add(0, group, rows.float())
    return (total / size[:, None]).to(rows.dtype)


def _packed(empty: Tensor, read: Tensor, starts: Sequence[int], sizes: Sequence[int], total: int) -> Tensor:
    """[1+total, D]: an empty slot, then rows of these sizes from where each begins in `read`, padded with anything."""
    places = np.concatenate([np.arange(start, start + size) for start, size in zip(starts, sizes, strict=True)])
    places = np.concatenate([places, np.zeros(total - len(places), np.int64)])
    index = torch.from_numpy(places).to(read.device)
    return torch.cat([empty.to(read.dtype), read.index_select(0, index)])


def _keep(cache: LRUCache[str, Tensor], key: str, own: Tensor) -> None:
    if _bytes(own) <= cache.maxsize:
        cache[key] = own


def _bytes(own: Tensor) -> int:
    return own.numel() * own.element_size()
