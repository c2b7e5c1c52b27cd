"""The pointer student: encodes the request and each tool by itself, then points at tools, arguments and values.

A bidirectional encoder reads the request and, apart from it, every distinct tool of the batch; a tool's encoding knows
nothing of its neighbours or its order, so it is computed once per batch, and once for ever in serving. A short causal
decoder attends to both and emits one distribution over: the vocabulary, the request's tokens, the names and enum
members of its tools, its tools, and the arguments of the open tool. Probabilities of equal tokens add up, and the sum
is scattered into [B, T, V], so that every loss and every teacher works. The decoder's input for a label is the encoding
that the label points at: names, order and number of tools play no part.

Legend: as in `batch`, and D width, H heads, d width of a head, J joined outcomes before the scatter.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from needle.students.base import (
    Dropout,
    LayerNorm,
    Rope,
    Student,
    Trace,
    at_positions,
    init_weights,
    mean_attention,
    working_precision,
)
from needle.students.batch import Batch, Split
from needle.students.pointer_parts import (
    BertBlock,
    DecoderBlock,
    EncoderBlock,
    Keys,
    Memory,
    PointerConfig,
    PointerState,
    by_length,
)
from needle.text.tokenizer import ARGUMENT_LABELS, MARKERS, TOOL_LABELS

ANSWER, ARGUMENT = MARKERS.index("<answer>"), MARKERS.index("<arg>")
START = MARKERS.index("<query>")  # what the encoder reads in front of a request; a tool begins with its marker
ROLES = ("begin", "text", "tool", "argument")
OUTCOMES = ("text", "request", "schema", "tool", "argument")
FLOOR = 1e-30  # beside the likeliest outcome; a probability that underflows keeps a finite log


class _Join(torch.autograd.Function):
    """[N, V] of float32: `text` and `labels` side by side, `joined` over the `candidates` among them. One pass over
    memory each way."""

    @staticmethod
    def forward(ctx: Any, text: Tensor, labels: Tensor, joined: Tensor, candidates: Tensor) -> Tensor:
        ctx.save_for_backward(candidates)
        ctx.split, ctx.dtype = text.shape[1], text.dtype
        scores = text.new_empty(len(text), text.shape[1] + labels.shape[1], dtype=torch.float32)
        scores[:, : ctx.split], scores[:, ctx.split :] = text, labels
        return scores.scatter_(1, candidates, joined)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        (candidates,) = ctx.saved_tensors
        text = gradient[:, : ctx.split].to(ctx.dtype, copy=True).scatter_(1, candidates, 0.0)
        return text, gradient[:, ctx.split :], gradient.gather(1, candidates), None


class PointerStudent(Student):
    layout = "split"

    def __init__(self, config: PointerConfig, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        self.head_width = config.width // config.heads
        self.scale = config.width**-0.5
        self.first_label = vocabulary - TOOL_LABELS - ARGUMENT_LABELS
        D = config.width
        self.embed = nn.Embedding(self.first_label, D)
        self.kind = nn.Embedding(3, D)  # request, tool, answer
        self.no_tool = nn.Parameter(torch.zeros(D))  # the empty slot
        self.encoder: nn.ModuleList
        self.position: nn.Embedding | None = None
        if config.encoder is None:
            self.encoder = nn.ModuleList([EncoderBlock(config) for _ in range(config.encoder_layers)])
            self.norm_encoder = LayerNorm(D)
        else:
            self.encoder = nn.ModuleList([BertBlock(config) for _ in range(config.encoder_layers)])
            self.norm_encoder = LayerNorm(D, 1e-12, bias=True)  # BERT's of the input: its layers end in one
            self.position = nn.Embedding(config.positions, D)
            self.pretrained = ("embed.", "kind.", "position.", "norm_encoder.", "encoder.")
        self.decoder = nn.ModuleList([DecoderBlock(config) for _ in range(config.decoder_layers)])
        self.norm_decoder = LayerNorm(D)
        self.point_query, self.point_schema, self.point_tool, self.point_argument = (
            nn.Linear(D, D, bias=False) for _ in range(4)
        )
        self.key_query, self.key_schema, self.key_tool, self.key_argument = (
            nn.Linear(D, D, bias=False) for _ in range(4)
        )
        self.follow = nn.Linear(D, 1)  # how much likelier the request's next token is while one is being copied
        self.word_weight = nn.Parameter(torch.full((self.first_label,), 0.5)) if config.lexical else None
        self.word_gate = nn.Linear(D, 1) if config.lexical else None
        self.begin = nn.Linear(D, D, bias=False) if config.pool else None
        self.spell = nn.Linear(D, D, bias=False) if config.pool else None
        self.text_bias = nn.Parameter(torch.zeros(self.first_label)) if config.pool else None
        self.role = nn.Embedding(len(ROLES), D) if config.pool else None  # of the token that an answer has come to
        self.gate = nn.Linear(D, len(OUTCOMES)) if config.pool else None  # how likely each kind of outcome is
        self.dropout = Dropout(config.dropout)
        init_weights(self, 2 * config.encoder_layers)

    # Encoding

    def encode_rows(self, ids: Tensor, mask: Tensor, kinds: Tensor) -> Tensor:
        """[R, S] ids of requests (kind 0, behind `<query>`) and tools (kind 1) to [R, S, D]."""
        x = self.embed(ids)
        if self.training and self.config.token_dropout:
            kept = (torch.rand(ids.shape, device=ids.device) >= self.config.token_dropout) | (kinds[:, None] == 1)
            x = x * kept[..., None]
        places, rope = torch.arange(ids.shape[1], device=ids.device), None
        if self.position is None:
            rope = Rope.at(places, self.head_width, self.config.rope_theta)
            x = x * self.config.width**0.5 + self.kind(kinds)[:, None]
        else:  # what stands beyond the last position that the encoder learned is read as if it stood there
            x = self.norm_encoder(
                x + self.kind(kinds)[:, None] + self.position(places.clamp_max(self.config.positions - 1))
            )
        x = working_precision(self.dropout(x))
        for block in self.encoder:
            x = self.run(block, x, rope, mask[:, None, None])
        return self._raised(x if self.position is not None else self.norm_encoder(x))

    def mix(self, dtype: torch.dtype) -> None:
        """What reads and the vocabulary in `dtype`, what decodes in float32.

        Encoding multiplies many rows at once, which a CPU does faster in bfloat16. A step of decoding one answer
        multiplies a row, or five with guesses, which takes about half the time in float32. The output layer is bound by
        memory, so it stays with the vocabulary.
        """
        self.float()
        for part in (self.embed, self.kind, self.encoder, self.norm_encoder, self.position):
            if part is not None:
                part.to(dtype)

    def _raised(self, x: Tensor) -> Tensor:
        """`x` of the encoder or the vocabulary, in the precision of what decodes, if they are held in two (`mix`)."""
        return x if self.embed.weight.dtype == self.no_tool.dtype else x.to(self.no_tool.dtype)

    def _encode_chunk(self, ids: Tensor, kinds: Tensor) -> Tensor:
        """`encode_rows`, in training without the gradient of all but a drawn share of the tools."""
        share = self.config.tool_gradient
        still = (
            (kinds == 1) & (torch.rand(kinds.shape, device=kinds.device) >= share)
            if self.training and share < 1
            else None
        )
        if still is None or not still.any():
            return self.encode_rows(ids, ids != 0, kinds)
        with torch.no_grad():
            quiet = self.encode_rows(ids[still], ids[still] != 0, kinds[still])
        if still.all():
            return quiet
        loud = self.encode_rows(ids[~still], ids[~still] != 0, kinds[~still])
        order = torch.cat([still.nonzero()[:, 0], (~still).nonzero()[:, 0]]).argsort()
        return torch.cat([quiet, loud]).index_select(0, order)

    def encode_requests(self, split: Split) -> Tensor:
        """[B, Q, D] of the requests by themselves."""
        ids, mask = F.pad(split.query, (1, 0), value=START), F.pad(split.query_mask, (1, 0), value=True)
        return self.encode_rows(ids, mask, torch.zeros_like(ids[:, 0]))[:, 1:]

    def encode(self, split: Split) -> tuple[Tensor, Tensor]:
        """[B, Q, D] of the requests and [1+M, D] of their tools, the empty slot in front."""
        rows = torch.cat(
            [self._encode_chunk(ids, kinds).flatten(0, 1) for ids, kinds in zip(split.chunks, split.kinds, strict=True)]
        )
        tools = torch.cat([self.no_tool[None].to(rows.dtype), rows.index_select(0, split.pack)])
        return F.embedding(split.unpack, rows), tools

    def _kept_tools(self, split: Split, cache: OrderedDict[str, tuple[Tensor, ...]]) -> list[Tensor]:
        """[1+M, D] of the tools, then [1+M, 2D] for each layer of the decoder; `cache` keeps all these by a tool's
        content."""
        found = [self._project(self.no_tool[None])]
        sizes = torch.bincount(split.tool_of, minlength=len(split.keys)).tolist() if split.keys else []
        places = [slice(head, head + size) for head, size in zip(split.heads.tolist(), sizes, strict=True)]
        missing = [number for number, key in enumerate(split.keys) if key not in cache]
        for rows, _, encoded in self._encode_tools([split.tool_ids[places[number]].tolist() for number in missing]):
            for row, encoding in zip(rows, encoded, strict=True):
                number = missing[row]
                cache[split.keys[number]] = self._project(encoding[: sizes[number]].clone())
        for key in split.keys:
            cache.move_to_end(key)
            found.append(cache[key])
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    def _encode_tools(self, tools: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Tools by themselves, those of similar length together: which of them, their ids [n, S] and encodings [n, S,
        D]."""
        for rows, ids in by_length(tools, self.no_tool.device):
            yield rows, ids, self.encode_rows(ids, ids != 0, torch.ones_like(ids[:, 0]))

    def _project(self, encoding: Tensor) -> tuple[Tensor, ...]:
        return encoding, *(block.tools.kv_proj(encoding) for block in self.decoder)  # type: ignore[operator,union-attr]

    def remember(self, batch: Batch, cache: OrderedDict[str, tuple[Tensor, ...]] | None = None) -> Memory:
        split = batch.split
        assert split is not None, "the pointer student reads the split layout"
        owned, visible = split.owned.clamp_min(0), split.owned >= 0
        if cache is None:
            if self.training and self.config.blind:
                seeing = torch.rand(len(owned), 1, device=owned.device) >= self.config.blind
                visible = visible & (seeing | (owned == 0))
            query, tools = self.encode(split)
            return Memory(query, tools, *self._sum_up(query, tools, split), owned, visible, split)
        tools, *projected = self._kept_tools(split, cache)
        query = self.encode_requests(split)
        return Memory(query, tools, *self._sum_up(query, tools, split), owned, visible, split, projected)

    def _sum_up(self, query: Tensor, tools: Tensor, split: Split) -> tuple[Tensor, Tensor | None]:
        """[1+G, D] of tools and arguments, the empty slot in front, and [B, D] of the requests if they are pooled."""
        if not self.config.pool:
            return torch.cat([tools[:1], tools[1:].index_select(0, split.starts)]), None
        size = torch.bincount(split.segment, minlength=len(split.starts))
        total = torch.zeros(len(size), tools.shape[1], device=tools.device).index_add(
            0, split.segment, tools[1:].float()
        )
        asked = (query * split.query_mask[..., None]).sum(1, dtype=torch.float32) / split.query_mask.sum(
            1, keepdim=True
        )
        return torch.cat([tools[:1], (total / size[:, None]).to(tools.dtype)]), asked.to(query.dtype)

    def keys(self, memory: Memory) -> Keys:
        split, segments = memory.split, memory.segments[1:]
        schema, tools = (
            self.key_schema(memory.tools[1:].index_select(0, split.copyable)),
            self.key_tool(segments.index_select(0, split.tool_segment)),
        )
        return Keys(
            self.key_query(memory.query),
            schema,
            tools,
            self.key_argument(segments),
            self._shared_words(split) if self.config.lexical else None,
        )

    # Decoding

    def embed_inputs(self, tokens: Tensor, open_tool: Tensor, sources: Tensor, memory: Memory) -> Tensor:
        """[B, T] tokens to [B, T, D]. A label's input is the encoding that it points at; `open_tool` is the one after
        it.

        A token that stands in the request also brings the encoding of the position it was copied from.
        """
        split = memory.split
        number = split.tools.gather(1, open_tool.clamp_min(0)).clamp_min(0)
        argument = tokens - self.first_label - TOOL_LABELS
        is_tool, is_argument = (tokens >= self.first_label) & (argument < 0), argument >= 0
        place = torch.zeros_like(tokens)
        if split.keys:
            place = torch.where(is_tool, split.tool_segment[number] + 1, place)
            segment = split.argument_segment[number].gather(
                2, argument.clamp(0, split.argument_segment.shape[1] - 1)[..., None]
            )[..., 0]
            place = torch.where(is_argument, segment + 1, place)
        pointed = memory.segments[place]
        plain = self._raised(self.embed(tokens.clamp_max(self.first_label - 1))) * self.config.width**0.5
        copied = memory.query.gather(1, sources.clamp_min(0)[..., None].expand(-1, -1, plain.shape[-1]))
        plain = plain + copied.to(plain.dtype) * (sources >= 0)[..., None]
        if self.begin is not None and memory.asked is not None:
            plain = plain + self.begin(memory.asked)[:, None] * (tokens == ANSWER)[..., None]
        x = torch.where((is_tool | is_argument)[..., None], pointed.to(plain.dtype), plain)
        if self.role is not None:
            x = x + self.role(torch.where(is_tool, 2, torch.where(is_argument, 3, (tokens != ANSWER).long())))
        return working_precision(self.dropout(x + self._raised(self.kind.weight[2])))

    def distribution(
        self,
        hidden: Tensor,
        copied: Tensor,
        open_tool: Tensor,
        split: Split,
        keys: Keys,
        wanted: Tensor | None = None,
        aims: Tensor | None = None,
    ) -> Tensor:
        """[B, T, D] and the scores of what can be copied (`_copy_scores`) to scores [B, T, V] in float32; a softmax
        makes them one distribution over everything.

        Only the columns of tokens that can be copied differ from a plain output layer, so only those are touched. With
        `wanted` [N] flat positions, [N, V]. With `aims` [B, T] a token counts only where it is to be copied from.
        """
        B, T, _ = hidden.shape
        gates = self._gates(hidden)
        labels = self._label_scores(hidden, open_tool, split, keys, gates)
        row = torch.arange(B, device=hidden.device)
        positions = torch.arange(B * T, device=hidden.device) if wanted is None else wanted
        hidden, copied, labels, gates, row = (
            at_positions(x, positions) for x in (hidden, copied, labels, gates, row[:, None].expand(B, T))
        )
        text = self._text_scores(hidden if self.spell is None else self.spell(hidden)) + gates[:, :1]
        candidates, slots = split.candidates[row], split.slots[row]  # [N, J], [N, Q+N]
        if aims is not None:
            slots = _aimed(slots, split.query[row], at_positions(aims, positions))
        spelled = text.gather(1, candidates).float()
        top = torch.maximum(spelled.amax(-1, keepdim=True), copied.amax(-1, keepdim=True)).detach()
        mass = (spelled - top).exp().scatter_add(1, slots, (copied - top).exp())
        joined = (mass.clamp_min(FLOOR).log() + top).masked_fill(
            candidates == 0, -torch.inf
        )  # <pad> is never an answer
        scores: Tensor = _Join.apply(text, labels, joined, candidates)  # type: ignore[no-untyped-call]
        return scores.view(B, T, -1) if wanted is None else scores

    def _text_scores(self, hidden: Tensor) -> Tensor:
        """[N, D] to the scores of the vocabulary, [N, first label]."""
        if torch.is_grad_enabled() or self.embed.weight.dtype == torch.float32:
            return F.linear(hidden, self.embed.weight, self.text_bias)
        rows = len(hidden)  # the other way round takes half to two thirds of the time, but not for a single row
        wide = hidden.expand(2, -1) if rows == 1 else hidden
        scores = (self.embed.weight @ wide.to(self.embed.weight.dtype).T)[:, :rows].T.to(
            torch.float32, memory_format=torch.contiguous_format
        )
        return scores if self.text_bias is None else scores + self.text_bias

    def _gates(self, hidden: Tensor) -> Tensor:
        """[B, T, D] to how likely each of the `OUTCOMES` is, [B, T, 5]."""
        return hidden.new_zeros(*hidden.shape[:2], len(OUTCOMES)) if self.gate is None else self.gate(hidden)

    def _copy_scores(self, hidden: Tensor, sources: Tensor, split: Split, keys: Keys) -> Tensor:
        """[B, T, Q+N] for every position of the request and every name and enum member of the record's tools."""
        gates = self._gates(hidden)
        query = (self.point_query(hidden) @ keys.query.transpose(1, 2)).float() * self.scale
        following = torch.arange(query.shape[-1], device=query.device) == (sources + 1)[..., None]
        query = query + self.follow(hidden).float() * (following & (sources >= 0)[..., None]) + gates[..., 1:2].float()
        query = query.masked_fill(~split.query_mask[:, None], -torch.inf)
        if not split.copied.shape[1]:
            return query  # type: ignore[no-any-return]
        every = self.point_schema(hidden) @ keys.schema.T  # [B, T, C]
        index = split.copied[:, None].expand(-1, hidden.shape[1], -1)
        schema = every.gather(2, index.clamp_min(0)).float() * self.scale + gates[..., 2:3].float()
        return torch.cat([query, schema.masked_fill(index < 0, -torch.inf)], dim=-1)

    def _label_scores(self, hidden: Tensor, open_tool: Tensor, split: Split, keys: Keys, gates: Tensor) -> Tensor:
        """[B, T, labels]: the record's tools, then the open tool's arguments; -inf on labels that the record lacks."""
        if not split.keys:
            return hidden.new_full((*hidden.shape[:2], TOOL_LABELS + ARGUMENT_LABELS), -torch.inf, dtype=torch.float32)
        every_tool = (self.point_tool(hidden) @ keys.tools.T).float() * self.scale + gates[
            ..., 3:4
        ].float()  # [B, T, U]
        if self.word_gate is not None and keys.words is not None:
            every_tool = every_tool + (1 + self.word_gate(hidden).float()) * keys.words[:, None]
        index = split.tools[:, None].expand(-1, hidden.shape[1], -1)
        tools = every_tool.gather(2, index.clamp_min(0)).masked_fill(index < 0, -torch.inf)
        every_argument = self.point_argument(hidden) @ keys.arguments.T
        number = split.tools.gather(1, open_tool.clamp_min(0)).clamp_min(0)
        own = split.argument_segment[number]
        missing = (open_tool[..., None] < 0) | (own < 0)
        arguments = (
            every_argument.gather(2, own.clamp_min(0)).float() * self.scale + gates[..., 4:].float()
        ).masked_fill(missing, -torch.inf)
        padded = (
            F.pad(part, (0, size - part.shape[-1]), value=-torch.inf)
            for part, size in ((tools, TOOL_LABELS), (arguments, ARGUMENT_LABELS))
        )
        return torch.cat(list(padded), dim=-1)

    def _shared_words(self, split: Split) -> Tensor:
        """[B, U] the summed weights of the distinct tokens that a request and a tool have in common."""
        assert self.word_weight is not None
        said = torch.zeros(len(split.query), self.first_label, device=split.query.device).scatter_(1, split.query, 1.0)
        said[:, 0] = 0  # padding
        written = torch.zeros(len(split.heads), self.first_label, device=split.query.device)
        written[split.tool_of, split.tool_ids] = 1.0
        return (said * self.word_weight.float()) @ written.T

    @property
    def traced(self) -> tuple[int, int]:
        return len(self.decoder), self.config.width

    def forward(self, batch: Batch, trace: Trace | None = None, wanted: Tensor | None = None) -> Tensor:
        memory = self.remember(batch)
        sources = memory.split.sources
        x = self.embed_inputs(batch.inputs, batch.open_tool, sources, memory)
        rope = Rope.at(torch.arange(x.shape[1], device=x.device), self.head_width, self.config.rope_theta)
        for block in self.decoder:
            cross = block.cross_keys(memory)  # type: ignore[operator]
            if trace is not None and trace.attend:
                read = block.query.queries(block.norm_cross(x))  # type: ignore[operator,union-attr]
                trace.attention.append(mean_attention(read, cross[0], memory.split.query_mask[:, None, None]))
            x, _ = self.run(block, x, rope, memory, cross, None)
            if trace is not None:
                trace.hidden.append(x)
        hidden, keys = self.norm_decoder(x), self.keys(memory)
        copied = self._copy_scores(hidden, sources, memory.split, keys)
        return self.distribution(
            hidden, copied, batch.open_tool, memory.split, keys, wanted, memory.split.aims if self.training else None
        )

    def start(self, batch: Batch, cache: Any = None) -> PointerState:
        memory = self.remember(batch, cache)
        cross = [
            block.cross_keys(memory, memory.projected and memory.projected[index])
            for index, block in enumerate(self.decoder)
        ]  # type: ignore[operator]
        query = memory.split.query
        return PointerState(
            memory,
            self.keys(memory),
            cross,
            [None] * len(self.decoder),
            torch.zeros_like(query[:, None], dtype=torch.float32),
            torch.full_like(query[:, :1], -1),
        )

    def tool_keys(self, tools: Sequence[Sequence[int]]) -> Tensor:
        """[n, D] of tools given as token ids: what `request_keys` of fitting requests are close to."""
        heads = torch.empty(len(tools), self.config.width, device=self.no_tool.device, dtype=self.no_tool.dtype)
        for rows, ids, encoded in self._encode_tools(tools):
            named = (ids != 0) & (
                (ids == ARGUMENT).cumsum(1) == 0
            )  # name and description: what stands before the first argument
            mean = (encoded * named[..., None]).sum(1, dtype=torch.float32) / named.sum(1, keepdim=True)
            heads[rows] = (mean if self.config.pool else encoded[:, 0]).to(heads.dtype)
        return self.key_tool(heads)  # type: ignore[no-any-return]

    def request_keys(self, batch: Batch) -> Tensor:
        """[B, D] of requests without tools: their products with `tool_keys` say how well each tool fits, each by
        itself.

        A product is the score of the tool's label as an answer's first token, of a decoder that reads the request
        alone.
        """
        hidden = self._advance(self.start(batch), batch.inputs[:, :1], batch.open_tool[:, :1])
        return self.point_tool(hidden)[:, 0] * self.scale  # type: ignore[no-any-return]

    def step(self, state: PointerState, tokens: Tensor, open_tool: Tensor) -> Tensor:  # type: ignore[override]
        return self.extend(state, tokens[:, None], open_tool[:, None])[:, 0]

    def extend(self, state: PointerState, tokens: Tensor, open_tool: Tensor) -> Tensor:
        """`step` for several tokens at once, [B, n] to [B, n, V]: one, then what follows it in the request;
        `PointerState.cut` takes back what proves wrong."""
        split = state.memory.split
        hidden = self._advance(state, tokens, open_tool)
        copied = self._copy_scores(hidden, state.sources, split, state.keys)
        state.pointed = copied[..., : split.query.shape[1]]
        return self.distribution(hidden, copied, open_tool, split, state.keys)

    def _advance(self, state: PointerState, tokens: Tensor, open_tool: Tensor) -> Tensor:
        """Appends `tokens` [B, n]: the decoder's hidden states [B, n, D]."""
        n = tokens.shape[1]
        first = state.copied_from(tokens[:, 0])[:, None]
        state.sources = torch.where(first >= 0, first + torch.arange(n, device=tokens.device), -1)
        x = self.embed_inputs(tokens, open_tool, state.sources, state.memory)
        rope = Rope.at(
            torch.arange(state.position, state.position + n, device=x.device), self.head_width, self.config.rope_theta
        )
        for index, block in enumerate(self.decoder):
            x, state.cache[index] = block(x, rope, state.memory, state.cross[index], state.cache[index])
        state.position += n
        return self.norm_decoder(x)  # type: ignore[no-any-return]

    def guess(self, state: PointerState, token: int, most: int) -> list[int]:
        """What may follow `token` in the answer of the only row: what follows it in the request, if it is copied from
        there."""
        query = state.memory.split.query
        source = int(state.copied_from(torch.tensor([token], device=query.device)))
        return query[0, source + 1 : source + 1 + most].tolist() if source >= 0 else []


def _aimed(slots: Tensor, query: Tensor, aims: Tensor) -> Tensor:
    """The slots [N, Q+N] of what may be copied, in which the right token elsewhere in the request counts as `<query>`,
    which no answer holds.

    `query` [N, Q], and `aims` [N], its only right positions, -1 where there is none. So a student learns to point at a
    value, not at any token like it.
    """
    aimed = query.gather(1, aims.clamp_min(0)[:, None])
    wrong = (
        (query == aimed) & (torch.arange(query.shape[1], device=query.device) != aims[:, None]) & (aims >= 0)[:, None]
    )
    return torch.cat([slots[:, : query.shape[1]].masked_fill(wrong, 0), slots[:, query.shape[1] :]], dim=1)
