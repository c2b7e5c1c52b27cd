"""What the pointer student reads: requests and tools apart, each distinct tool of a batch once.

Legend: B records, T target positions, Q request positions, U distinct tools of the batch, M packed positions of all
those tools, K tools of one record, A arguments of one tool, C copyable schema positions, G segments: a tool's name and
description are one, each of its arguments another; N copyable positions of one record's tools, J tokens that a record
may copy, S positions of one record's tools and the empty slot.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from needle.students.batch import Batch, pad
from needle.text.prompt import Example, RenderedTool
from needle.text.tokenizer import TOOL_LABELS, TextTokenizer

MAX_CHUNKS = 10  # groups of requests and tools of similar length that are encoded together, to waste less on padding
MIN_ROWS = 8  # of such a group


class Distinct:
    """The distinct tools of a batch, the shortest first, and where each stands when they are packed into one row."""

    def __init__(self, examples: Sequence[Example]) -> None:
        found: dict[str, RenderedTool] = {}
        for example in examples:
            for tool in example.tools:
                found.setdefault(tool.key, tool)
        self.tools = sorted(found.values(), key=lambda tool: len(tool.ids))
        self.number = {tool.key: index for index, tool in enumerate(self.tools)}
        self.starts = np.cumsum([0] + [len(tool.ids) for tool in self.tools])
        self.first_copy = np.cumsum([0] + [len(tool.copyable) for tool in self.tools])

    def of(self, example: Example) -> list[int]:
        """The numbers of a record's own tools."""
        return [self.number[tool.key] for tool in example.tools]


@dataclass
class Requests:
    """The requests by themselves, and where each token of an answer comes from."""

    ids: Tensor  # [B, Q] right-padded
    mask: Tensor  # [B, Q] true on the request
    sources: Tensor  # [B, T] the request position that each input token was copied from, -1 for none
    aims: Tensor  # [B, T] the only request position that each target is to be copied from, -1: none, or one of several

    @classmethod
    def of(
        cls, queries: Sequence[Sequence[int]], examples: Sequence[Example], tokenizer: TextTokenizer, width: int
    ) -> Requests:
        found = [
            find_sources(query, example.target, tokenizer.first_tool_label, tokenizer.joined(query))
            for query, example in zip(queries, examples, strict=True)
        ]
        longest = max(len(query) for query in queries)
        return cls(
            ids=pad(queries, longest, tokenizer.pad),
            mask=torch.arange(longest) < torch.tensor([len(query) for query in queries]).unsqueeze(1),
            sources=pad([(-1, *sources[:-1]) for sources, _ in found], width, -1),
            aims=pad([aims for _, aims in found], width, -1),
        )

    def select(self, rows: Tensor) -> Requests:
        return Requests(self.ids[rows], self.mask[rows], self.sources[rows], self.aims[rows])


@dataclass
class Chunks:
    """Requests, behind <query>, and tools in groups of similar length, as the encoder reads them."""

    ids: list[Tensor]  # [r, s] each, right-padded
    kinds: list[Tensor]  # [r] each: 0 for a request, 1 for a tool
    pack: Tensor  # [M] picks the tools' valid positions out of all chunks laid end to end
    unpack: Tensor  # [B, Q] picks the requests' positions; 0 on padding

    @classmethod
    def of(cls, queries: Sequence[Sequence[int]], tools: Sequence[RenderedTool], tokenizer: TextTokenizer) -> Chunks:
        rows: list[Sequence[int]] = [(tokenizer.query, *query) for query in queries]
        rows += [tool.ids for tool in tools]
        order = np.argsort([len(row) for row in rows], kind="stable")
        ids, kinds, offset = [], [], 0
        places = [np.zeros(0, dtype=np.int64)] * len(rows)  # where each row's tokens lie
        for group in np.array_split(order, min(MAX_CHUNKS, max(len(rows) // MIN_ROWS, 1))):
            width = len(rows[group[-1]])
            ids.append(pad([rows[index] for index in group], width, tokenizer.pad))
            kinds.append(torch.from_numpy((group >= len(queries)).astype(np.int64)))
            for number, index in enumerate(group):
                places[index] = offset + number * width + np.arange(len(rows[index]))
            offset += len(group) * width
        return cls(
            ids=ids,
            kinds=kinds,
            pack=torch.from_numpy(np.concatenate(places[len(queries) :]) if tools else np.zeros(0, dtype=np.int64)),
            unpack=pad(
                [place[1:] for place in places[: len(queries)]], max(len(query) for query in queries), 0
            ),  # without <query>
        )


@dataclass
class Tools:
    """The distinct tools of the batch, packed: all in one row of M."""

    ids: Tensor  # [M]
    tool_of: Tensor  # [M] which of the U tools a position belongs to
    heads: Tensor  # [U] position in M of each tool's marker
    segment: Tensor  # [M] which of the G segments a position is in
    starts: Tensor  # [G] position in M of each segment's marker
    tool_segment: Tensor  # [U] the segment of each tool's name and description
    argument_segment: Tensor  # [U, A] the segment of each argument; -1 is padding
    keys: list[str]  # [U] each tool's content, for caches

    @classmethod
    def of(cls, distinct: Distinct) -> Tools:
        tools = distinct.tools
        ends = [[0, *tool.markers, len(tool.ids)] for tool in tools]
        sizes = [end - start for row in ends for start, end in itertools.pairwise(row)]
        first = np.cumsum([0] + [1 + len(tool.markers) for tool in tools])
        arguments = [[first[index] + 1 + a for a in range(len(tool.markers))] for index, tool in enumerate(tools)]
        return cls(
            ids=_long([token for tool in tools for token in tool.ids]),
            tool_of=_long([index for index, tool in enumerate(tools) for _ in tool.ids]),
            heads=_long(distinct.starts[:-1]),
            segment=_long([g for g, size in enumerate(sizes) for _ in range(size)]),
            starts=_long(np.cumsum([0, *sizes])[: len(sizes)]),
            tool_segment=_long(first[:-1]),
            argument_segment=pad(arguments, max([1, *(len(own) for own in arguments)]), -1),
            keys=[tool.key for tool in tools],
        )


@dataclass
class Offers:
    """Which of the tools each record has."""

    tools: Tensor  # [B, K] their numbers; -1 is padding
    owned: Tensor  # [B, S] their positions in M, counted from 1; 0, the empty slot, stands first; -1 is padding

    @classmethod
    def of(cls, examples: Sequence[Example], distinct: Distinct) -> Offers:
        numbers = [distinct.of(example) for example in examples]
        starts = distinct.starts
        owned = [
            np.concatenate([[0], *(np.arange(starts[tool], starts[tool + 1]) + 1 for tool in own)]) for own in numbers
        ]
        return cls(
            tools=pad(numbers, max([1, *(len(own) for own in numbers)]), -1),
            owned=pad(owned, max(len(row) for row in owned), -1),
        )

    def select(self, rows: Tensor) -> Offers:
        return Offers(self.tools[rows], self.owned[rows])


@dataclass
class Copies:
    """What an answer may copy: the request, and the names and enum members of the record's own tools."""

    places: Tensor  # [C] positions in M of names and enum members
    offered: Tensor  # [B, N] which of the C each record's own tools offer; -1 is padding
    candidates: Tensor  # [B, J] <query>, then the distinct tokens that a record may copy; padded with <pad>, at the end
    slots: Tensor  # [B, Q+N] which candidate each request position and each offered position is

    @classmethod
    def of(
        cls, queries: Sequence[Sequence[int]], examples: Sequence[Example], distinct: Distinct, first: int
    ) -> Copies:
        """`first` is the token that stands in front of the candidates: <query>, which no answer holds."""
        offered = [
            [
                distinct.first_copy[distinct.number[tool.key]] + i
                for tool in example.tools
                for i in range(len(tool.copyable))
            ]
            for example in examples
        ]
        texts = [[tool.ids[place] for tool in example.tools for place in tool.copyable] for example in examples]
        order = [
            {token: index for index, token in enumerate(dict.fromkeys([first, *query, *extra]))}
            for query, extra in zip(queries, texts, strict=True)
        ]
        width = max(len(slots) for slots in order) + 1  # one more, so that every row ends in <pad>
        longest = max(len(query) for query in queries)
        slots = np.full((len(queries), longest + max(len(own) for own in texts)), width - 1, dtype=np.int64)
        for row, (query, extra, slot) in enumerate(zip(queries, texts, order, strict=True)):
            slots[row, : len(query)] = [slot[token] for token in query]
            slots[row, longest : longest + len(extra)] = [slot[token] for token in extra]
        return cls(
            places=_long(
                [distinct.starts[i] + place for i, tool in enumerate(distinct.tools) for place in tool.copyable]
            ),
            offered=pad(offered, slots.shape[1] - longest, -1),
            candidates=pad([list(slot) for slot in order], width, 0),
            slots=torch.from_numpy(slots),
        )

    def select(self, rows: Tensor) -> Copies:
        return replace(self, offered=self.offered[rows], candidates=self.candidates[rows], slots=self.slots[rows])


@dataclass
class PointerBatch(Batch):
    """Requests and tools apart."""

    requests: Requests
    chunks: Chunks
    tools: Tools
    offers: Offers
    copies: Copies

    @classmethod
    def source(cls, examples: Sequence[Example], tokenizer: TextTokenizer, width: int) -> dict[str, Any]:
        distinct = Distinct(examples)
        queries = [example.query or (tokenizer.query,) for example in examples]
        return {
            "requests": Requests.of(queries, examples, tokenizer, width),
            "chunks": Chunks.of(queries, distinct.tools, tokenizer),
            "tools": Tools.of(distinct),
            "offers": Offers.of(examples, distinct),
            "copies": Copies.of(queries, examples, distinct, tokenizer.query),
        }

    def select(self, rows: Tensor) -> PointerBatch:
        """The same tools for only these rows of the batch."""
        parts = {name: getattr(self, name).select(rows) for name in ("requests", "offers", "copies")}
        return replace(self, **parts)


def find_sources(
    query: Sequence[int], target: Sequence[int], first_tool_label: int, joined: Sequence[bool]
) -> tuple[list[int], list[int]]:
    """Where in its request each token of an answer was copied from, and where it must be: -1 for one that isn't in it,
    or may be from several places.

    The answer is cut into the longest runs of tokens that stand together in the request: a value is where all of it
    stands, not where its first token does ("the" of a title, the "1" of a number). Of equal runs those that no word or
    number goes beyond (`joined`, as the tokenizer tells it) come first; of these, one behind what earlier calls copied.
    """
    sources, aims = [-1] * len(target), [-1] * len(target)
    places: dict[int, list[int]] = defaultdict(list)
    for place, token in enumerate(query):
        places[token].append(place)
    begin = furthest = 0  # where the open call begins to look, behind what earlier calls copied; behind all of it
    start = 0
    while start < len(target):
        if first_tool_label <= target[start] < first_tool_label + TOOL_LABELS:
            begin = furthest
        lengths = {place: _run(query, place, target, start) for place in places.get(target[start], ())}
        longest = max(lengths.values(), default=0)
        best = [place for place, length in lengths.items() if length == longest]
        whole = [p for p in best if not joined[p] and not any(joined[p + longest : p + longest + 1])]
        best = whole or best
        if best:
            place = next((place for place in best if place >= begin), best[0])
            sources[start : start + longest] = range(place, place + longest)
            if len(best) == 1:
                aims[start : start + longest] = sources[start : start + longest]
            furthest = max(furthest, place + longest)
        start += max(longest, 1)
    return sources, aims


def _run(query: Sequence[int], place: int, target: Sequence[int], start: int) -> int:
    """How many tokens of `target` from `start` stand in `query` from `place`."""
    most = min(len(query) - place, len(target) - start)
    return next((size for size in range(most) if query[place + size] != target[start + size]), most)


def _long(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.long)
