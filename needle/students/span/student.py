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

Legend: as in `span.batch`, and D width, H heads, n positions scored, V vocabulary, T target positions (1 in a step), N
of them that read one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from needle.students.base import (
    Dropout,
    Rope,
    State,
    SwiGLU,
    Trace,
    attention,
    init_weights,
    mean_attention,
    working_precision,
)
from needle.students.batch import Batch, to_device
from needle.students.pointer.encoder import Heads
from needle.students.span.batch import STEP, Forms, Pairs, PieceRows, SpanBatch, up
from needle.students.span.reader import Encoded, Rows, SpanConfig, SpanReader, Tools, members_of
from needle.text.literal import LEVELS
from needle.text.prompt import RenderedTool
from needle.text.tokenizer import ARGUMENT_LABELS, MARKERS, MEMBER_LABELS, PLACE_LABELS, TOOL_LABELS

ANSWER = MARKERS.index("<answer>")
ROLES = ("answer", "text", "tool", "argument", "member", "begins", "ends")  # what an answer has come to
OUTCOMES = ("text", "member", "place", "tool", "argument")
POINTERS = ("member", "begin", "end", "tool", "argument")
LITERAL = ("said", "heard", "literal")  # the parts that `SpanConfig.literal` adds
LABELS = MEMBER_LABELS + PLACE_LABELS + TOOL_LABELS + ARGUMENT_LABELS


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
    own: list[Encoded]  # of each row: query, arguments, first, count, levels
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


class DecoderBlock(nn.Module):
    """Attends to the answer so far, then to its row and to what the tools are for, side by side. All but attention is
    done on positions of answers laid end to end [n, D]."""

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
        q = rope(self.own.heads(turns.by_answer(self.own.q_proj(normed))))
        k, v = (self.own.heads(part) for part in turns.by_answer(self.own.kv_proj(normed)).chunk(2, dim=-1))
        k = rope(k)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        said = turns.of_answer(_one(attention(q, k, v, causal=past is None)))
        x = x + self.dropout(self.own.o_proj(said))
        normed = self.norm_cross(x)
        read = attention(self.pair.heads(turns.by_row(self.pair.q_proj(normed))), *cross, mask[:, None, None])
        told = attention(self.tools.heads(turns.by_answer(self.tools.q_proj(normed))), *seen, visible[:, None, None])
        read, told = self.pair.o_proj(turns.of_row(_one(read))), self.tools.o_proj(turns.of_answer(_one(told)))
        x = x + self.dropout(read) + self.dropout(told)
        return x + self.dropout(self.mlp(self.norm_mlp(x))), (k, v)


@dataclass
class _Turns:
    """Where the n positions of answers stand, laid end to end: in their answers, and in the rows that they read."""

    answer: Tensor  # [B, T] which of the n
    in_answer: Tensor  # [n] which of the B*T
    row: Tensor  # [R, N] which of the n
    in_row: Tensor  # [n] which of the R*N

    @classmethod
    def of(cls, batch: SpanBatch) -> _Turns:
        B, T = batch.slot.shape
        width = up(T, STEP)
        answer = F.pad(batch.slot, (0, width - T), value=len(batch.packed) - 1)
        return cls(answer, batch.packed + batch.packed // T * (width - T), batch.turns, batch.where)

    def by_answer(self, x: Tensor) -> Tensor:
        """[n, D] to [B, T, D]."""
        return F.embedding(self.answer, x)

    def of_answer(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1).index_select(0, self.in_answer)

    def by_row(self, x: Tensor) -> Tensor:
        """[n, D] to [R, N, D]."""
        return F.embedding(self.row, x)

    def of_row(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1).index_select(0, self.in_row)


class _Step(_Turns):
    """One position of each answer, which reads a row of its own."""

    def __init__(self) -> None:
        pass

    def by_answer(self, x: Tensor) -> Tensor:
        return x[:, None]

    def of_answer(self, x: Tensor) -> Tensor:
        return x[:, 0]

    by_row, of_row = by_answer, of_answer


@dataclass
class _Places:
    """Of each of the n positions its record, its row, the open argument, and whether a value is begun, all [n]."""

    record: Tensor
    row: Tensor
    argument: Tensor
    begun: Tensor


class SpanStudent(SpanReader):
    batch_type = SpanBatch

    def __init__(self, config: SpanConfig, vocabulary: int) -> None:
        super().__init__(config)
        self.vocabulary = vocabulary
        self.text = vocabulary - LABELS
        self.head_width = config.width // config.heads
        self.scale = config.width**-0.5
        D = config.width
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
        if config.literal:
            # What it adds to a member's and to a tool's score that some or all of their words are said.
            self.literal = nn.Linear(D, 2 * (LEVELS - 1))
        init_weights(self, 2 * config.encoder_layers)
        nn.init.zeros_(self.case.weight)
        if config.literal:
            for weight in (self.said.weight, self.heard.weight, *self.literal.parameters()):
                nn.init.zeros_(weight)

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
        owned, every = batch.owned.clamp_min(0), []
        for block in self.decoder:
            heads: Heads = block.tools  # type: ignore[assignment]
            k, v = F.embedding(owned, heads.kv_proj(tools.read)).chunk(2, dim=-1)
            every.append((heads.heads(k), heads.heads(v)))
        return every

    # What an answer has come to

    def _inputs(
        self,
        tokens: Tensor,
        place: _Places,
        rows: Rows,
        members: Tensor,
        tools: Tools,
        batch: SpanBatch,
        asked: Tensor,
    ) -> Tensor:
        """[n] tokens to [n, D]. A label's input is the encoding that it points at. `place` is as after each token."""
        row, begun = place.row, place.begun
        member = tokens - self.text
        said = member - MEMBER_LABELS
        tool = said - PLACE_LABELS
        is_member, is_said = (member >= 0) & (said < 0), (said >= 0) & (tool < 0)
        is_tool, is_argument = (tool >= 0) & (tool < TOOL_LABELS), tool >= TOOL_LABELS
        open_argument = place.argument.clamp(0, rows.arguments.shape[1] - 1)
        x = self.write(torch.where(tokens < self.text, tokens, ANSWER))
        opening = F.embedding(place.record, self.opening(asked)).to(x.dtype)
        x = torch.where((tokens == ANSWER)[..., None], opening, x)
        if len(tools.uses):
            number = batch.offered[place.record, tool.clamp(0, batch.offered.shape[1] - 1)].clamp_min(0)
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
        place: _Places,
        rows: Rows,
        keys: Keys,
        batch: SpanBatch,
    ) -> Tensor:
        """[n, D] to scores [n, V] in float32."""
        Q, A, low = rows.query.shape[1], rows.arguments.shape[1], -torch.inf
        row, begun = place.row, place.begun
        pointed = turns.of_row(turns.by_row(hidden) @ keys.rows.transpose(1, 2)).float() * self.scale  # [n, 2Q+A]
        gates = self.gate(hidden).float()
        text = F.linear(self.spell(hidden), self.write.weight).float() + self.text_bias + gates[:, :1]
        # Places: where a value begins, or ends if it is begun.
        places = torch.where(begun[:, None], pointed[:, Q : 2 * Q], pointed[:, :Q]) + gates[:, 2:3]
        places = places.masked_fill(~rows.mask[row, :Q], low)[:, :PLACE_LABELS]
        # Tools, and the arguments of the open one.
        offered = batch.offered[place.record]
        tools = (hidden @ keys.tools.T).float() * self.scale
        if keys.names is not None:
            tools = tools + (hidden @ keys.names.T).float() * self.scale
        tools = F.pad(tools, (0, 1)).gather(1, offered.clamp_min(0)) + gates[:, 3:4]
        if self.config.literal:
            # [n, LEVELS] each; a name that isn't said adds nothing.
            for_member, for_tool = (F.pad(part, (1, 0)) for part in self.literal(hidden).float().chunk(2, dim=-1))
            tools = tools + for_tool.gather(1, batch.named[place.record])
        tools = tools.masked_fill(offered < 0, low)
        arguments = pointed[:, 2 * Q : 2 * Q + A] + gates[:, 4:]
        arguments = arguments.masked_fill(rows.count[row] < 0, low)
        # Members of the open argument's enum.
        own, every = place.argument.clamp(0, A - 1)[:, None], (hidden @ keys.members.T).float() * self.scale
        number = torch.arange(max(int(rows.count.max()), 1), device=hidden.device)
        index = rows.first[row].gather(1, own) + number
        absent = (number >= rows.count[row].gather(1, own)) | (place.argument[:, None] < 0)
        members = every.gather(1, index.clamp_max(every.shape[1] - 1)) + gates[:, 1:2]
        if self.config.literal:
            within = (index - rows.first[row, :1]).clamp(0, rows.levels.shape[1] - 1)
            members = members + for_member.gather(1, rows.levels[row].gather(1, within))
        members = members.masked_fill(absent, low)
        parts = (members, MEMBER_LABELS), (places, PLACE_LABELS), (tools, TOOL_LABELS), (arguments, ARGUMENT_LABELS)
        wide = [F.pad(part, (0, width - part.shape[1]), value=low) for part, width in parts]
        return torch.cat([text, *wide], dim=1)

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
        forms = self.read_forms(batch)
        members = members_of(batch.forms, forms[0])
        pairs = [
            self.read_together(lower[group.record], batch.mask[group.record], forms, group) for group in batch.pairs
        ]
        rows = _joined(query, batch.mask, pairs)
        turns, T = _Turns.of(batch), batch.inputs.shape[1]
        tokens, row, argument, begun = (
            one.flatten()[batch.packed] for one in (batch.inputs, batch.row, batch.argument, batch.begun)
        )
        place = _Places(batch.packed // T, row, argument, begun)
        x = self._inputs(tokens, place, rows, members, tools, batch, asked)
        positions = torch.arange(turns.answer.shape[1], device=x.device)
        rope = Rope.at(positions, self.head_width, self.config.rope_theta)
        for block, cross, seen in zip(self.decoder, self._cross(rows), self._seen(batch, tools), strict=True):
            if trace is not None and trace.attend:
                asking = block.pair.queries(turns.by_answer(block.norm_cross(x))[:, :T])  # type: ignore[operator,union-attr]
                Q, B = rows.query.shape[1], len(query)
                trace.attention.append(mean_attention(asking, cross[0][:B, :, :Q], batch.mask[:, None, None]))
            x, _ = self.run(block, x, rope, turns, cross, rows.mask, seen, visible, None)
            if trace is not None:
                trace.hidden.append(turns.by_answer(x)[:, :T])
        scores = self._scores(self.norm_decoder(x), turns, place, rows, self._keys(rows, members, tools), batch)
        return F.embedding(batch.slot if wanted is None else batch.slot.flatten()[wanted], scores)

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
        own: list[Encoded] = [(query[i, : sizes[i]], empty, nothing, nothing, nothing) for i in range(B)]
        rows, members = _stacked(own), query.new_zeros(1, D)
        return SpanState(
            batch, tools, lower, own, rows, members, self._keys(rows, members, tools), self._cross(rows),
            self._seen(batch, tools), asked, [None] * len(self.decoder), cache, none, begun,
        )  # fmt: skip

    def step(self, state: SpanState, tokens: Tensor, open_tool: Tensor) -> Tensor:  # type: ignore[override]
        hidden = self._advance(state, tokens, open_tool)
        return self._scores(hidden, _Step(), self._place(state), state.rows, state.keys, state.batch)[:, None]

    def _place(self, state: SpanState) -> _Places:
        row = torch.arange(len(state.argument), device=state.argument.device)
        return _Places(row, row, state.argument, state.begun)

    def _advance(self, state: SpanState, tokens: Tensor, open_tool: Tensor) -> Tensor:
        """Appends `tokens` [B, 1]: the decoder's hidden states [B, D]."""
        token = tokens[:, 0]
        label = token - self.text - MEMBER_LABELS
        state.begun = (label >= 0) & (label < PLACE_LABELS) & ~state.begun
        argument = label - PLACE_LABELS - TOOL_LABELS
        is_tool = (argument < 0) & (label >= PLACE_LABELS)
        state.argument = torch.where(argument >= 0, argument, torch.where(is_tool, -1, state.argument))
        if is_tool.any():
            self._open(state, is_tool.nonzero()[:, 0], open_tool[:, 0])
        x = self._inputs(token, self._place(state), state.rows, state.members, state.tools, state.batch, state.asked)
        rope = Rope.at(torch.tensor([state.position], device=x.device), self.head_width, self.config.rope_theta)
        visible = state.batch.owned >= 0
        for index, block in enumerate(self.decoder):
            layer = (state.cross[index], state.rows.mask, state.seen[index], visible, state.cache[index])
            x, state.cache[index] = block(x, rope, _Step(), *layer)
        state.position += 1
        return self.norm_decoder(x)  # type: ignore[no-any-return]

    def _open(self, state: SpanState, records: Tensor, open_tool: Tensor) -> None:
        """Reads the requests of `records` together with their open tools."""
        batch = state.batch
        numbers = batch.offered[records].gather(1, open_tool[records][:, None])[:, 0].tolist()
        forms = Forms.of(set(numbers), batch.tools)
        every = [self.no_form(), *(self.read_form(batch.tools.rendered[tool], state.kept) for tool in forms.tools)]
        packed = tuple(torch.cat(part) for part in zip(*every, strict=True))
        rows = records.tolist()
        chosen = [(row, forms.tools.index(tool)) for row, tool in zip(rows, numbers, strict=True)]
        sizes = [words.size for words in batch.literal]
        forms, pairs = to_device([forms, Pairs.of(chosen, batch.literal, forms, batch.tools)], records.device)
        read = self.read_together(state.lower[records].to(packed[0].dtype), batch.mask[records], packed, pairs)
        behind = len(state.members) - 1  # those of tools that were opened before stand in front
        state.members = torch.cat([state.members, members_of(forms, packed[0])[1:]])
        for place, (row, number) in enumerate(zip(rows, numbers, strict=True)):
            tool = batch.tools.rendered[number]
            A = len(tool.markers)
            first = read.first[place, :A] + behind
            state.own[row] = (
                read.query[place, : sizes[row]], read.arguments[place, :A], first, read.count[place, :A],
                read.levels[place],
            )  # fmt: skip
        state.rows = _stacked(state.own)
        state.keys = self._keys(state.rows, state.members, state.tools)
        state.cross = self._cross(state.rows)

    # Choosing a few tools among many

    def tool_keys(self, tools: Sequence[RenderedTool]) -> Tensor:
        heads = torch.empty(len(tools), self.config.width, device=self.no_tool.device, dtype=self.no_tool.dtype)
        order = sorted(range(len(tools)), key=lambda index: len(tools[index].card))
        for start in range(0, len(order), 64):
            rows = order[start : start + 64]
            pieces = PieceRows.of([tools[row].card for row in rows], [tools[row].card_cases for row in rows])
            pieces = to_device(pieces, heads.device)
            encoded, mask = self._encode(pieces, pieces.ids != 0, 1)[0], (pieces.ids != 0)[..., None]
            heads[torch.tensor(rows)] = ((encoded * mask).sum(1, dtype=torch.float32) / mask.sum(1)).to(heads.dtype)
        return self.key["tool"](heads)  # type: ignore[no-any-return]

    def request_keys(self, batch: Batch) -> Tensor:
        """A product is the score of the tool's label as an answer's first token, of a decoder that reads the request
        alone."""
        hidden: Tensor = self._advance(self.start(batch), batch.inputs[:, :1], batch.open_tool[:, :1])
        keys: Tensor = hidden * self.scale
        return keys


def _joined(query: Tensor, mask: Tensor, pairs: Sequence[Rows]) -> Rows:
    """Requests alone, then pairs."""
    Q = query.shape[1]
    A = max([1, *(group.arguments.shape[1] for group in pairs)])
    B, A, D = len(query), up(A, STEP), query.shape[2]
    first = query.new_zeros(B, A, dtype=torch.long)
    L = max([1, *(group.levels.shape[1] for group in pairs)])
    alone = Rows(query, F.pad(mask, (0, A)), query.new_zeros(B, A, D), first, first - 1, first.new_zeros(B, L))
    every = [alone]
    for group in pairs:
        length, more = group.query.shape[1], A - group.arguments.shape[1]
        said, marked = group.mask[:, :length], group.mask[:, length:]
        every.append(
            Rows(
                F.pad(group.query, (0, 0, 0, Q - length)),
                torch.cat([F.pad(said, (0, Q - length)), F.pad(marked, (0, more))], dim=1),
                F.pad(group.arguments, (0, 0, 0, more)),
                F.pad(group.first, (0, more)),
                F.pad(group.count, (0, more), value=-1),
                F.pad(group.levels, (0, L - group.levels.shape[1])),
            )
        )
    return Rows(*(torch.cat(part) for part in zip(*(vars(group).values() for group in every), strict=True)))


def _stacked(own: Sequence[Encoded]) -> Rows:
    """Rows of different sizes, padded."""
    fills = (0, 0, 0, -1, 0)
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


def _one(x: Tensor) -> Tensor:
    """Heads [..., H, S, d] to [..., S, H*d]."""
    return x.transpose(-3, -2).flatten(-2)


def _at(x: Tensor, row: Tensor, place: Tensor) -> Tensor:
    """[R, s, D] at rows and places [n]: [n, D]."""
    return F.embedding(row * x.shape[1] + place, x.flatten(0, 1))
