"""The one renderer: a record becomes token ids here, for training, evaluation and serving alike.

A tool is rendered by itself, whatever stands beside it:

    <tool> name: description <arg> name* type: description = member | member <arg> …

`*` marks a required argument. An object is written out member by member (`address.street`), so that every `<arg>` marks
one value (`needle.text.leaves`). Values begin with a space, as words in a request do.
"""

from __future__ import annotations

import contextlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from threading import Lock
from typing import Any

from cachetools import LRUCache

from needle.text.leaves import by_name, choices, leaves
from needle.text.literal import Names
from needle.text.pieces import EDGE, Pieces, Said
from needle.text.records import Call, Missing, Record, Tool
from needle.text.tokenizer import ARGUMENT_LABELS, MEMBER_LABELS, TOOL_LABELS, TextTokenizer
from needle.text.validity import CACHED_CHARACTERS

IGNORE = -100  # a target that counts nowhere
KINDS = ("syntax", "name", "key", "value")


class PromptError(ValueError):
    """A record that can't be rendered: too many tools or arguments, or too long."""


@dataclass(frozen=True)
class RenderedTool:
    """Token ids of one tool. The tool's marker is at position 0, the markers of its leaves at `markers`.

    `copyable` are the positions of names and enum members: what an answer may copy from a schema.

    Of a tool that is read in pieces, `cases` are those of its pieces, `members` are for each leaf the positions of its
    enum's members, the first and the one behind the last, `words` is what of it a request may say literally, and `card`
    is what tells its use: its name, up to position `named`, its description and the names of its arguments, as pieces
    and their cases.
    """

    name: str
    ids: tuple[int, ...]
    markers: tuple[int, ...]
    copyable: tuple[int, ...]
    key: str
    cases: tuple[int, ...] = ()
    card: tuple[int, ...] = ()
    card_cases: tuple[int, ...] = ()
    named: int = 0
    members: tuple[tuple[tuple[int, int], ...], ...] = ()
    words: Names = Names("", (), ())


@dataclass(frozen=True)
class Example:
    """A record as tokens. `target` ends in `<eos>`; `open_tool[t]` is the tool whose arguments target t may name, or
    -1.

    `kinds[t]` is what target t is part of (`KINDS`); `weight` is how much the record counts in the loss; `votes` tells
    records apart that read alike but about which a recorded teacher said other things.
    """

    id: str
    query: tuple[int, ...]
    tools: tuple[RenderedTool, ...]
    target: tuple[int, ...] = ()
    open_tool: tuple[int, ...] = ()
    kinds: tuple[int, ...] = ()
    weight: float = 1.0
    votes: str = ""
    cases: tuple[int, ...] = ()  # of the request's pieces
    said: Said | None = None  # a request that is read in pieces

    @property
    def prompt_length(self) -> int:
        return sum(len(tool.ids) for tool in self.tools) + len(self.query) + 2

    @property
    def length(self) -> int:
        """Tokens of prompt and target together."""
        return self.prompt_length + len(self.target)


def type_word(schema: Mapping[str, Any]) -> str:
    """A short word for the type; none for a plain string, the commonest, and for what may be any text."""
    kind = schema.get("type")
    if isinstance(kind, list):
        return f"{type_word({**schema, 'type': kind[0]})}?".strip()
    if kind == "array":
        return f"list {type_word(schema['items']) if isinstance(schema.get('items'), Mapping) else ''}".strip()
    if kind == "object":
        members = ", ".join(name for name, _ in by_name(schema))
        return f"object {members}".strip()
    if kind is None and "anyOf" in schema:
        return " or ".join(type_word(branch) or "string" for branch in schema["anyOf"])
    return {"string": "", "integer": "int", "number": "number", "boolean": "bool", "null": "null"}.get(
        kind or "", "any" if "enum" in schema else ""
    )


class Renderer:
    """Renders tools and requests with one tokenizer; rendered tools are kept, since the same ones come again."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer
        size = 4 * CACHED_CHARACTERS
        self._tools: LRUCache[Tool, RenderedTool] = LRUCache(size, getsizeof=lambda tool: 4 * len(tool.key))
        self._lock = Lock()

    def query(self, text: str) -> tuple[int, ...]:
        pieces = self.tokenizer.pieces
        return pieces.read(text).ids if pieces else self.tokenizer.encode(" " + text)

    def tool(self, tool: Tool) -> RenderedTool:
        """Raises `PromptError` for a tool with more leaves than there are labels."""
        with self._lock:
            rendered = self._tools.get(tool)
        if rendered is None:
            rendered = self._render(tool)
            with self._lock, contextlib.suppress(ValueError):  # larger than the whole cache
                self._tools[tool] = rendered
        return rendered

    def prompt(self, id: str, query: str, tools: Sequence[Tool]) -> Example:
        """What a model reads before it answers; raises `PromptError` for more tools than there are labels."""
        if len(tools) > TOOL_LABELS:
            raise PromptError(f"{len(tools)} tools at once; at most {TOOL_LABELS} fit one request")
        rendered, pieces = tuple(self.tool(tool) for tool in tools), self.tokenizer.pieces
        if pieces is None:
            return Example(id, self.query(query), rendered)
        read = pieces.read(query)
        return Example(id, read.ids, rendered, cases=read.cases, said=Said(query, read.offsets))

    def _render(self, tool: Tool) -> RenderedTool:
        arguments = leaves(tool)
        if len(arguments) > ARGUMENT_LABELS:
            raise PromptError(
                f"tool '{tool.name}' has {len(arguments)} arguments; at most {ARGUMENT_LABELS} are supported"
            )
        if self.tokenizer.pieces:
            return _in_pieces(self.tokenizer.pieces, tool)
        encode = self.tokenizer.encode
        ids: list[int] = [self.tokenizer.tool]
        markers: list[int] = []
        copyable: list[int] = []

        def copy(text: str) -> None:
            piece = encode(text)
            copyable.extend(range(len(ids), len(ids) + len(piece)))
            ids.extend(piece)

        copy(" " + tool.name)
        if tool.description:
            ids.extend(encode(": " + tool.description))
        for leaf in arguments:
            markers.append(len(ids))
            ids.append(self.tokenizer.argument)
            copy(" " + leaf.name)
            ids.extend(encode(("*" if leaf.required else "") + (" " + type_word(leaf.schema)).rstrip()))
            if leaf.schema.get("description"):
                ids.extend(encode(": " + leaf.schema["description"]))
            for index, member in enumerate(members(leaf.schema)):
                ids.extend(encode(" |" if index else " ="))
                copy(" " + member)
        return RenderedTool(tool.name, tuple(ids), tuple(markers), tuple(copyable), tool.key)


class _Row:
    """Pieces that are written one behind the other."""

    def __init__(self, pieces: Pieces) -> None:
        self.pieces, self.ids, self.cases = pieces, [pieces.begin], [0]

    def add(self, text: str) -> tuple[int, int]:
        """Where the pieces of a text stand: the first, and the one behind the last."""
        read, start = self.pieces.read(text), len(self.ids)
        self.ids.extend(read.ids)
        self.cases.extend(read.cases)
        return start, len(self.ids)

    def mark(self) -> int:
        """Where the marker of an argument stands."""
        self.ids.append(self.pieces.argument)
        self.cases.append(0)
        return len(self.ids) - 1


def _in_pieces(pieces: Pieces, tool: Tool) -> RenderedTool:
    """The same text in pieces, names as the words that they are made of; members beyond `MEMBER_LABELS` have none."""
    card, whole = _Row(pieces), _Row(pieces)
    for row in (card, whole):
        _, named = row.add(_worded(tool.name))
        if tool.description:
            row.add(": " + tool.description)
    markers, found = [], []
    if leaves(tool):
        card.mark()
        card.add(", ".join(_worded(leaf.name) for leaf in leaves(tool)))
    for leaf in leaves(tool):
        markers.append(whole.mark())
        whole.add(_worded(leaf.name) + ("*" if leaf.required else "") + (" " + type_word(leaf.schema)).rstrip())
        if leaf.schema.get("description"):
            whole.add(": " + leaf.schema["description"])
        own = []
        for index, member in enumerate(members(leaf.schema)):
            whole.add("|" if index else "=")
            start, end = whole.add(_worded(member) if member.replace("_", "").isalnum() else member)
            own.append((start, end) if end > start else (start - 1, start))
        found.append(tuple(own if len(own) <= MEMBER_LABELS else ()))
    words = Names(
        _compared(pieces, pieces.read(_worded(tool.name)).ids),
        tuple(_compared(pieces, pieces.read(_worded(leaf.name)).ids) for leaf in leaves(tool)),
        tuple(tuple(_compared(pieces, whole.ids[start:end]) for start, end in own) for own in found),
    )
    return RenderedTool(
        tool.name, tuple(whole.ids), tuple(markers), (), tool.key, tuple(whole.cases), tuple(card.ids),
        tuple(card.cases), named, tuple(found), words,
    )  # fmt: skip


def _compared(pieces: Pieces, ids: Sequence[int]) -> str:
    return "".join(pieces.compared(ids)) + EDGE


def _worded(name: str) -> str:
    """`getWeather_v2` as "get Weather v2"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", re.sub(r"[_.-]+", " ", name)).strip() or name


def members(schema: Mapping[str, Any]) -> list[str]:
    """The enum members of a value, or of what a list or map is made of, as text."""
    return [value if isinstance(value, str) else json.dumps(value) for value in choices(schema)]


def render_record(renderer: Renderer, codec: Codec, record: Record) -> Example:
    """Prompt and target of one record; raises `PromptError` when the answers can't be written for its tools."""
    prompt = renderer.prompt(record.id, record.query, record.tools)
    target, open_tool = codec.encode(record.answers, record.tools, prompt.said or prompt.query, record.missing)
    return replace(prompt, target=target, open_tool=open_tool, kinds=codec.kinds(target))


class Codec(ABC):
    """Turns calls into target tokens and back. The two are `needle.text.jsoncodec` and
    `needle.text.decisions`."""

    name: str

    @abstractmethod
    def encode(
        self,
        calls: Sequence[Call],
        tools: Sequence[Tool],
        query: Sequence[int] | Said,
        missing: Missing | None = None,
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns target ids, ending in `<eos>`, and the open tool at each of them (-1 for none). `query` is
        `Example.said` of a request that is read in pieces. Only the codec `spans` writes what is `missing`."""

    @abstractmethod
    def kinds(self, ids: Sequence[int]) -> tuple[int, ...]:
        """What each target token is part of, an index of `KINDS`: a tool's name, an argument's key, a value, or
        syntax."""

    @abstractmethod
    def decode(
        self,
        ids: Sequence[int],
        tools: Sequence[Tool],
        now: datetime | None = None,
        left_out: list[str] | None = None,
        said: Said | None = None,
        missing: list[Missing] | None = None,
    ) -> list[Call]:
        """The calls that `ids` (without `<eos>`) write, for the request `said`; `missing` hears of tools that lack a
        value.

        `now` is the moment against which "tomorrow" is read. With a list `left_out`, an optional argument whose words
        aren't a value of its type is left out and noted there.

        Raises:
            DecodeError: `ids` aren't an answer, or what was said isn't a value of its argument's type.
        """


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
