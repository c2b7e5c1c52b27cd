"""The span student: reads requests and tools with one encoder, then points at tools, arguments, members and places.

A pretrained bidirectional encoder reads each request by itself, and of each distinct tool its card: name, description
and the names of its arguments, which is what tools are chosen by. Once one is chosen, the encoder's last layers read
the request and the markers of the tool's arguments together, beside the whole tool: every argument has then looked for
its value, and every word knows what it may be. Cards and whole tools know nothing of a request, and are kept for ever
in serving.
A short causal decoder attends to the answer so far, to that pair, and to what all tools are for. It emits one
distribution: a few tokens to write with, the members of the open argument's enum, the places of the request where a
value begins or ends, the tools, and the arguments of the open tool. Its input for a label is the encoding that the
label points at: names, order and number of tools play no part.

Legend: as in `span.batch`, and D width, H heads, L decoder layers, n positions scored, V vocabulary, T target positions
(1 in a step), N of them that read one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cachetools import LRUCache
from torch import Tensor, nn

from needle.students.base import (
    GELU,
    Dropout,
    Rope,
    State,
    Student,
    SwiGLU,
    Trace,
    attention,
    init_weights,
    mean_attention,
    working_precision,
)
from needle.students.batch import Batch, to_device
from needle.students.pointer.encoder import CACHED_BYTES, Heads
from needle.students.span.batch import BLOCK, STEP, Forms, Pairs, Pieces, SpanBatch, coarse, groups_of, up
from needle.text.pieces import CASES, SPECIAL
from needle.text.prompt import Example, RenderedTool
from needle.text.tokenizer import ARGUMENT_LABELS, MARKERS, MEMBER_LABELS, PLACE_LABELS, TOOL_LABELS

ANSWER = MARKERS.index("<answer>")
BEGIN = SPECIAL.index("[CLS]")  # what is read in front of a request
ROLES = ("answer", "text", "tool", "argument", "member", "begins", "ends")  # what an answer has come to
OUTCOMES = ("text", "member", "place", "tool", "argument")
POINTERS = ("member", "begin", "end", "tool", "argument")
LABELS = MEMBER_LABELS + PLACE_LABELS + TOOL_LABELS + ARGUMENT_LABELS

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
    arguments: Tensor  # [R, A, D] the means of the tool's arguments
    first: Tensor  # [R, A] the first member of each argument, of all that were read
    count: Tensor  # [R, A] how many it has; -1 on padding


@dataclass
class Keys:
    """What an answer may point at: of each row the places where a value begins, those where it ends and arguments
    [R, 2Q+A, D]; members of enums [1+E, D], an empty one in front; and tools [U, D]."""

    rows: Tensor
    members: Tensor
    tools: Tensor
    names: Tensor | None


@dataclass
class SpanState(State):
    """Each record reads one row, which another replaces once a tool is opened."""

    batch: SpanBatch
    tools: Tools
    lower: Tensor  # [B, 1+Q, D] of the requests, before the layers that read together
    own: list[Encoded]  # of each row: query, arguments, first, count
    rows: Rows
    members: Tensor  # [1+E, D] of the enums of all tools that were opened
    keys: Keys
    cross: list[tuple[Tensor, Tensor]]
    seen: list[tuple[Tensor, Tensor]]  # keys and values of the cards, for each layer
    asked: Tensor  # [B, D]
    cache: list[tuple[Tensor, Tensor] | None]
    kept: Any  # tools that were read before
    argument: Tensor  # [B] the open argument, -1 for none
    begun: Tensor  # [B] whether a value is begun
    position: int = 0

    def select(self, rows: Tensor) -> None:
        self.batch = self.batch.select(rows)
        self.own = [self.own[int(row)] for row in rows]
        self.rows = Rows(*(part[rows] for part in vars(self.rows).values()))
        self.keys = replace(self.keys, rows=self.keys.rows[rows])
        self.cross = [(k[rows], v[rows]) for k, v in self.cross]
        self.seen = [(k[rows], v[rows]) for k, v in self.seen]
        self.cache = [None if kv is None else (kv[0][rows], kv[1][rows]) for kv in self.cache]
        self.lower, self.asked = self.lower[rows], self.asked[rows]
        self.argument, self.begun = self.argument[rows], self.begun[rows]


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


class DecoderBlock(nn.Module):
    """Attends to the answer so far, then to its row and to what the tools are for, side by side."""

    def __init__(self, config: SpanConfig) -> None:
        super().__init__()
        self.own, self.pair, self.tools = (Heads(config.width, config.heads) for _ in range(3))
        self.mlp = SwiGLU(config.width, config.hidden)
        self.norm_own, self.norm_cross, self.norm_mlp = (nn.LayerNorm(config.width, bias=False) for _ in range(3))
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        rope: Rope,
        turns: _Turns,
        cross: tuple[Tensor, Tensor],
        mask: Tensor,
        seen: tuple[Tensor, Tensor],
        visible: Tensor,
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """`cross` and `mask` are of the rows, `seen` and `visible` of what the tools are for."""
        normed = self.norm_own(x)
        q = rope(self.own.queries(normed))
        k, v = self.own.keys_values(normed)
        k = rope(k)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        x = x + self.dropout(self.own.join(attention(q, k, v, causal=past is None)))
        normed = self.norm_cross(x)
        asked = self.pair.heads(turns.by_row(self.pair.q_proj(normed)))
        read = attention(asked, *cross, mask[:, None, None])
        told = attention(self.tools.queries(normed), *seen, visible[:, None, None])
        read = self.pair.o_proj(turns.by_record(read.transpose(-3, -2).flatten(-2)))
        x = x + self.dropout(read) + self.dropout(self.tools.join(told))
        return x + self.dropout(self.mlp(self.norm_mlp(x))), (k, v)


@dataclass
class _Turns:
    """Which positions of the answers read which row. In a step every record reads its own."""

    batch: SpanBatch | None  # None in a step
    T: int

    def by_row(self, x: Tensor) -> Tensor:
        """[B, T, D] to [R, N, D]."""
        if self.batch is None:
            return x
        B, T, D = x.shape
        flat = torch.cat([x[:, : self.T].reshape(-1, D), x.new_zeros(1, D)])
        return flat.index_select(0, self.batch.turns.flatten()).view(*self.batch.turns.shape, D)

    def by_record(self, x: Tensor) -> Tensor:
        """[R, N, D] to [B, T, D], padded as the answers are."""
        if self.batch is None:
            return x
        where = self.batch.where
        flat = torch.cat([x.flatten(0, 1), x.new_zeros(1, x.shape[-1])]).index_select(0, where.flatten())
        flat = flat.view(*where.shape, -1)
        return F.pad(flat, (0, 0, 0, up(self.T, STEP) - self.T))


class SpanStudent(Student):
    batch_type = SpanBatch
    read_at_once = "the longest of the request and its tools is"
    can_rank = True

    def __init__(self, config: SpanConfig, vocabulary: int) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.text = vocabulary - LABELS
        self.head_width = config.width // config.heads
        self.scale = config.width**-0.5
        D = config.width
        # What reads.
        self.embed = nn.Embedding(config.pieces, D)
        self.case = nn.Embedding(len(CASES), D)
        self.position = nn.Embedding(config.positions, D)
        self.kind = nn.Embedding(2, D)  # request, tool
        self.no_tool = nn.Parameter(torch.zeros(D))  # the empty slot
        self.norm_encoder = nn.LayerNorm(D, eps=1e-12)
        self.encoder = nn.ModuleList([ReadingBlock(config) for _ in range(config.encoder_layers)])
        self.dropout = Dropout(config.dropout)
        # What answers.
        self.write = nn.Embedding(self.text, D)
        self.role = nn.Embedding(len(ROLES), D)
        self.opening = nn.Linear(D, D, bias=False)  # of the mean of a request
        self.decoder = nn.ModuleList([DecoderBlock(config) for _ in range(config.decoder_layers)])
        self.norm_decoder = nn.LayerNorm(D, bias=False)
        self.spell = nn.Linear(D, D, bias=False)
        self.text_bias = nn.Parameter(torch.zeros(self.text))
        self.gate = nn.Linear(D, len(OUTCOMES))  # how likely each kind of outcome is
        kinds = [*POINTERS, *(("name",) if config.names else ())]
        self.key = nn.ModuleDict({kind: nn.Linear(D, D, bias=False) for kind in kinds})
        init_weights(self, 2 * config.encoder_layers)
        nn.init.zeros_(self.case.weight)
        if config.encoder is not None:
            self.embed.requires_grad_(not config.frozen)
            self.pretrained = ("embed.", "position.", "kind.", "norm_encoder.", "encoder.")

    # Reading

    def _embedded(self, pieces: Pieces, kind: int) -> Tensor:
        cases = pieces.cases
        if self.training and self.config.case_dropout:
            cases = cases * (torch.rand(len(cases), 1, device=cases.device) >= self.config.case_dropout)
        places = torch.arange(pieces.ids.shape[1], device=cases.device).clamp_max(self.config.positions - 1)
        x = self.embed(pieces.ids) + self.case(cases) + self.position(places) + self.kind.weight[kind]
        return working_precision(self.dropout(self.norm_encoder(x)))

    def _encode(self, pieces: Pieces, mask: Tensor, kind: int) -> Encoded:
        """[R, s, D], as it was before the layers that read together, and keys and values [R, s, 2D] in those."""
        x, alone, kept = self._embedded(pieces, kind), len(self.encoder) - self.config.joint, list[Tensor]()
        lower = x
        for number, block in enumerate(self.encoder):
            lower = x if number == alone else lower
            x, own = self.run(block, x, mask)
            kept += [own] if number >= alone else []
        return (x, lower if kept else x, *kept)

    def _in_groups(
        self, rows: Pieces, chosen: Sequence[int], sizes: Sequence[int], whole: bool
    ) -> tuple[Encoded, list[int]]:
        """The `chosen` of rows of these sizes, the smallest first, in groups of similar size that are padded to common
        sizes, as `_encode` (only the first unless `whole`): all laid end to end, and where each begins there."""
        found, starts, offset = [], [], 0
        for group in groups_of([sizes[row] for row in chosen]):
            width = min(coarse(sizes[chosen[group[-1]]], STEP), rows.ids.shape[1])
            count = coarse(len(group), 1) if self.training else len(group)
            index = torch.tensor([*(chosen[place] for place in group), *[chosen[group[0]]] * (count - len(group))])
            index = index.to(rows.ids.device)
            pieces = Pieces(rows.ids[index, :width], rows.cases[index, :width])
            read = self._encode(pieces, pieces.ids != 0, 1)
            found.append([part.flatten(0, 1) for part in (read if whole else read[:1])])
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
                    (read,), starts = self._in_groups(batch.tools.cards, chosen, sizes, whole=False)
                for row, start in zip(chosen, starts, strict=True):
                    begins[row] = offset + start
                parts.append(read)
                offset += len(read)
        return _packed(empty, torch.cat(parts), begins, sizes, len(batch.tools.tool_of))

    def _forms(self, batch: SpanBatch) -> Encoded:
        """As `_encode` of the packed forms, one empty slot in front: [1+n, D] twice, then [1+n, 2D]."""
        forms = batch.forms
        if not forms.sizes:
            return self._empty()
        read, starts = self._in_groups(forms.rows, range(len(forms.sizes)), forms.sizes, whole=True)
        packed = [
            _packed(part.new_zeros(1, part.shape[1]), part, starts, forms.sizes, sum(forms.sizes)) for part in read
        ]
        return tuple(packed)

    def _empty(self) -> Encoded:
        """What stands in front of the packed forms."""
        one = self.no_tool.detach()[None]
        return (one, one, *[torch.cat([one, one], dim=1)] * self.config.joint)

    def read_tools(self, batch: SpanBatch, cache: Any = None) -> Tools:
        read = self._cards(batch) if cache is None else self._kept(batch, cache)
        own, bare, count = batch.tools, read[1:], len(batch.tools.sizes)
        names = _means(bare, own.name_of, count + 1)[:count] if self.config.names else None
        return Tools(read, _means(bare, own.tool_of, count + 1)[:count], names)

    def read_requests(self, batch: SpanBatch) -> tuple[Tensor, Tensor, Tensor]:
        """[B, Q, D] of the requests, [B, 1+Q, D] before the layers that read together, and their means [B, D]."""
        ids, cases = F.pad(batch.requests.ids, (1, 0), value=BEGIN), F.pad(batch.requests.cases, (1, 0))
        x, lower, *_ = self._encode(Pieces(ids, cases), F.pad(batch.mask, (1, 0), value=True), 0)
        x, mask = x[:, 1:], batch.mask[..., None]
        asked = (x * mask).sum(1, dtype=torch.float32) / mask.sum(1)
        return x, lower, asked.to(x.dtype)

    def read_together(self, lower: Tensor, mask: Tensor, forms: Encoded, pairs: Pairs) -> Rows:
        """The rows of `pairs`, whose requests stood at `lower` [P, 1+Q, D] and whose tools are the packed `forms`."""
        Q = mask.shape[1]
        _, before, *kept = forms
        x = torch.cat([lower, F.embedding(pairs.markers, before).to(lower.dtype)], dim=1)
        mask = torch.cat([mask, pairs.count >= 0], dim=1)
        every = torch.cat([F.pad(mask, (1, 0), value=True), pairs.places > 0], dim=1)
        for block, beside in zip(list(self.encoder)[len(self.encoder) - len(kept) :], kept, strict=True):
            x, _ = self.run(block, x, every, F.embedding(pairs.places, beside))
        return Rows(x[:, 1 : 1 + Q], mask, x[:, 1 + Q :], pairs.first, pairs.count)

    def _keys(self, rows: Rows, members: Tensor, tools: Tools) -> Keys:
        parts = ("begin", rows.query), ("end", rows.query), ("argument", rows.arguments)
        return Keys(
            torch.cat([self.key[kind](part) for kind, part in parts], dim=1),
            self.key["member"](members),
            self.key["tool"](tools.uses),
            None if tools.names is None else self.key["name"](tools.names),
        )

    def _cross(self, rows: Rows) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the rows [R, H, Q+A, d], for each layer of the decoder."""
        every = torch.cat([rows.query, rows.arguments], dim=1)
        return [block.pair.keys_values(every) for block in self.decoder]  # type: ignore[union-attr,operator]

    def _seen(self, batch: SpanBatch, tools: Tools) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of what each record's tools are for [B, H, S, d], for each layer of the decoder."""
        uses = F.embedding(batch.owned.clamp_min(0), tools.read)
        return [block.tools.keys_values(uses) for block in self.decoder]  # type: ignore[union-attr,operator]

    # Keeping tools

    def new_cache(self) -> LRUCache[str, Tensor]:
        return LRUCache(CACHED_BYTES, getsizeof=_bytes)

    def _kept(self, batch: SpanBatch, cache: LRUCache[str, Tensor]) -> Tensor:
        """As `_cards`; `cache` keeps cards by a tool's content, and what is in it isn't encoded again."""
        tools = batch.tools
        known = {tool.key: cache.get(tool.key) for tool in tools.rendered}
        missing = [row for row, tool in enumerate(tools.rendered) if known[tool.key] is None]
        if missing:
            (read,), starts = self._in_groups(tools.cards, missing, tools.sizes, whole=False)
            for row, start in zip(missing, starts, strict=True):
                key, card = tools.rendered[row].key, read[start : start + tools.sizes[row]].clone()
                known[key] = card
                _keep(cache, key, card)
        every = [self.no_tool[None], *(own for tool in tools.rendered if (own := known[tool.key]) is not None)]
        return torch.cat([own.to(self.no_tool.dtype) for own in every])

    def _form(self, tool: RenderedTool, cache: LRUCache[str, Tensor] | None) -> Encoded:
        """As `_encode`, [w, …], of one whole tool."""
        widths = [self.config.width] * 2 + [2 * self.config.width] * self.config.joint
        key = f"whole {tool.key}"
        own = None if cache is None else cache.get(key)
        if own is None:
            pieces = to_device(Pieces.of([tool.ids], [tool.cases]), self.no_tool.device)
            read = self._encode(pieces, pieces.ids != 0, 1)
            own = torch.cat([part[0, : len(tool.ids)].to(self.no_tool.dtype) for part in read], dim=1)
            if cache is not None:
                _keep(cache, key, own)
        return tuple(torch.split(own, widths, dim=1))

    # What an answer has come to

    def _inputs(
        self,
        tokens: Tensor,
        place: tuple[Tensor, Tensor, Tensor],
        rows: Rows,
        members: Tensor,
        tools: Tools,
        batch: SpanBatch,
        asked: Tensor,
    ) -> Tensor:
        """[B, T] tokens to [B, T, D]. A label's input is the encoding that it points at. `place` is, after each token,
        its row, the open argument and whether a value is begun."""
        row, argument, begun = place
        member = tokens - self.text
        said = member - MEMBER_LABELS
        tool = said - PLACE_LABELS
        is_member, is_said = (member >= 0) & (said < 0), (said >= 0) & (tool < 0)
        is_tool, is_argument = (tool >= 0) & (tool < TOOL_LABELS), tool >= TOOL_LABELS
        open_argument = argument.clamp(0, rows.arguments.shape[1] - 1)
        x = self.write(torch.where(tokens < self.text, tokens, ANSWER))
        x = torch.where((tokens == ANSWER)[..., None], self.opening(asked)[:, None].to(x.dtype), x)
        if len(tools.uses):
            number = batch.offered.gather(1, tool.clamp(0, batch.offered.shape[1] - 1)).clamp_min(0)
            x = torch.where(is_tool[..., None], tools.uses[number].to(x.dtype), x)
            x = torch.where(is_argument[..., None], _at(rows.arguments, row, open_argument).to(x.dtype), x)
            index = (rows.first[row, open_argument] + member) * is_member
            chosen = F.embedding(index.clamp_max(len(members) - 1), members)
            x = torch.where(is_member[..., None], chosen.to(x.dtype), x)
        pointed = _at(rows.query, row, said.clamp(0, rows.query.shape[1] - 1))
        x = torch.where(is_said[..., None], pointed.to(x.dtype), x)
        role = (tokens != ANSWER).long()
        for code, kind in enumerate((is_tool, is_argument, is_member, is_said & begun, is_said & ~begun), 2):
            role = torch.where(kind, code, role)
        return working_precision(self.dropout(x + self.role(role)))

    # What comes next

    def _scores(
        self,
        hidden: Tensor,
        turns: _Turns,
        place: tuple[Tensor, Tensor, Tensor],
        rows: Rows,
        keys: Keys,
        batch: SpanBatch,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """[B, T, D] to scores [B, T, V] in float32, or of the `wanted` [n] flat positions [n, V]."""
        T, D = turns.T, hidden.shape[-1]
        B, Q, A, low = len(hidden), rows.query.shape[1], rows.arguments.shape[1], -torch.inf
        flat = torch.arange(B * T, device=hidden.device) if wanted is None else wanted
        count = len(flat)
        flat = F.pad(flat, (0, up(count, BLOCK) - count)) if self.training else flat
        pointed = (turns.by_row(hidden) @ keys.rows.transpose(1, 2)).flatten(0, 1)  # [R*N, 2Q+A+E]
        pointed = pointed[
            (flat if turns.batch is None else turns.batch.where.flatten()[flat]).clamp_max(len(pointed) - 1)
        ]
        pointed = pointed.float() * self.scale
        hidden = hidden[:, :T].reshape(-1, D)[flat]
        row, argument, begun = (one.flatten()[flat] for one in place)
        gates = self.gate(hidden).float()
        text = F.linear(self.spell(hidden), self.write.weight).float() + self.text_bias + gates[:, :1]
        # Places: where a value begins, or ends if it is begun.
        places = torch.where(begun[:, None], pointed[:, Q : 2 * Q], pointed[:, :Q]) + gates[:, 2:3]
        places = places.masked_fill(~rows.mask[row, :Q], low)[:, :PLACE_LABELS]
        # Tools, and the arguments of the open one.
        offered = batch.offered[flat // T]
        tools = (hidden @ keys.tools.T).float() * self.scale
        if keys.names is not None:
            tools = tools + (hidden @ keys.names.T).float() * self.scale
        tools = F.pad(tools, (0, 1)).gather(1, offered.clamp_min(0)) + gates[:, 3:4]
        tools = tools.masked_fill(offered < 0, low)
        arguments = pointed[:, 2 * Q : 2 * Q + A] + gates[:, 4:]
        arguments = arguments.masked_fill(rows.count[row] < 0, low)
        # Members of the open argument's enum.
        own, every = argument.clamp(0, A - 1)[:, None], (hidden @ keys.members.T).float() * self.scale
        number = torch.arange(max(int(rows.count.max()), 1), device=hidden.device)
        index = rows.first[row].gather(1, own) + number
        absent = (number >= rows.count[row].gather(1, own)) | (argument[:, None] < 0)
        members = every.gather(1, index.clamp_max(every.shape[1] - 1)) + gates[:, 1:2]
        members = members.masked_fill(absent, low)
        parts = (members, MEMBER_LABELS), (places, PLACE_LABELS), (tools, TOOL_LABELS), (arguments, ARGUMENT_LABELS)
        wide = [F.pad(part, (0, width - part.shape[1]), value=low) for part, width in parts]
        scores = torch.cat([text, *wide], dim=1)[:count]
        return scores.view(B, T, -1) if wanted is None else scores

    @property
    def traced(self) -> tuple[int, int]:
        return len(self.decoder), self.config.width

    def forward(self, batch: Batch, trace: Trace | None = None, wanted: Tensor | None = None) -> Tensor:
        assert isinstance(batch, SpanBatch), "the span student reads requests and tools apart"
        visible = batch.owned >= 0
        if self.training and self.config.blind:
            seeing = torch.rand(len(visible), 1, device=visible.device) >= self.config.blind
            visible = visible & (seeing | (batch.owned == 0))
        tools = self.read_tools(batch)
        query, lower, asked = self.read_requests(batch)
        forms = self._forms(batch)
        members = _members(batch.forms, forms[0])
        pairs = [
            self.read_together(lower[group.record], batch.mask[group.record], forms, group) for group in batch.pairs
        ]
        rows = _joined(query, batch.mask, pairs)
        turns, place = _Turns(batch, batch.inputs.shape[1]), (batch.row, batch.argument, batch.begun)
        x = self._inputs(batch.inputs, place, rows, members, tools, batch, asked)
        x = F.pad(x, (0, 0, 0, up(turns.T, STEP) - turns.T))
        rope = Rope.at(torch.arange(x.shape[1], device=x.device), self.head_width, self.config.rope_theta)
        for block, cross, seen in zip(self.decoder, self._cross(rows), self._seen(batch, tools), strict=True):
            if trace is not None and trace.attend:
                asking = block.pair.queries(block.norm_cross(x[:, : turns.T]))  # type: ignore[operator,union-attr]
                Q, B = rows.query.shape[1], len(query)
                trace.attention.append(mean_attention(asking, cross[0][:B, :, :Q], batch.mask[:, None, None]))
            x, _ = self.run(block, x, rope, turns, cross, rows.mask, seen, visible, None)
            if trace is not None:
                trace.hidden.append(x[:, : turns.T])
        return self._scores(self.norm_decoder(x), turns, place, rows, self._keys(rows, members, tools), batch, wanted)

    # Answering, step by step

    def start(self, batch: Batch, cache: Any = None) -> SpanState:
        assert isinstance(batch, SpanBatch), "the span student reads requests and tools apart"
        tools = self.read_tools(batch, cache)
        query, lower, asked = self.read_requests(batch)
        B, D, device = len(query), query.shape[2], query.device
        none, begun = torch.full((B,), -1, device=device), torch.zeros(B, dtype=torch.bool, device=device)
        empty = query.new_zeros(0, D)
        nothing = torch.zeros(0, dtype=torch.long, device=device)
        sizes = batch.mask.sum(1).tolist()
        own: list[Encoded] = [(query[i, : sizes[i]], empty, nothing, nothing) for i in range(B)]
        rows, members = _stacked(own), query.new_zeros(1, D)
        return SpanState(
            batch, tools, lower, own, rows, members, self._keys(rows, members, tools), self._cross(rows),
            self._seen(batch, tools), asked, [None] * len(self.decoder), cache, none, begun,
        )  # fmt: skip

    def step(self, state: SpanState, tokens: Tensor, open_tool: Tensor) -> Tensor:  # type: ignore[override]
        hidden = self._advance(state, tokens, open_tool)
        return self._scores(hidden, _Turns(None, 1), self._place(state), state.rows, state.keys, state.batch)

    def _place(self, state: SpanState) -> tuple[Tensor, Tensor, Tensor]:
        row = torch.arange(len(state.argument), device=state.argument.device)[:, None]
        return row, state.argument[:, None], state.begun[:, None]

    def _advance(self, state: SpanState, tokens: Tensor, open_tool: Tensor) -> Tensor:
        """Appends `tokens` [B, 1]: the decoder's hidden states [B, 1, D]."""
        token = tokens[:, 0]
        label = token - self.text - MEMBER_LABELS
        state.begun = (label >= 0) & (label < PLACE_LABELS) & ~state.begun
        argument = label - PLACE_LABELS - TOOL_LABELS
        is_tool = (argument < 0) & (label >= PLACE_LABELS)
        state.argument = torch.where(argument >= 0, argument, torch.where(is_tool, -1, state.argument))
        if is_tool.any():
            self._open(state, is_tool.nonzero()[:, 0], open_tool[:, 0])
        x = self._inputs(tokens, self._place(state), state.rows, state.members, state.tools, state.batch, state.asked)
        rope = Rope.at(torch.tensor([state.position], device=x.device), self.head_width, self.config.rope_theta)
        visible = state.batch.owned >= 0
        for index, block in enumerate(self.decoder):
            layer = (state.cross[index], state.rows.mask, state.seen[index], visible, state.cache[index])
            x, state.cache[index] = block(x, rope, _Turns(None, 1), *layer)
        state.position += 1
        return self.norm_decoder(x)  # type: ignore[no-any-return]

    def _open(self, state: SpanState, records: Tensor, open_tool: Tensor) -> None:
        """Reads the requests of `records` together with their open tools."""
        batch = state.batch
        numbers = batch.offered[records].gather(1, open_tool[records][:, None])[:, 0].tolist()
        forms = Forms.of(set(numbers), batch.tools)
        every = [self._empty(), *(self._form(batch.tools.rendered[tool], state.kept) for tool in forms.tools)]
        packed = tuple(torch.cat(part) for part in zip(*every, strict=True))
        rows = records.tolist()
        chosen = [(row, forms.tools.index(tool)) for row, tool in zip(rows, numbers, strict=True)]
        forms, pairs = to_device([forms, Pairs.of(chosen, forms, batch.tools)], records.device)
        read = self.read_together(state.lower[records].to(packed[0].dtype), batch.mask[records], packed, pairs)
        behind = len(state.members) - 1  # those of tools that were opened before stand in front
        state.members = torch.cat([state.members, _members(forms, packed[0])[1:]])
        sizes = batch.mask.sum(1).tolist()
        for place, (row, number) in enumerate(zip(rows, numbers, strict=True)):
            tool = batch.tools.rendered[number]
            A = len(tool.markers)
            first = read.first[place, :A] + behind
            state.own[row] = (read.query[place, : sizes[row]], read.arguments[place, :A], first, read.count[place, :A])
        state.rows = _stacked(state.own)
        state.keys = self._keys(state.rows, state.members, state.tools)
        state.cross = self._cross(state.rows)

    def read_length(self, example: Example) -> int:
        return max([len(example.query), *(len(tool.ids) for tool in example.tools)])

    def room(self, example: Example, max_length: int) -> int:
        return max_length

    def padded_length(self, example: Example) -> int:
        """Not the target: batches of equal targets would hold nothing but answers without a call, or nothing but
        calls."""
        return len(example.query)

    # Choosing a few tools among many

    def tool_keys(self, tools: Sequence[RenderedTool]) -> Tensor:
        heads = torch.empty(len(tools), self.config.width, device=self.no_tool.device, dtype=self.no_tool.dtype)
        order = sorted(range(len(tools)), key=lambda index: len(tools[index].card))
        for start in range(0, len(order), 64):
            rows = order[start : start + 64]
            pieces = Pieces.of([tools[row].card for row in rows], [tools[row].card_cases for row in rows])
            pieces = to_device(pieces, heads.device)
            encoded, mask = self._encode(pieces, pieces.ids != 0, 1)[0], (pieces.ids != 0)[..., None]
            heads[torch.tensor(rows)] = ((encoded * mask).sum(1, dtype=torch.float32) / mask.sum(1)).to(heads.dtype)
        return self.key["tool"](heads)  # type: ignore[no-any-return]

    def request_keys(self, batch: Batch) -> Tensor:
        """A product is the score of the tool's label as an answer's first token, of a decoder that reads the request
        alone."""
        hidden: Tensor = self._advance(self.start(batch), batch.inputs[:, :1], batch.open_tool[:, :1])
        keys: Tensor = hidden[:, 0] * self.scale
        return keys


def _packed(empty: Tensor, read: Tensor, starts: Sequence[int], sizes: Sequence[int], total: int) -> Tensor:
    """[1+total, D]: an empty slot, then rows of these sizes from where each begins in `read`, padded with anything."""
    places = np.concatenate([np.arange(start, start + size) for start, size in zip(starts, sizes, strict=True)])
    places = np.concatenate([places, np.zeros(total - len(places), np.int64)])
    index = torch.from_numpy(places).to(read.device)
    return torch.cat([empty.to(read.dtype), read.index_select(0, index)])


def _members(forms: Forms, read: Tensor) -> Tensor:
    """[1+n, D] of the packed forms to the means of their enums' members, an empty one in front: [1+E, D]."""
    if not forms.members:
        return read[:1]
    return torch.cat([read[:1], _means(read[1:], forms.member_of, up(1 + forms.members, STEP))[1 : 1 + forms.members]])


def _keep(cache: LRUCache[str, Tensor], key: str, own: Tensor) -> None:
    if _bytes(own) <= cache.maxsize:
        cache[key] = own


def _bytes(own: Tensor) -> int:
    return own.numel() * own.element_size()


def _joined(query: Tensor, mask: Tensor, pairs: Sequence[Rows]) -> Rows:
    """Requests alone, then pairs."""
    Q = query.shape[1]
    A = max([1, *(group.arguments.shape[1] for group in pairs)])
    B, A, D = len(query), up(A, STEP), query.shape[2]
    first = query.new_zeros(B, A, dtype=torch.long)
    alone = Rows(query, F.pad(mask, (0, A)), query.new_zeros(B, A, D), first, first - 1)
    every = [alone]
    for group in pairs:
        more = A - group.arguments.shape[1]
        every.append(
            Rows(
                group.query,
                torch.cat([group.mask[:, :Q], F.pad(group.mask[:, Q:], (0, more))], dim=1),
                F.pad(group.arguments, (0, 0, 0, more)),
                F.pad(group.first, (0, more)),
                F.pad(group.count, (0, more), value=-1),
            )
        )
    return Rows(*(torch.cat(part) for part in zip(*(vars(group).values() for group in every), strict=True)))


def _stacked(own: Sequence[Encoded]) -> Rows:
    """Rows of different sizes, padded."""
    fills = (0, 0, 0, -1)
    widths = [max([1, *(len(row[part]) for row in own)]) for part in range(len(fills))]
    query, arguments, *rest = [
        torch.stack([_filled(row[part], widths[part], fills[part]) for row in own]) for part in range(len(fills))
    ]
    mask = [
        torch.arange(widths[part], device=query.device)
        < torch.tensor([[len(row[part])] for row in own]).to(query.device)
        for part in (0, 1)
    ]
    return Rows(query, torch.cat(mask, dim=1), arguments, *rest)


def _filled(rows: Tensor, size: int, value: int) -> Tensor:
    more = size - len(rows)
    return rows if not more else torch.cat([rows, rows.new_full((more, *rows.shape[1:]), value)])


def _at(x: Tensor, row: Tensor, place: Tensor) -> Tensor:
    """[R, s, D] at rows and places [B, T]: [B, T, D]."""
    return F.embedding(row * x.shape[1] + place, x.flatten(0, 1))


def _means(rows: Tensor, group: Tensor, count: int) -> Tensor:
    """[M, D] to the means [count, D] of the rows of each group [M]."""
    group = group[: len(rows)]
    size = torch.bincount(group, minlength=count)[:count].clamp_min(1)
    total = torch.zeros(count, rows.shape[1], device=rows.device).index_add(0, group, rows.float())
    return (total / size[:, None]).to(rows.dtype)
