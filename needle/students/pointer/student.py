"""The pointer student: encodes the request and each tool by itself, then points at tools, arguments and values.

A bidirectional encoder reads the request and, apart from it, every distinct tool of the batch; a tool's encoding knows
nothing of its neighbours or its order, so it is computed once per batch, and once for ever in serving. A short causal
decoder attends to both and emits one distribution over everything that an answer may hold (`copying`), scattered into
[B, T, V], so that every loss and every teacher works. The decoder's input for a label is the encoding that the label
points at: names, order and number of tools play no part.

Legend: as in `pointer.batch`, and D width, H heads, d width of a head, n positions scored, V vocabulary.
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
    at_positions,
    attention,
    init_weights,
    mean_attention,
    working_precision,
)
from needle.students.batch import Batch
from needle.students.pointer.batch import PointerBatch
from needle.students.pointer.copying import Keys, aimed, join_copies, offered_scores, request_scores
from needle.students.pointer.encoder import Heads, PointerConfig, Reader
from needle.text.prompt import RenderedTool
from needle.text.tokenizer import ARGUMENT_LABELS, MARKERS, TOOL_LABELS

ANSWER, ARGUMENT = MARKERS.index("<answer>"), MARKERS.index("<arg>")
ROLES = ("begin", "text", "tool", "argument")
OUTCOMES = ("text", "request", "schema", "tool", "argument")

Cross = tuple[Tensor, Tensor, Tensor, Tensor]  # keys and values of request and tools, for one layer


@dataclass
class Memory:
    """What the decoder attends to. Tools are packed, with one empty slot in front for records without tools."""

    query: Tensor  # [B, Q, D]
    tools: Tensor  # [1+M, D]
    segments: Tensor  # [1+G, D] what stands for each tool and argument: its marker's encoding, or its tokens' mean
    asked: Tensor | None  # [B, D] the mean of each request, if that is how an answer begins
    owned: Tensor  # [B, S] rows of `tools` that each record may look at
    visible: Tensor  # [B, S] false on padding
    batch: PointerBatch
    projected: list[Tensor] | None = None  # [1+M, 2D] keys and values of `tools` for each layer, where they were kept

    def select(self, rows: Tensor) -> Memory:
        per_record = {name: getattr(self, name)[rows] for name in ("query", "owned", "visible")}
        asked = None if self.asked is None else self.asked[rows]
        return replace(self, **per_record, asked=asked, batch=self.batch.select(rows), projected=None)


@dataclass
class PointerState(State):
    memory: Memory
    keys: Keys
    cross: list[Cross]
    cache: list[tuple[Tensor, Tensor] | None]
    pointed: Tensor  # [B, n, Q] the scores of the request's positions behind each of the tokens that came last together
    sources: Tensor  # [B, n] where in the request these tokens were copied from, -1 for none
    position: int = 0

    def cut(self, count: int) -> None:
        if count:
            self.position -= count
            self.pointed, self.sources = self.pointed[:, :-count], self.sources[:, :-count]
            self.cache = [None if kv is None else (kv[0][:, :, :-count], kv[1][:, :, :-count]) for kv in self.cache]

    def copied_from(self, tokens: Tensor, step: int = -1) -> Tensor:
        """[B] where in the request `tokens` [B], chosen after the last tokens' `step`, are copied from: of their
        positions the likeliest; -1 for none."""
        query = self.memory.batch.requests.ids
        matches = (query == tokens[:, None]) & (tokens != 0)[:, None]
        best = self.pointed[:, step].masked_fill(~matches, -torch.inf).argmax(1)
        return torch.where(matches.any(1), best, -1)

    def confirms(self, token: int, step: int) -> bool:
        """Whether `token`, chosen after the last tokens' `step` in the only row, is copied from where the token fed
        after it was taken to be from."""
        source = self.copied_from(self.sources.new_tensor([token]), step)
        return bool(source == self.sources[0, step + 1])

    def select(self, rows: Tensor) -> None:
        self.memory, self.keys = self.memory.select(rows), self.keys.select(rows)
        self.pointed, self.sources = self.pointed[rows], self.sources[rows]
        self.cross = [(qk[rows], qv[rows], tk[rows], tv[rows]) for qk, qv, tk, tv in self.cross]
        self.cache = [None if kv is None else (kv[0][rows], kv[1][rows]) for kv in self.cache]


class DecoderBlock(nn.Module):
    """Attends to the answer so far, then to the request and the record's own tools side by side."""

    def __init__(self, config: PointerConfig) -> None:
        super().__init__()
        self.own, self.query, self.tools = (Heads(config.width, config.heads) for _ in range(3))
        self.mlp = SwiGLU(config.width, config.hidden)
        self.norm_own, self.norm_cross, self.norm_mlp = (nn.LayerNorm(config.width, bias=False) for _ in range(3))
        self.dropout = Dropout(config.dropout)

    def cross_keys(self, memory: Memory, projected: Tensor | None = None) -> Cross:
        """Tools are projected once for the batch, or were before, then dealt out to the records that offer them."""
        if projected is not None:
            keys, values = F.embedding(memory.owned, projected).chunk(2, dim=-1)
        else:
            parts = self.tools.kv_proj(memory.tools).chunk(2, dim=-1)
            keys, values = (F.embedding(memory.owned, part.contiguous()) for part in parts)
        return *self.query.keys_values(memory.query), self.tools.heads(keys), self.tools.heads(values)

    def forward(
        self, x: Tensor, rope: Rope, memory: Memory, cross: Cross, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        normed = self.norm_own(x)
        q = rope(self.own.queries(normed))
        k, v = self.own.keys_values(normed)
        k = rope(k)
        earlier = None
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
            if q.shape[2] > 1:
                seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=x.device)
                earlier = seen.tril(past[0].shape[2])[None, None]
        x = x + self.dropout(self.own.join(attention(q, k, v, earlier, causal=past is None)))
        normed = self.norm_cross(x)
        query_keys, query_values, tool_keys, tool_values = cross
        asked = memory.batch.requests.mask[:, None, None]
        read = attention(self.query.queries(normed), query_keys, query_values, asked)
        seen = attention(self.tools.queries(normed), tool_keys, tool_values, memory.visible[:, None, None])
        x = x + self.dropout(self.query.join(read)) + self.dropout(self.tools.join(seen))
        return x + self.dropout(self.mlp(self.norm_mlp(x))), (k, v)


class PointerStudent(Reader):
    def __init__(self, config: PointerConfig, vocabulary: int) -> None:
        super().__init__(config, vocabulary)
        self.scale = config.width**-0.5
        D = config.width
        self.decoder = nn.ModuleList([DecoderBlock(config) for _ in range(config.decoder_layers)])
        self.norm_decoder = nn.LayerNorm(D, bias=False)
        self.point_query, self.point_schema, self.point_tool, self.point_argument = _projections(D)
        self.key_query, self.key_schema, self.key_tool, self.key_argument = _projections(D)
        self.follow = nn.Linear(D, 1)  # how much likelier the request's next token is while one is being copied
        self.word_weight = nn.Parameter(torch.full((self.first_label,), 0.5)) if config.lexical else None
        self.word_gate = nn.Linear(D, 1) if config.lexical else None
        self.begin = nn.Linear(D, D, bias=False) if config.pool else None
        self.spell = nn.Linear(D, D, bias=False) if config.pool else None
        self.text_bias = nn.Parameter(torch.zeros(self.first_label)) if config.pool else None
        self.role = nn.Embedding(len(ROLES), D) if config.pool else None  # of the token that an answer has come to
        self.gate = nn.Linear(D, len(OUTCOMES)) if config.pool else None  # how likely each kind of outcome is
        init_weights(self, 2 * config.encoder_layers)

    # What a batch is read as

    def remember(self, batch: PointerBatch, cache: Any = None) -> Memory:
        """With a `cache`, for answers: tools that are in it aren't encoded again."""
        owned, visible = batch.offers.owned.clamp_min(0), batch.offers.owned >= 0
        if cache is not None:
            tools, *projected = self.cached_tools(batch, cache)
            query = self.encode_requests(batch)
            return Memory(query, tools, *self._sum_up(query, tools, batch), owned, visible, batch, projected)
        if self.training and self.config.blind:
            seeing = torch.rand(len(owned), 1, device=owned.device) >= self.config.blind
            visible = visible & (seeing | (owned == 0))
        query, tools = self.encode(batch)
        return Memory(query, tools, *self._sum_up(query, tools, batch), owned, visible, batch)

    def _sum_up(self, query: Tensor, tools: Tensor, batch: PointerBatch) -> tuple[Tensor, Tensor | None]:
        """[1+G, D] of tools and arguments, the empty slot in front, and [B, D] of the requests if they are pooled."""
        packed, requests = batch.tools, batch.requests
        if not self.config.pool:
            return torch.cat([tools[:1], tools[1:].index_select(0, packed.starts)]), None
        size = torch.bincount(packed.segment, minlength=len(packed.starts))
        total = torch.zeros(len(size), tools.shape[1], device=tools.device)
        total = total.index_add(0, packed.segment, tools[1:].float())
        asked = (query * requests.mask[..., None]).sum(1, dtype=torch.float32) / requests.mask.sum(1, keepdim=True)
        return torch.cat([tools[:1], (total / size[:, None]).to(tools.dtype)]), asked.to(query.dtype)

    def keys(self, memory: Memory) -> Keys:
        batch, segments = memory.batch, memory.segments[1:]
        schema = self.key_schema(memory.tools[1:].index_select(0, batch.copies.places))
        tools = self.key_tool(segments.index_select(0, batch.tools.tool_segment))
        words = self._shared_words(batch) if self.config.lexical else None
        return Keys(self.key_query(memory.query), schema, tools, self.key_argument(segments), words)

    def _shared_words(self, batch: PointerBatch) -> Tensor:
        """[B, U] the summed weights of the distinct tokens that a request and a tool have in common."""
        assert self.word_weight is not None
        asked, tools = batch.requests.ids, batch.tools
        said = torch.zeros(len(asked), self.first_label, device=asked.device).scatter_(1, asked, 1.0)
        said[:, 0] = 0  # padding
        written = torch.zeros(len(tools.heads), self.first_label, device=asked.device)
        written[tools.tool_of, tools.ids] = 1.0
        return (said * self.word_weight.float()) @ written.T

    # What an answer has come to

    def embed_inputs(self, tokens: Tensor, open_tool: Tensor, sources: Tensor, memory: Memory) -> Tensor:
        """[B, T] tokens to [B, T, D]. A label's input is the encoding that it points at; `open_tool` is the one after
        it.

        A token that stands in the request also brings the encoding of the position it was copied from.
        """
        tools = memory.batch.tools
        number = memory.batch.offers.tools.gather(1, open_tool.clamp_min(0)).clamp_min(0)
        argument = tokens - self.first_label - TOOL_LABELS
        is_tool, is_argument = (tokens >= self.first_label) & (argument < 0), argument >= 0
        place = torch.zeros_like(tokens)
        if tools.keys:
            place = torch.where(is_tool, tools.tool_segment[number] + 1, place)
            own = argument.clamp(0, tools.argument_segment.shape[1] - 1)[..., None]
            segment = tools.argument_segment[number].gather(2, own)[..., 0]
            place = torch.where(is_argument, segment + 1, place)
        pointed = memory.segments[place]
        plain = self.raised(self.embed(tokens.clamp_max(self.first_label - 1))) * self.config.width**0.5
        copied = memory.query.gather(1, sources.clamp_min(0)[..., None].expand(-1, -1, plain.shape[-1]))
        plain = plain + copied.to(plain.dtype) * (sources >= 0)[..., None]
        if self.begin is not None and memory.asked is not None:
            plain = plain + self.begin(memory.asked)[:, None] * (tokens == ANSWER)[..., None]
        x = torch.where((is_tool | is_argument)[..., None], pointed.to(plain.dtype), plain)
        if self.role is not None:
            x = x + self.role(torch.where(is_tool, 2, torch.where(is_argument, 3, (tokens != ANSWER).long())))
        return working_precision(self.dropout(x + self.raised(self.kind.weight[2])))

    # What comes next

    def distribution(
        self,
        hidden: Tensor,
        copied: Tensor,
        open_tool: Tensor,
        batch: PointerBatch,
        keys: Keys,
        wanted: Tensor | None = None,
        aims: Tensor | None = None,
    ) -> Tensor:
        """[B, T, D] and the scores of what can be copied (`_copy_scores`) to scores [B, T, V] in float32; a softmax
        makes them one distribution over everything.

        With `wanted` [n] flat positions, [n, V]. With `aims` [B, T] a token counts only where it is to be copied from.
        """
        B, T, _ = hidden.shape
        gates = self._gates(hidden)
        labels = self._label_scores(hidden, open_tool, batch, keys, gates)
        row = torch.arange(B, device=hidden.device)[:, None].expand(B, T)
        positions = torch.arange(B * T, device=hidden.device) if wanted is None else wanted
        hidden, copied, labels, gates, row = (at_positions(x, positions) for x in (hidden, copied, labels, gates, row))
        text = self._text_scores(hidden if self.spell is None else self.spell(hidden)) + gates[:, :1]
        candidates, slots = batch.copies.candidates[row], batch.copies.slots[row]  # [n, J], [n, Q+N]
        if aims is not None:
            slots = aimed(slots, batch.requests.ids[row], at_positions(aims, positions))
        scores = join_copies(text, labels, copied, candidates, slots)
        return scores.view(B, T, -1) if wanted is None else scores

    def _text_scores(self, hidden: Tensor) -> Tensor:
        """[n, D] to the scores of the vocabulary, [n, first label]."""
        table = self.embed.weight
        if torch.is_grad_enabled() or table.dtype == torch.float32:
            return F.linear(hidden, table, self.text_bias)
        rows = len(hidden)  # the other way round takes half to two thirds of the time, but not for a single row
        wide = hidden.expand(2, -1) if rows == 1 else hidden
        scores = (table @ wide.to(table.dtype).T)[:, :rows].T.to(torch.float32, memory_format=torch.contiguous_format)
        return scores if self.text_bias is None else scores + self.text_bias

    def _gates(self, hidden: Tensor) -> Tensor:
        """[B, T, D] to how likely each of the `OUTCOMES` is, [B, T, 5]."""
        return hidden.new_zeros(*hidden.shape[:2], len(OUTCOMES)) if self.gate is None else self.gate(hidden)

    def _copy_scores(self, hidden: Tensor, sources: Tensor, batch: PointerBatch, keys: Keys) -> Tensor:
        """[B, T, Q+N] for every position of the request and every name and enum member of the record's tools."""
        gates = self._gates(hidden)
        query = (self.point_query(hidden) @ keys.query.transpose(1, 2)).float() * self.scale
        query = request_scores(query, self.follow(hidden).float(), sources, batch.requests, gates[..., 1:2].float())
        if not batch.copies.offered.shape[1]:
            return query
        every = self.point_schema(hidden) @ keys.schema.T  # [B, T, C]
        schema = offered_scores(every, self.scale, batch.copies, gates[..., 2:3].float())
        return torch.cat([query, schema], dim=-1)

    def _label_scores(
        self, hidden: Tensor, open_tool: Tensor, batch: PointerBatch, keys: Keys, gates: Tensor
    ) -> Tensor:
        """[B, T, labels]: the record's tools, then the open tool's arguments; -inf on labels that the record lacks."""
        offered = batch.offers.tools
        if not batch.tools.keys:
            size = TOOL_LABELS + ARGUMENT_LABELS
            return hidden.new_full((*hidden.shape[:2], size), -torch.inf, dtype=torch.float32)
        every_tool = (self.point_tool(hidden) @ keys.tools.T).float() * self.scale + gates[..., 3:4].float()
        if self.word_gate is not None and keys.words is not None:
            every_tool = every_tool + (1 + self.word_gate(hidden).float()) * keys.words[:, None]
        index = offered[:, None].expand(-1, hidden.shape[1], -1)
        tools = every_tool.gather(2, index.clamp_min(0)).masked_fill(index < 0, -torch.inf)
        every_argument = self.point_argument(hidden) @ keys.arguments.T
        number = offered.gather(1, open_tool.clamp_min(0)).clamp_min(0)
        own = batch.tools.argument_segment[number]
        missing = (open_tool[..., None] < 0) | (own < 0)
        arguments = every_argument.gather(2, own.clamp_min(0)).float() * self.scale + gates[..., 4:].float()
        arguments = arguments.masked_fill(missing, -torch.inf)
        pairs = ((tools, TOOL_LABELS), (arguments, ARGUMENT_LABELS))
        return torch.cat([F.pad(part, (0, size - part.shape[-1]), value=-torch.inf) for part, size in pairs], dim=-1)

    @property
    def traced(self) -> tuple[int, int]:
        return len(self.decoder), self.config.width

    def forward(self, batch: Batch, trace: Trace | None = None, wanted: Tensor | None = None) -> Tensor:
        assert isinstance(batch, PointerBatch), "the pointer student reads requests and tools apart"
        memory = self.remember(batch)
        sources = batch.requests.sources
        x = self.embed_inputs(batch.inputs, batch.open_tool, sources, memory)
        rope = Rope.at(torch.arange(x.shape[1], device=x.device), self.head_width, self.config.rope_theta)
        for block in self.decoder:
            cross = block.cross_keys(memory)  # type: ignore[operator]
            if trace is not None and trace.attend:
                read = block.query.queries(block.norm_cross(x))  # type: ignore[operator,union-attr]
                trace.attention.append(mean_attention(read, cross[0], batch.requests.mask[:, None, None]))
            x, _ = self.run(block, x, rope, memory, cross, None)
            if trace is not None:
                trace.hidden.append(x)
        hidden, keys = self.norm_decoder(x), self.keys(memory)
        copied = self._copy_scores(hidden, sources, batch, keys)
        aims = batch.requests.aims if self.training else None
        return self.distribution(hidden, copied, batch.open_tool, batch, keys, wanted, aims)

    # Answering, step by step

    def start(self, batch: Batch, cache: Any = None) -> PointerState:
        assert isinstance(batch, PointerBatch), "the pointer student reads requests and tools apart"
        memory = self.remember(batch, cache)
        projected: Sequence[Tensor | None] = memory.projected or [None] * len(self.decoder)
        cross = [block.cross_keys(memory, own) for block, own in zip(self.decoder, projected, strict=True)]  # type: ignore[operator]
        query = batch.requests.ids
        nothing = torch.zeros_like(query[:, None], dtype=torch.float32), torch.full_like(query[:, :1], -1)
        return PointerState(memory, self.keys(memory), cross, [None] * len(self.decoder), *nothing)

    def step(self, state: PointerState, tokens: Tensor, open_tool: Tensor) -> Tensor:  # type: ignore[override]
        batch = state.memory.batch
        hidden = self._advance(state, tokens, open_tool)
        copied = self._copy_scores(hidden, state.sources, batch, state.keys)
        state.pointed = copied[..., : batch.requests.ids.shape[1]]
        return self.distribution(hidden, copied, open_tool, batch, state.keys)

    def _advance(self, state: PointerState, tokens: Tensor, open_tool: Tensor) -> Tensor:
        """Appends `tokens` [B, n]: the decoder's hidden states [B, n, D]."""
        n = tokens.shape[1]
        first = state.copied_from(tokens[:, 0])[:, None]
        state.sources = torch.where(first >= 0, first + torch.arange(n, device=tokens.device), -1)
        x = self.embed_inputs(tokens, open_tool, state.sources, state.memory)
        places = torch.arange(state.position, state.position + n, device=x.device)
        rope = Rope.at(places, self.head_width, self.config.rope_theta)
        for index, block in enumerate(self.decoder):
            x, state.cache[index] = block(x, rope, state.memory, state.cross[index], state.cache[index])
        state.position += n
        return self.norm_decoder(x)  # type: ignore[no-any-return]

    def draft(self, state: PointerState, token: int, most: int) -> list[int]:  # type: ignore[override]
        """What follows `token` in the request, if it is copied from there."""
        if token >= self.first_label or token == ANSWER:
            return []
        query = state.memory.batch.requests.ids
        source = int(state.copied_from(torch.tensor([token], device=query.device)))
        return query[0, source + 1 : source + 1 + most].tolist() if source >= 0 else []

    def sources(self, state: PointerState) -> list[list[int]]:  # type: ignore[override]
        return state.sources.tolist()  # type: ignore[no-any-return]

    # Choosing a few tools among many

    def tool_keys(self, tools: Sequence[RenderedTool]) -> Tensor:
        heads = torch.empty(len(tools), self.config.width, device=self.no_tool.device, dtype=self.no_tool.dtype)
        for rows, ids, encoded in self.encode_tools([tool.ids for tool in tools]):
            # Name and description: what stands before the first argument.
            named = (ids != 0) & ((ids == ARGUMENT).cumsum(1) == 0)
            mean = (encoded * named[..., None]).sum(1, dtype=torch.float32) / named.sum(1, keepdim=True)
            heads[rows] = (mean if self.config.pool else encoded[:, 0]).to(heads.dtype)
        return self.key_tool(heads)  # type: ignore[no-any-return]

    def request_keys(self, batch: Batch) -> Tensor:
        """A product is the score of the tool's label as an answer's first token, of a decoder that reads the request
        alone."""
        hidden = self._advance(self.start(batch), batch.inputs[:, :1], batch.open_tool[:, :1])
        return self.point_tool(hidden)[:, 0] * self.scale  # type: ignore[no-any-return]


def _projections(width: int) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
    first, second, third, fourth = (nn.Linear(width, width, bias=False) for _ in range(4))
    return first, second, third, fourth
