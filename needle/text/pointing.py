"""The codec `spans`: `decisions` in which a value is two places of the request, or a member of its argument's enum.

    <tool_0> <arg_0> <place_3> <place_5> <arg_2> <member_1>

The first and the last piece of a request stand for all characters from one to the other, so a value of any length
takes two decisions and comes back as it was said. What wasn't said, and is no member, is written as in `decisions`. A
tool that is wished for, but lacks a value, is followed by that value's label and `<query>`: <tool_0> <arg_1> <query>.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from needle.text.decisions import MAX_SAID, Context, DecisionsCodec, read_or_none, same
from needle.text.jsontext import DecodeError, dump, in_schema_order
from needle.text.leaves import Leaf, choices, form_of, leaves
from needle.text.numbers import number_texts
from needle.text.numberwords import NUMBER_FORM, number
from needle.text.pieces import Said
from needle.text.records import Call, Missing, Tool
from needle.text.tokenizer import MEMBER_LABELS, PLACE_LABELS, TextTokenizer

FORM = re.compile(NUMBER_FORM)
OPEN = (" and", " of", " a", " an", " point", " dot")  # what a number doesn't end in
BOUND = re.compile(rf"(?:{NUMBER_FORM})(?!\w)")


class SpansCodec(DecisionsCodec):
    """Labels, places of the request and members; `query` is `Said`."""

    name = "spans"

    def __init__(self, tokenizer: TextTokenizer) -> None:
        super().__init__(tokenizer, spoken=True)
        if tokenizer.pieces is None:
            raise ValueError("codec 'spans' needs a student that reads word pieces; see student.pieces")

    def encode(
        self, calls: Sequence[Call], tools: Sequence[Tool], query: Any, missing: Missing | None = None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return super().encode(calls, tools, _Search(query if isinstance(query, Said) else Said("", ())), missing)

    def lacking(self, missing: Missing, tool: Tool) -> list[int]:
        labels = [
            self.tokenizer.first_argument_label + number
            for number, leaf in enumerate(leaves(tool))
            if leaf.required and leaf.path[0] in missing.arguments
        ]
        return [token for label in labels for token in (label, self.tokenizer.query)]

    def lacked(self, ids: Sequence[int], tool: Tool) -> Missing | None:
        if self.tokenizer.query not in ids:
            return None
        known, first = leaves(tool), self.tokenizer.first_argument_label
        named = [str(known[label - first].path[0]) for label in ids[::2] if 0 <= label - first < len(known)]
        return Missing(tool.name, tuple(dict.fromkeys(named)))

    def _arguments(self, call: Call, tool: Tool, query: Any) -> list[int]:
        query.begin = query.furthest
        return super()._arguments(call, tool, query)

    def at(self, query: Any) -> Context:
        return Context(said=query.said)

    def opened(self, leaf: Leaf, query: Any) -> None:
        query.members = choices(leaf.schema)

    def text(self, text: str, query: Any) -> list[int]:
        return self._places(query.best(query.said.places(text)), query) or list(self.tokenizer.encode(text))

    def scalar(self, value: Any, schema: Mapping[str, Any], query: Any, listed: bool = False) -> list[int]:
        own = schema.get("enum")
        if own and value is not None and own == query.members and len(own) <= MEMBER_LABELS:
            flag = isinstance(value, bool)  # 1 is 1.0, and no true
            member = next((i for i, one in enumerate(own) if isinstance(one, bool) == flag and one == value), None)
            if member is not None:
                return [self.tokenizer.first_member + member]
        if form_of(schema) == "literal":
            return list(self.tokenizer.encode(dump(in_schema_order(value, schema))))
        return super().scalar(value, schema, query, listed)

    def _as_said(self, value: Any, schema: Mapping[str, Any], query: Any) -> list[int]:
        texts = [value] if isinstance(value, str) else number_texts(value)
        texts = [text for text in texts if same(read_or_none(text, schema), value)]
        found = [place for text in texts for place in query.said.places(text)]
        parts = windows(query.said) if isinstance(value, str) else number_places(query.said)
        found = [place for place in found if query.said.whole(*place)] or [
            place for place in parts if same(read_or_none(query.said.part(*place), schema), value)
        ]
        shortest = min((last - first for first, last in found), default=0)
        found = [(first, last) for first, last in found if last - first == shortest]
        if found:
            return self._places(query.best(found), query)
        return list(self.tokenizer.encode(texts[0])) if texts else self.spelled(value, query)

    def spelled(self, value: Any, query: Any) -> list[int]:
        return [self.tokenizer.argument, *self.tokenizer.encode(dump(value))]

    def _places(self, place: tuple[int, int] | None, query: Any) -> list[int]:
        if place is None or place[1] >= PLACE_LABELS:
            return []
        query.furthest = max(query.furthest, place[1] + 1)
        return [self.tokenizer.first_place + index for index in place]

    def words(self, ids: Sequence[int], at: Context) -> str:
        first, end = self.tokenizer.first_place, self.tokenizer.first_tool_label
        if len(ids) == 2 and all(first <= token < end for token in ids):
            start, last = (token - first for token in ids)
            if at.said is None or not start <= last < len(at.said.offsets):
                raise DecodeError(f"pieces {start} to {last} aren't a part of the request")
            return at.said.part(start, last)
        if any(token >= self.tokenizer.text_size for token in ids):
            raise DecodeError("places and members stand by themselves")
        return self.tokenizer.decode(ids)

    def _value(self, ids: Sequence[int], schema: Mapping[str, Any], at: Context) -> Any:
        if len(ids) == 1 and self.tokenizer.first_member <= ids[0] < self.tokenizer.first_place:
            member = ids[0] - self.tokenizer.first_member
            if member >= len(schema.get("enum", ())):
                raise DecodeError(f"no member number {member}")
            return schema["enum"][member]
        return super()._value(ids, schema, at)


class _Search:
    """Where in a request values are looked for while an answer is written."""

    def __init__(self, said: Said) -> None:
        self.said = said
        self.begin = self.furthest = 0  # behind what earlier calls took; behind all that was taken
        self.members: list[Any] = []  # of the enum of the argument that is open

    def best(self, places: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
        """Of equal places one that no word goes beyond, behind what earlier calls took."""
        whole = [place for place in places if self.said.whole(*place)] or list(places)
        return next((place for place in whole if place[0] >= self.begin), whole[0] if whole else None)


@lru_cache(maxsize=256)
def windows(said: Said) -> list[tuple[int, int]]:
    """Every run of up to `MAX_SAID` pieces that no word goes beyond, the shortest first."""
    count = len(said.offsets)
    return [
        (first, first + size)
        for size in range(MAX_SAID)
        for first in range(count - size)
        if said.whole(first, first + size)
    ]


@lru_cache(maxsize=256)
def number_places(said: Said) -> tuple[tuple[int, int], ...]:
    """The first and the last piece of every part of a request that is one number."""
    found = []
    for first, (start, _) in enumerate(said.offsets):
        most = BOUND.match(said.text, start)
        last = first
        while most and last < len(said.offsets) and said.offsets[last][1] <= most.end():
            if said.whole(first, last) and _is_number(said.part(first, last)):
                found.append((first, last))
            last += 1
    return tuple(found)


def _is_number(text: str) -> bool:
    if not FORM.fullmatch(text) or text.lower().endswith(OPEN):
        return False
    try:
        number(text)
    except (ValueError, OverflowError):
        return False
    return True
