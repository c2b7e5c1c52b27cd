"""A batch of examples as tensors, in the two layouts that students read: `flat` and `split`.

Legend: B records, T target positions, P prompt positions, Q request positions, U distinct tools of the batch, M packed
positions of all those tools, K tools of one record, A arguments of one tool, C copyable schema positions, G segments: a
tool's name and description are one, each of its arguments another.
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

from needle.text.prompt import IGNORE, Example, RenderedTool
from needle.text.tokenizer import TOOL_LABELS, TextTokenizer

LAYOUTS = ("flat", "split")
CHUNKS = 10  # requests and tools are encoded in at most this many groups of similar length, to waste less on padding
LEAST_ROWS = 8  # of such a group


@dataclass
class Flat:
    """Tools, request and target in one row: what decoder-only and encoder-decoder students read."""

    sequence: Tensor  # [B, P+T-1] ids, right-padded
    predicts: Tensor  # [B, T] the position in `sequence` whose output predicts target t
    prompt_length: Tensor  # [B]


@dataclass
class Split:
    """Requests and tools apart: what the pointer student reads. Positions of tools are packed: all tools in one row of
    M."""

    query: Tensor  # [B, Q] ids, right-padded
    query_mask: Tensor  # [B, Q] true on the request
    chunks: list[Tensor]  # [r, s] ids each, right-padded: requests, behind <query>, and tools of similar length
    kinds: list[Tensor]  # [r] each: 0 for a request, 1 for a tool
    pack: Tensor  # [M] picks the tools' valid positions out of all chunks laid end to end
    unpack: Tensor  # [B, Q] picks the requests' positions; 0 on padding
    tool_of: Tensor  # [M] which of the U tools a position belongs to
    tool_ids: Tensor  # [M] ids
    copyable: Tensor  # [C] positions in M that an answer may copy
    copied: Tensor  # [B, N] which of the C each record's own tools offer; -1 is padding
    # [B, J] <query>, then the distinct tokens that a record may copy; padding is <pad>, and stands last in every row
    candidates: Tensor
    slots: Tensor  # [B, Q+N] which candidate each request position and each copied position is
    tools: Tensor  # [B, K] which of the U tools each record has; -1 is padding
    # [B, S] the positions in M of each record's own tools, counted from 1; 0, the empty slot, stands first; -1 is
    # padding
    owned: Tensor
    heads: Tensor  # [U] position in M of each tool's marker
    segment: Tensor  # [M] which of the G segments a position is in
    starts: Tensor  # [G] position in M of each segment's marker
    tool_segment: Tensor  # [U] the segment of each tool's name and description
    argument_segment: Tensor  # [U, A] the segment of each argument; -1 is padding
    keys: list[str]  # [U] each tool's content, for caches
    sources: Tensor  # [B, T] the request position that each input token was copied from, -1 for none
    # [B, T] the only request position that each target is to be copied from, -1 where there is none or one of several
    # will do
    aims: Tensor

    def select(self, rows: Tensor) -> Split:
        """The same tools for only these rows of the batch."""
        per_record = ("query", "query_mask", "copied", "candidates", "slots", "tools", "owned", "sources", "aims")
        return replace(self, **{name: getattr(self, name)[rows] for name in per_record})


@dataclass
class Batch:
    ids: list[str]
    targets: Tensor  # [B, T], -100 is padding
    weights: Tensor  # [B, T] how much each target counts; 0 on padding
    inputs: Tensor  # [B, T] what stands before each target: <answer>, then the targets shifted by one
    open_tool: Tensor  # [B, T] index among the record's tools of the one whose arguments target t may name; -1 is none
    tool_count: Tensor  # [B]
    argument_count: Tensor  # [B, K] arguments of each of the record's tools
    flat: Flat | None = None
    split: Split | None = None

    def select(self, rows: Tensor) -> Batch:
        """Only these rows, for decoding: what the steps after the prompt need."""
        return Batch(
            [],
            self.targets[rows],
            self.weights[rows],
            self.inputs[rows],
            self.open_tool[rows],
            self.tool_count[rows],
            self.argument_count[rows],
        )


def collate(
    examples: Sequence[Example], tokenizer: TextTokenizer, layout: str, kind_weights: Sequence[float] = ()
) -> Batch:
    """Tensors of `examples`; for a prompt without targets T is 1.

    `kind_weights` are the weights of a target token by its kind (`prompt.KINDS`); 1 when empty.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout '{layout}' is unknown; expected one of {', '.join(LAYOUTS)}")
    width = max([1, *(len(example.target) for example in examples)])
    targets = _pad([example.target for example in examples], width, IGNORE)
    inputs = _pad([(tokenizer.answer, *example.target[:-1]) for example in examples], width, tokenizer.pad)
    tools = max([1, *(len(example.tools) for example in examples)])
    batch = Batch(
        ids=[example.id for example in examples],
        targets=targets,
        weights=_pad([target_weights(example, kind_weights) for example in examples], width, 0, np.float32),
        inputs=inputs,
        open_tool=_pad([example.open_tool for example in examples], width, -1),
        tool_count=torch.tensor([len(example.tools) for example in examples]),
        argument_count=_pad([[len(tool.markers) for tool in example.tools] for example in examples], tools, 0),
    )
    if layout == "flat":
        batch.flat = _flat(examples, tokenizer, width)
    else:
        batch.split = _split(examples, tokenizer, tools, width)
    return batch


def target_weights(example: Example, kind_weights: Sequence[float] = ()) -> list[float]:
    """How much each target token counts: the record's weight times that of the token's kind."""
    if not kind_weights:
        return [example.weight] * len(example.target)
    return [example.weight * kind_weights[kind] for kind in example.kinds]


def prompt_ids(example: Example, tokenizer: TextTokenizer) -> list[int]:
    """The flat prompt: tools with their labels for markers, then the request, then `<answer>`."""
    ids: list[int] = []
    for index, tool in enumerate(example.tools):
        start = len(ids)
        ids += tool.ids
        ids[start] = tokenizer.first_tool_label + index
        for number, marker in enumerate(tool.markers):
            ids[start + marker] = tokenizer.first_argument_label + number
    return [*ids, tokenizer.query, *example.query, tokenizer.answer]


def _flat(examples: Sequence[Example], tokenizer: TextTokenizer, width: int) -> Flat:
    prompts = [prompt_ids(example, tokenizer) for example in examples]
    rows = [prompt + list(example.target[:-1]) for prompt, example in zip(prompts, examples, strict=True)]
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    size = max(len(row) for row in rows)
    predicts = (lengths.unsqueeze(1) - 1 + torch.arange(width)).clamp_max(size - 1)
    return Flat(_pad(rows, size, tokenizer.pad), predicts, lengths)


def _split(examples: Sequence[Example], tokenizer: TextTokenizer, most_tools: int, width: int) -> Split:
    distinct: dict[str, RenderedTool] = {}
    for example in examples:
        for tool in example.tools:
            distinct.setdefault(tool.key, tool)
    ordered = sorted(distinct.values(), key=lambda tool: len(tool.ids))
    number = {tool.key: index for index, tool in enumerate(ordered)}
    starts = np.cumsum([0] + [len(tool.ids) for tool in ordered])
    first_copy = np.cumsum([0] + [len(tool.copyable) for tool in ordered])
    arguments = max([1, *(len(tool.markers) for tool in ordered)])
    ends = [[0, *tool.markers, len(tool.ids)] for tool in ordered]
    sizes = [end - start for row in ends for start, end in itertools.pairwise(row)]
    first_segment = np.cumsum([0] + [1 + len(tool.markers) for tool in ordered])
    queries = [example.query or (tokenizer.query,) for example in examples]
    chunks, kinds, places = _chunks(
        [*((tokenizer.query, *query) for query in queries), *(tool.ids for tool in ordered)],
        len(queries),
        tokenizer.pad,
    )
    query_width = max(len(query) for query in queries)
    lengths = torch.tensor([len(query) for query in queries])
    copied = [
        [first_copy[number[tool.key]] + i for tool in example.tools for i in range(len(tool.copyable))]
        for example in examples
    ]
    offered = [[tool.ids[place] for tool in example.tools for place in tool.copyable] for example in examples]
    candidates, slots = _candidates(queries, offered, query_width, tokenizer.query)
    found = [
        find_sources(query, example.target, tokenizer.first_tool_label, tokenizer.joined(query))
        for query, example in zip(queries, examples, strict=True)
    ]
    return Split(
        query=_pad(queries, query_width, tokenizer.pad),
        query_mask=torch.arange(query_width) < lengths.unsqueeze(1),
        chunks=chunks,
        kinds=kinds,
        pack=torch.from_numpy(np.concatenate(places[len(queries) :]) if ordered else np.zeros(0, dtype=np.int64)),
        unpack=_pad([place[1:] for place in places[: len(queries)]], query_width, 0),  # without <query>
        tool_of=torch.tensor([index for index, tool in enumerate(ordered) for _ in tool.ids], dtype=torch.long),
        tool_ids=torch.tensor([token for tool in ordered for token in tool.ids], dtype=torch.long),
        copyable=torch.tensor(
            [starts[index] + place for index, tool in enumerate(ordered) for place in tool.copyable], dtype=torch.long
        ),
        copied=_pad(copied, slots.shape[1] - query_width, -1),
        candidates=candidates,
        slots=slots,
        tools=_pad([[number[tool.key] for tool in example.tools] for example in examples], most_tools, -1),
        owned=_own_positions([[number[tool.key] for tool in example.tools] for example in examples], starts),
        heads=torch.tensor(starts[:-1], dtype=torch.long),
        segment=torch.tensor([g for g, size in enumerate(sizes) for _ in range(size)], dtype=torch.long),
        starts=torch.tensor(np.cumsum([0, *sizes])[: len(sizes)], dtype=torch.long),
        tool_segment=torch.tensor(first_segment[:-1], dtype=torch.long),
        argument_segment=_pad(
            [[first_segment[index] + 1 + a for a in range(len(tool.markers))] for index, tool in enumerate(ordered)],
            arguments,
            -1,
        ),
        keys=[tool.key for tool in ordered],
        sources=_pad([(-1, *sources[:-1]) for sources, _ in found], width, -1),
        aims=_pad([aims for _, aims in found], width, -1),
    )


def _chunks(
    rows: Sequence[Sequence[int]], requests: int, pad: int
) -> tuple[list[Tensor], list[Tensor], list[np.ndarray]]:
    """Rows of similar length together, what kind each is, and where each row's tokens lie when all chunks are laid end
    to end."""
    order = np.argsort([len(row) for row in rows], kind="stable")
    chunks, kinds, offset = [], [], 0
    places = [np.zeros(0, dtype=np.int64)] * len(rows)
    for group in np.array_split(order, min(CHUNKS, max(len(rows) // LEAST_ROWS, 1))):
        width = len(rows[group[-1]])
        chunks.append(_pad([rows[index] for index in group], width, pad))
        kinds.append(torch.from_numpy((group >= requests).astype(np.int64)))
        for number, index in enumerate(group):
            places[index] = offset + number * width + np.arange(len(rows[index]))
        offset += len(group) * width
    return chunks, kinds, places


def _own_positions(tools: Sequence[Sequence[int]], starts: np.ndarray) -> Tensor:
    rows = [np.concatenate([[0], *(np.arange(starts[tool], starts[tool + 1]) + 1 for tool in own)]) for own in tools]
    return _pad(rows, max(len(row) for row in rows), -1)


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
    begin = furthest = (
        0  # where the open call begins to look, behind all that earlier calls copied; behind all that was copied
    )
    start = 0
    while start < len(target):
        if first_tool_label <= target[start] < first_tool_label + TOOL_LABELS:
            begin = furthest
        lengths = {place: _run(query, place, target, start) for place in places.get(target[start], ())}
        longest = max(lengths.values(), default=0)
        best = [place for place, length in lengths.items() if length == longest]
        best = [
            place for place in best if not joined[place] and not any(joined[place + longest : place + longest + 1])
        ] or best
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


def _candidates(
    queries: Sequence[Sequence[int]], offered: Sequence[Sequence[int]], query_width: int, first: int
) -> tuple[Tensor, Tensor]:
    """The distinct tokens of each record's request and schema names behind `first`, and the slot of each of those
    positions among them."""
    order = [
        {token: index for index, token in enumerate(dict.fromkeys([first, *query, *extra]))}
        for query, extra in zip(queries, offered, strict=True)
    ]
    width = max(len(slots) for slots in order) + 1  # one more, so that every row ends in <pad>
    slots = np.full((len(queries), query_width + max(len(extra) for extra in offered)), width - 1, dtype=np.int64)
    for row, (query, extra, slot) in enumerate(zip(queries, offered, order, strict=True)):
        slots[row, : len(query)] = [slot[token] for token in query]
        slots[row, query_width : query_width + len(extra)] = [slot[token] for token in extra]
    return _pad([list(slot) for slot in order], width, 0), torch.from_numpy(slots)


def _pad(rows: Sequence[Any], width: int, value: int, dtype: type[np.generic] = np.int64) -> Tensor:
    """[len(rows), width] of int64, or another type."""
    out = np.full((len(rows), width), value, dtype=dtype)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return torch.from_numpy(out)


def move(batch: Batch, device: torch.device) -> Batch:
    """The same batch on `device`."""
    moved: Batch = _move(batch, device)
    return moved


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, list):
        return [_move(item, device) for item in value]
    if isinstance(value, Batch | Flat | Split):
        return type(value)(**{name: _move(item, device) for name, item in vars(value).items()})
    return value
