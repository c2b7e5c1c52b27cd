"""The span student's export in onnxruntime, without torch: the graphs of `needle.exports.span`, and what stands between
them.

One answer at a time: what is read of tools is kept, and a step is one call of one graph.

Legend: as in `needle.exports.span`, and E members of the open tool's enums, U tools of a request.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TypeVar

import numpy as np
from cachetools import LRUCache

from needle.engine.backend import Floats
from needle.engine.onnx import Export, OneByOne
from needle.text.folder import Model
from needle.text.literal import LEVELS, Literal
from needle.text.pieces import SPECIAL
from needle.text.prompt import Example, RenderedTool
from needle.text.tokenizer import ARGUMENT_LABELS, MARKERS, MEMBER_LABELS, PLACE_LABELS

BEGIN = SPECIAL.index("[CLS]")
ANSWER = MARKERS.index("<answer>")
TEXT, MEMBER, PLACE, TOOL, ARGUMENT, LITERAL = range(6)  # gates of the kinds of outcome, then of what is said literally
ROLE_ANSWER, ROLE_TEXT, ROLE_TOOL, ROLE_ARGUMENT, ROLE_MEMBER, ROLE_BEGINS, ROLE_ENDS = range(7)


@dataclass
class _Card:
    """What tells a tool's use, as the decoder reads it."""

    seen: list[Floats]  # keys and values of each layer, [1, H, C, d]
    use: Floats  # [D]
    key: Floats  # [D]

    @property
    def nbytes(self) -> int:
        return sum(own.nbytes for own in (*self.seen, self.use, self.key))


@dataclass
class _Form:
    """A whole tool, read alone."""

    kept: list[Floats]  # keys and values of each layer that reads together, [1, W, D]
    markers: Floats  # [1, A, D]
    members: Floats  # [E, D]
    member_keys: Floats  # [E, D]
    first: list[int]  # [A] the first member of each argument
    count: list[int]  # [A] how many it has

    @property
    def nbytes(self) -> int:
        return sum(own.nbytes for own in (*self.kept, self.markers, self.members, self.member_keys))


@dataclass
class _Offer:
    """The tools of a request together."""

    seen: list[Floats]  # keys and values of each layer, [1, H, S, d]
    uses: Floats  # [U, D]
    keys: Floats  # [U, D]

    @property
    def nbytes(self) -> int:
        return sum(own.nbytes for own in (*self.seen, self.uses, self.keys))


NOTHING = np.zeros((0, 0), np.float32)
NO_FORM = _Form([], NOTHING, NOTHING, NOTHING, [], [])
Kept = TypeVar("Kept", _Card, _Form, _Offer)


class SpanOnnx:
    """An export as what computes; it may be asked by several threads at once."""

    name, concurrent = "onnxruntime", True
    read_at_once = "the longest of the request and its tools is"
    can_rank = True

    def __init__(self, model: Model, export: Export) -> None:
        self.model, self.export = model, export
        self.parameters: int = export.facts["parameters"]
        self.student = export.facts["student"]
        self.tables = export.tables
        self.width, self.layers, self.heads = (self.student[name] for name in ("width", "decoder_layers", "heads"))
        self.head, self.joint = self.width // self.heads, self.student["joint"]
        names = model.tokenizer
        self.first = (names.first_member, names.first_place, names.first_tool_label, names.first_argument_label)
        self.text = names.text_size
        none = np.zeros((1, 0, self.width), np.float32)
        self.nothing, self.no_past = [none] * (2 * self.joint), [none.reshape(1, self.heads, 0, self.head)]
        self.no_past *= 2 * self.layers
        self.literal = bool(self.student.get("literal"))
        self.empty = list(self.tables["seen_empty"].reshape(2 * self.layers, 1, self.heads, 1, self.head))
        self._kept: LRUCache[tuple[str, ...], _Card | _Form | _Offer] = LRUCache(
            export.cache_bytes, getsizeof=lambda own: own.nbytes
        )
        self._lock = Lock()

    def read_length(self, example: Example) -> int:
        return max([len(example.query), *(len(tool.ids) for tool in example.tools)])

    def room(self, example: Example, max_length: int) -> int:
        return max_length

    def start(self, examples: Sequence[Example]) -> OneByOne:
        return OneByOne([_Answering(self, example) for example in examples])

    def tool_keys(self, tools: Sequence[RenderedTool]) -> Floats:
        return np.stack([self.card(tool).key for tool in tools])

    def request_key(self, example: Example) -> Floats:
        answering = _Answering(self, example)
        answering.step([ANSWER], -1)
        key: Floats = answering.hidden[-1] * np.float32(self.width**-0.5)
        return key

    # Reading

    def encode(self, ids: Sequence[int], cases: Sequence[int], kind: int) -> tuple[Floats, Floats, list[Floats]]:
        """[1, s, D] below the layers that read together and above, and the keys and values of those."""
        places = np.minimum(np.arange(len(ids)), len(self.tables["position"]) - 1)
        x = self.export.rows("embed", np.asarray(ids)) + self.tables["case"][np.asarray(cases)]
        x = x + self.tables["position"][places] + self.tables["kind"][kind]
        (lower,) = self.export.run("lower", x[None])
        read, *kept = self.export.run("upper", lower, *self.nothing)
        return lower, read, kept

    def card(self, tool: RenderedTool) -> _Card:
        found = self._known("card", tool.key)
        if not isinstance(found, _Card):
            _, read, _ = self.encode(tool.card, tool.card_cases, 1)
            use = read[0].mean(0)
            card = _Card(self.export.run("card", read), use, self.tables["key_tool"] @ use)
            found = self._keep(card, "card", tool.key)
        return found

    def form(self, tool: RenderedTool) -> _Form:
        found = self._known("form", tool.key)
        if not isinstance(found, _Form):
            lower, read, kept = self.encode(tool.ids, tool.cases, 1)
            spans = [place for leaf in tool.members for place in leaf]
            none = np.zeros((0, self.width), np.float32)
            members = np.stack([read[0, begin:behind].mean(0) for begin, behind in spans]) if spans else none
            count = [len(leaf) for leaf in tool.members]
            first = [0, *itertools.accumulate(count)][:-1]
            markers, keys = lower[:, list(tool.markers)], members @ self.tables["key_member"].T
            found = self._keep(_Form(kept, markers, members, keys, first, count), "form", tool.key)
        return found

    def offer(self, tools: Sequence[RenderedTool]) -> _Offer:
        keys = tuple(tool.key for tool in tools)
        found = self._known("offer", *keys)
        if not isinstance(found, _Offer):
            cards = [self.card(tool) for tool in tools]
            none = np.zeros((0, self.width), np.float32)
            seen = zip(self.empty, *(card.seen for card in cards), strict=True)
            found = _Offer(
                [np.concatenate(parts, axis=2) for parts in seen],
                np.stack([card.use for card in cards]) if cards else none,
                np.stack([card.key for card in cards]) if cards else none,
            )
            self._keep(found, "offer", *keys)
        return found

    def _known(self, *key: str) -> _Card | _Form | _Offer | None:
        with self._lock:
            return self._kept.get(key)

    def _keep(self, own: Kept, *key: str) -> Kept:
        with self._lock:
            if own.nbytes <= self._kept.maxsize:
                self._kept[key] = own
        return own


class _Answering:
    """One answer in the making, as `SpanStudent.start` and `.step` make it."""

    def __init__(self, backend: SpanOnnx, example: Example) -> None:
        self.backend, self.tools = backend, example.tools
        ids = example.query or (backend.model.tokenizer.pieces.unknown,)  # type: ignore[union-attr]
        self.lower, read, _ = backend.encode((BEGIN, *ids), (0, *(example.cases or (0,))), 0)
        self.offer, self.form = backend.offer(example.tools), NO_FORM
        self.past = backend.no_past
        self.hidden = self.ends = np.zeros((0, backend.width), np.float32)
        self.position, self.argument, self.begun = 0, -1, False
        self.literal = Literal(backend.model.tokenizer.pieces.compared(ids))  # type: ignore[union-attr]
        self.named = [self.literal.level(tool.words.tool) for tool in example.tools]
        self.levels: list[int] = []
        self._row(read[:, 1:], 0)

    def open(self, number: int) -> None:
        """Reads the request together with a tool."""
        backend, tool = self.backend, self.tools[number]
        self.form = form = backend.form(tool)
        row = np.concatenate([self.lower, form.markers], axis=1)
        if backend.literal:
            found = self.literal.find(tool.words)
            row[0, 1 : self.lower.shape[1]] += backend.tables["said"][found.said]
            row[0, self.lower.shape[1] :] += backend.tables["heard"][found.arguments]
            self.levels = found.members
        read, *_ = backend.export.run("upper", row, *form.kept)
        self._row(read[:, 1:], form.markers.shape[1])

    def _row(self, read: Floats, arguments: int) -> None:
        """What the decoder reads from now on [1, Q+A, D], and what it may point at."""
        *self.cross, begin, end, argument = self.backend.export.run("row", read)
        Q = read.shape[1] - arguments
        self.query, self.arguments = read[0, :Q], read[0, Q:]
        members = [self.form.member_keys] if self.form.count else []
        self.keys = np.concatenate([begin[0, :Q], end[0, :Q], argument[0, Q:], self.offer.keys, *members])

    def step(self, tokens: Sequence[int], open_tool: int) -> Floats:
        """[n, V] scores behind tokens, of which only the first may open a tool."""
        x, states = [], []
        for token in tokens:
            x.append(self._input(token, open_tool))
            states.append((self.argument, self.begun))
        layers = [
            part
            for at in range(0, 2 * self.backend.layers, 2)
            for own in (self.past, self.cross, self.offer.seen)
            for part in own[at : at + 2]
        ]
        (hidden,), (text,), (pointed,), *self.past = self.backend.export.run(
            "step", np.stack(x)[None], np.asarray([self.position], np.int64), self.keys, *layers
        )
        self.position += len(tokens)
        self.hidden, self.states, self.ends = hidden, states, pointed[:, len(self.query) : 2 * len(self.query)]
        return np.stack([self._scores(*row) for row in zip(text, pointed, states, strict=True)])

    def draft(self, token: int) -> list[int]:
        """Where a value that begins probably ends, guessed before its beginning is read."""
        _, places, tools, _ = self.backend.first
        if not places <= token < tools or self.begun:
            return []
        begin = token - places
        return [token + int(self.ends[-1, begin:PLACE_LABELS].argmax())]

    def cut(self, count: int) -> None:
        self.position -= count
        self.past = [own[:, :, : self.position] for own in self.past]
        self.states = self.states[: len(self.states) - count]
        self.hidden, self.ends = self.hidden[: len(self.states)], self.ends[: len(self.states)]
        self.argument, self.begun = self.states[-1]

    def _input(self, token: int, open_tool: int) -> Floats:
        """[D] of a token: what it points at, and what the answer has come to."""
        backend, tables = self.backend, self.backend.tables
        members, places, tools, arguments = backend.first
        begun, role = self.begun, ROLE_TEXT
        self.begun = places <= token < tools and not begun
        if token >= arguments:
            self.argument = token - arguments
            x, role = self.arguments[self.argument], ROLE_ARGUMENT
        elif token >= tools:
            self.argument = -1
            self.open(open_tool)
            x, role = self.offer.uses[token - tools], ROLE_TOOL
        elif token >= places:
            x, role = self.query[token - places], ROLE_BEGINS if self.begun else ROLE_ENDS
        elif token >= members:
            x, role = self.form.members[self.form.first[self.argument] + token - members], ROLE_MEMBER
        elif token == ANSWER:
            x, role = tables["opening"] @ self.query.mean(0), ROLE_ANSWER
        else:
            x = backend.export.rows("write", np.asarray([token]))[0]
        given: Floats = x + tables["role"][role]
        return given

    def _scores(self, text: Floats, pointed: Floats, state: tuple[int, bool]) -> Floats:
        argument, begun = state
        backend, Q, A, U = self.backend, len(self.query), len(self.arguments), len(self.tools)
        members, places, tools, arguments = backend.first
        scores = np.full(arguments + ARGUMENT_LABELS, -np.inf, np.float32)
        text, gates = text[: backend.text], text[backend.text :]
        scores[: backend.text] = text + gates[TEXT]
        at = Q if begun else 0
        said = min(Q, PLACE_LABELS)
        scores[places : places + said] = pointed[at : at + said] + gates[PLACE]
        scores[arguments : arguments + A] = pointed[2 * Q : 2 * Q + A] + gates[ARGUMENT]
        behind = 2 * Q + A
        scores[tools : tools + U] = pointed[behind : behind + U] + gates[TOOL]
        literal = np.zeros((2, LEVELS), np.float32)
        if backend.literal:
            literal[:, 1:] = gates[LITERAL:].reshape(2, LEVELS - 1)
            scores[tools : tools + U] += literal[1, self.named]
        if argument >= 0 and self.form.count[argument]:
            count = min(self.form.count[argument], MEMBER_LABELS)
            own = self.form.first[argument]
            first = behind + U + own
            scores[members : members + count] = pointed[first : first + count] + gates[MEMBER]
            if backend.literal:
                scores[members : members + count] += literal[0, self.levels[own : own + count]]
        return scores
