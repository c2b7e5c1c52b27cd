"""What the span student reads: requests and tools in word pieces, each distinct tool of a batch once, and each called
tool together with its request.

Legend: B records, T target positions, Q request positions, U distinct tools of the batch, M packed positions of all
those tools' cards, K tools of one record, S positions of one record's cards, and the empty slot; F tools that are
called, P pairs of a request and a tool that is called, R = B + P rows that an answer reads: requests alone, then
pairs; W positions of one tool, A its arguments, E enum members of those F, L the most of one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from needle.students.batch import Batch, pad
from needle.text.literal import Literal
from needle.text.prompt import Example, RenderedTool
from needle.text.tokenizer import TextTokenizer

OVERHEAD = 400  # positions whose encoding takes as long as a group of rows takes by itself
SHORT = 64  # positions of forms that are all padded alike
STEP = 8  # rows of pieces are padded to a multiple of it
BLOCK = 256  # packed rows are padded to a multiple of it


def up(size: int, step: int) -> int:
    """The next multiple of `step`. oneDNN makes a kernel for every shape, which takes longer than to multiply, so
    that shapes must come again."""
    return -(-size // step) * step


def coarse(size: int, least: int) -> int:
    """`size` rounded up by at most an eighth, or to a multiple of `least`: few sizes, little padding."""
    return up(size, max(least, 2 ** (size.bit_length() - 4) if size >= 16 else 1))


@dataclass
class PieceRows:
    """Pieces and their cases, two rows of numbers that stay together."""

    ids: Tensor  # [R, s] right-padded with 0
    cases: Tensor  # [R, s]

    @classmethod
    def of(cls, ids: Sequence[Sequence[int]], cases: Sequence[Sequence[int]], before: int = 0) -> PieceRows:
        """`before` pieces will be put in front of each row."""
        width = up(max(len(row) for row in ids) + before, STEP) - before
        return cls(pad(ids, width, 0), pad(cases, width, 0))

    def select(self, rows: Tensor) -> PieceRows:
        return PieceRows(self.ids[rows], self.cases[rows])


@dataclass
class SpanTools:
    """The distinct tools of the batch, those with the shortest cards first."""

    cards: PieceRows  # [U, s] what tells their use
    tool_of: Tensor  # [M] which of the U a position of the packed cards belongs to; U on padding
    name_of: Tensor  # [M] which of the U tools' names it is in; U for none
    starts: list[int]  # [U] first position of each card in M
    sizes: list[int]  # [U] positions of each card
    rendered: list[RenderedTool]

    @classmethod
    def of(cls, tools: Sequence[RenderedTool]) -> SpanTools:
        sizes = [len(tool.card) for tool in tools]
        starts = np.cumsum([0, *sizes])
        packed = up(int(starts[-1]) + 1, BLOCK) - 1
        tool_of, name_of = np.full(packed, len(tools)), np.full(packed, len(tools))
        for number, (start, tool) in enumerate(zip(starts, tools, strict=False)):
            tool_of[start : start + len(tool.card)] = number
            name_of[start + 1 : start + max(tool.named, 2)] = number
        return cls(
            cards=PieceRows.of([tool.card for tool in tools] or [()], [tool.card_cases for tool in tools] or [()]),
            tool_of=torch.from_numpy(tool_of),
            name_of=torch.from_numpy(name_of),
            starts=[int(start) for start in starts[:-1]],
            sizes=sizes,
            rendered=list(tools),
        )


@dataclass
class Forms:
    """Tools that are called, the shortest first, with all of their arguments."""

    rows: PieceRows  # [F, W]
    sizes: list[int]  # [F]
    starts: list[int]  # [F] first position of each in the packed row
    tools: list[int]  # [F] which of the U each is
    member_of: Tensor  # [n] which of the E enum members a position of the packed row is in, counted from 1; 0 for none
    first: list[int]  # [F] the first member of each
    members: int  # E

    @classmethod
    def of(cls, numbers: Iterable[int], tools: SpanTools) -> Forms:
        chosen = sorted(numbers, key=lambda number: len(tools.rendered[number].ids))
        own = [tools.rendered[number] for number in chosen]
        sizes = [len(tool.ids) for tool in own]
        starts = [int(start) for start in np.cumsum([0, *sizes])[:-1]]
        rows = PieceRows.of([tool.ids for tool in own] or [()], [tool.cases for tool in own] or [()])
        member_of, first, found = np.zeros(sum(sizes), np.int64), [], 1
        for start, tool in zip(starts, own, strict=True):
            first.append(found)
            for begin, behind in (place for leaf in tool.members for place in leaf):
                member_of[start + begin : start + behind] = found
                found += 1
        return cls(rows, sizes, starts, chosen, torch.from_numpy(member_of), first, found - 1)


@dataclass
class Pairs:
    """Requests and tools of similar length that are read together."""

    length: int  # positions of the longest request, rounded up
    record: Tensor  # [P] the request
    places: Tensor  # [P, W] its positions in the packed forms, counted from 1; 0 is padding
    markers: Tensor  # [P, A] those of its arguments' markers
    first: Tensor  # [P, A] the first member of each argument's enum, of the E
    count: Tensor  # [P, A] how many it has; -1 on padding
    said: Tensor  # [P, Q] what each piece of the request says of the tool (`Found`)
    heard: Tensor  # [P, A] what is said of each argument
    levels: Tensor  # [P, L] how much is said of each enum member, those of all arguments in a row

    @classmethod
    def groups(
        cls, pairs: Sequence[tuple[int, int]], requests: Sequence[Literal], forms: Forms, tools: SpanTools
    ) -> list[Pairs]:
        """`pairs` of a record and a form, those of one size of form together and of these the shortest requests first,
        in groups that cost least to read."""
        found = []
        for _, alike in itertools.groupby(pairs, key=lambda pair: _size_class(forms.sizes[pair[1]])):
            own = list(alike)
            for group in groups_of([requests[record].size for record, _ in own]):
                found.append(cls.of([own[place] for place in group], requests, forms, tools))
        return found

    @classmethod
    def of(cls, pairs: Sequence[tuple[int, int]], requests: Sequence[Literal], forms: Forms, tools: SpanTools) -> Pairs:
        own = [tools.rendered[forms.tools[form]] for _, form in pairs]
        places, markers, first, count = [], [], [], []
        for (_, form), tool in zip(pairs, own, strict=True):
            start, sizes = forms.starts[form] + 1, [len(leaf) for leaf in tool.members]
            places.append(range(start, start + len(tool.ids)))
            markers.append([start + marker for marker in tool.markers])
            first.append(np.cumsum([forms.first[form], *sizes])[:-1])
            count.append(sizes)
        A = up(max([1, *(len(row) for row in markers)]), STEP)
        W = up(max([1, *(len(row) for row in places)]), STEP)
        found = [requests[record].find(tool.words) for (record, _), tool in zip(pairs, own, strict=True)]
        length = coarse(1 + max(requests[record].size for record, _ in pairs), STEP) - 1
        return cls(
            length,
            torch.tensor([record for record, _ in pairs], dtype=torch.long),
            pad(places, W, 0),
            pad(markers, A, 0),
            pad(first, A, 0),
            pad(count, A, -1),
            pad([one.said for one in found], length, 0),
            pad([one.arguments for one in found], A, 0),
            pad([one.members for one in found], max([1, *(len(one.members) for one in found)]), 0),
        )


def _size_class(size: int) -> int:
    """Forms of one class are padded to one size."""
    return (size // SHORT).bit_length()


def groups_of(sizes: Sequence[int]) -> list[range]:
    """Runs of rows of these sizes, the smallest first, that cost least to encode: every group takes `OVERHEAD` and as
    many positions as its rows have when they are padded to the longest."""
    widths = [coarse(size, STEP) for size in sizes]
    ends = [place for place in range(1, len(widths) + 1) if place == len(widths) or widths[place] != widths[place - 1]]
    starts = [0, *ends[:-1]]
    costs, before = [0], [0]
    for number, end in enumerate(ends):
        width = widths[end - 1]
        cost, k = min((costs[k] + OVERHEAD + (end - starts[k]) * width, k) for k in range(number + 1))
        costs.append(cost)
        before.append(k)
    found, number = [], len(ends)
    while number:
        found.append(range(starts[before[number]], ends[number - 1]))
        number = before[number]
    return found[::-1]


@dataclass
class SpanBatch(Batch):
    """Requests and tools apart, and which are read together."""

    requests: PieceRows  # [B, Q]
    mask: Tensor  # [B, Q] true on the request
    tools: SpanTools
    literal: list[Literal]  # [B]
    offered: Tensor  # [B, K] the tools of each record, of the U; -1 is padding
    named: Tensor  # [B, K] how much of their names is said
    owned: Tensor  # [B, S] their positions in M, counted from 1; 0, the empty slot, stands first; -1 is padding
    forms: Forms  # those that the targets call
    pairs: list[Pairs]  # of requests and these, in groups
    row: Tensor  # [B, T] the row that is read for target t
    packed: Tensor  # [n] which of the B*T each position of an answer is, all laid end to end; 0 on padding
    slot: Tensor  # [B, T] which of the n; the last, which is padding, behind an answer's end
    turns: Tensor  # [R, N] which of the n read a row; the last on padding
    where: Tensor  # [n] where among the R*N a position stands; 0 on padding
    argument: Tensor  # [B, T] the argument of the open tool that was named last, -1 for none
    begun: Tensor  # [B, T] whether a value is begun, so that target t may be its end

    @classmethod
    def source(cls, examples: Sequence[Example], tokenizer: TextTokenizer, width: int) -> dict[str, Any]:
        assert tokenizer.pieces is not None, "the span student reads word pieces"
        every = {tool.key: tool for example in examples for tool in example.tools}
        distinct = sorted(every.values(), key=lambda tool: len(tool.card))
        number = {tool.key: index for index, tool in enumerate(distinct)}
        tools = SpanTools.of(distinct)
        offered = [[number[tool.key] for tool in example.tools] for example in examples]
        cards = [range(start + 1, start + 1 + size) for start, size in zip(tools.starts, tools.sizes, strict=True)]
        owned = [[0, *(place for tool in own for place in cards[tool])] for own in offered]
        queries = [example.query or (tokenizer.pieces.unknown,) for example in examples]
        requests = PieceRows.of(queries, [example.cases or (0,) for example in examples], before=1)
        literal = [Literal(tokenizer.pieces.compared(query)) for query in queries]
        named = [
            [words.level(tool.words.tool) for tool in example.tools]
            for words, example in zip(literal, examples, strict=True)
        ]
        # What has been opened at each position, and the pairs that are read there.
        called = {
            (record, offered[record][token - tokenizer.first_tool_label])
            for record, example in enumerate(examples)
            for token in example.target
            if tokenizer.is_tool_label(token)
        }
        forms = Forms.of({tool for _, tool in called}, tools)
        form_of = {tool: form for form, tool in enumerate(forms.tools)}
        lengths = [len(query) for query in queries]
        alike = sorted(
            ((record, form_of[tool]) for record, tool in called),
            key=lambda pair: (_size_class(forms.sizes[pair[1]]), lengths[pair[0]], pair),
        )
        pairs = {(record, forms.tools[form]): place for place, (record, form) in enumerate(alike)}
        rows = np.tile(np.arange(len(examples))[:, None], (1, width))
        arguments, begun = np.full_like(rows, -1), np.zeros_like(rows, dtype=bool)
        for record, example in enumerate(examples):
            for place, token in enumerate(example.target[:-1], 1):
                rows[record, place], arguments[record, place] = rows[record, place - 1], arguments[record, place - 1]
                if token >= tokenizer.first_argument_label:
                    arguments[record, place] = token - tokenizer.first_argument_label
                elif token >= tokenizer.first_tool_label:
                    pair = (record, offered[record][token - tokenizer.first_tool_label])
                    rows[record, place] = len(examples) + pairs[pair]
                    arguments[record, place] = -1
                elif token >= tokenizer.first_place:
                    begun[record, place] = not begun[record, place - 1]
        sizes = [max(len(example.target), 1) for example in examples]
        packed = np.zeros(up(sum(sizes) + 1, BLOCK), np.int64)
        slot = np.full(rows.shape, len(packed) - 1)
        turns: list[list[int]] = [[] for _ in range(len(examples) + len(pairs))]
        for record, (size, behind) in enumerate(zip(sizes, np.cumsum(sizes), strict=True)):
            slot[record, :size] = range(behind - size, behind)
            packed[behind - size : behind] = range(record * width, record * width + size)
            for place in range(size):
                turns[rows[record, place]].append(slot[record, place])
        longest = up(max(len(own) for own in turns), STEP)
        where = np.zeros(len(packed), np.int64)
        for row, own in enumerate(turns):
            where[own] = row * longest + np.arange(len(own))
        return {
            "requests": requests,
            "mask": torch.arange(requests.ids.shape[1]) < torch.tensor(lengths)[:, None],
            "tools": tools,
            "literal": literal,
            "offered": pad(offered, max([1, *(len(own) for own in offered)]), -1),
            "named": pad(named, max([1, *(len(own) for own in offered)]), 0),
            "owned": pad(owned, up(max(len(own) for own in owned), STEP), -1),
            "forms": forms,
            "pairs": Pairs.groups(alike, literal, forms, tools),
            "row": torch.from_numpy(rows),
            "packed": torch.from_numpy(packed),
            "slot": torch.from_numpy(slot),
            "turns": pad(turns, longest, len(packed) - 1),
            "where": torch.from_numpy(where),
            "argument": torch.from_numpy(arguments),
            "begun": torch.from_numpy(begun),
        }

    def select(self, rows: Tensor) -> SpanBatch:
        """The same tools for only these rows of the batch."""
        own = {name: getattr(self, name)[rows] for name in ("mask", "offered", "named", "owned")}
        return replace(
            self, requests=self.requests.select(rows), literal=[self.literal[int(row)] for row in rows], **own
        )
