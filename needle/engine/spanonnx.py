"""The span student's export in onnxruntime, without torch: the graphs of `needle.exports.span`, and what stands between
them.

One answer at a time: what is read of tools is kept, and a step is one call of one graph.

Legend: as in `needle.exports.span`, and E members of the open tool's enums, U tools of a request.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

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
Kept = TypeVar("Kept")
Own = TypeVar("Own", _Card, _Form, _Offer)


class SpanOnnx:
    """An export as what computes; it may be asked by several threads at once."""

    name, concurrent = "onnxruntime", True
    read_at_once = "the longest of the request and its tools is"
    can_rank = True

    def __init__(self, model: Model, export: Export) -> None:
        self.model, self.export, self.precision = model, export, export.precision
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
        offers = export.cache_bytes // 6
        self._tools: LRUCache[tuple[str, ...], _Card | _Form] = LRUCache(export.cache_bytes - offers, _size)
        self._offers: LRUCache[tuple[str, ...], _Offer] = LRUCache(offers, _size)
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1)  # for tools that weren't read before

    def read_length(self, example: Example) -> int:
        return max([len(example.query), *(len(tool.ids) for tool in example.tools)])

    def room(self, example: Example, max_length: int) -> int:
        return max_length

    def start(self, examples: Sequence[Example]) -> OneByOne:
        return OneByOne([_Answering(self, example) for example in examples])

    def tool_keys(self, tools: Sequence[RenderedTool]) -> Floats:
        return np.stack([card.key for card in self.cards(tools)])

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
        found = self._known(self._tools, "card", tool.key)
        if not isinstance(found, _Card):
            _, read, _ = self.encode(tool.card, tool.card_cases, 1)
            use = read[0].mean(0)
            card = _Card(self.export.run("card", read), use, self.tables["key_tool"] @ use)
            found = self._keep(self._tools, card, "card", tool.key)
        return found

    def form(self, tool: RenderedTool) -> _Form:
        found = self._known(self._tools, "form", tool.key)
        if not isinstance(found, _Form):
            lower, read, kept = self.encode(tool.ids, tool.cases, 1)
            spans = [place for leaf in tool.members for place in leaf]
            none = np.zeros((0, self.width), np.float32)
            members = np.stack([read[0, begin:behind].mean(0) for begin, behind in spans]) if spans else none
            count = [len(leaf) for leaf in tool.members]
            first = [0, *itertools.accumulate(count)][:-1]
            markers, keys = lower[:, list(tool.markers)], members @ self.tables["key_member"].T
            form = _Form(kept, markers, members, keys, first, count)
            found = self._keep(self._tools, form, "form", tool.key)
        return found

    def offer(self, tools: Sequence[RenderedTool]) -> _Offer:
        keys = tuple(tool.key for tool in tools)
        found = self._known(self._offers, *keys)
        if found is None:
            cards = self.cards(tools)
            none = np.zeros((0, self.width), np.float32)
            seen = zip(self.empty, *(card.seen for card in cards), strict=True)
            found = _Offer(
                [np.concatenate(parts, axis=2) for parts in seen],
                np.stack([card.use for card in cards]) if cards else none,
                np.stack([card.key for card in cards]) if cards else none,
            )
            self._keep(self._offers, found, *keys)
        return found

    def cards(self, tools: Sequence[RenderedTool]) -> list[_Card]:
        """Several that are new are read side by side."""
        with self._lock:
            new = sum(("card", tool.key) not in self._tools for tool in tools)
        return list(self._pool.map(self.card, tools)) if new > 1 else [self.card(tool) for tool in tools]

    def _known(self, kept: LRUCache[tuple[str, ...], Kept], *key: str) -> Kept | None:
        with self._lock:
            return kept.get(key)

    def _keep(self, kept: LRUCache[tuple[str, ...], Any], own: Own, *key: str) -> Own:
        with self._lock:
            if own.nbytes <= kept.maxsize:
                kept[key] = own
        return own


def _size(own: _Card | _Form | _Offer) -> int:
    return own.nbytes


class _Answering:
    """One answer in the making, as `SpanStudent.start` and `.step` make it."""

    def __init__(self, backend: SpanOnnx, example: Example) -> None:
        self.backend, self.tools = backend, example.tools
        ids = example.query or (backend.model.tokenizer.pieces.unknown,)  # type: ignore[union-attr]
        self.lower, read, _ = backend.encode((BEGIN, *ids), (0, *(example.cases or (0,))), 0)
        self.offer, self.form = backend.offer(example.tools), NO_FORM
        self.past = backend.no_past
        self.hidden = self.pointed = np.zeros((0, backend.width), np.float32)
        self.fed: list[int] = []  # the last tokens
        self.named_before: list[int] = []  # arguments of the open call
        self.wanted = np.zeros(0, np.float32)  # how much each argument was, when one was last chosen
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
        self.fits = [self.arguments @ keys[0, :Q].T for keys in (begin, end)]
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
        self.fed, self.hidden, self.states, self.pointed = list(tokens), hidden, states, pointed
        return self._scores(text)

    def draft(self, token: int, most: int) -> list[int]:
        """An argument's value probably stands where its marker fits the request best, and arguments follow in the order
        in which they were wanted when one was last chosen."""
        members, places, tools, arguments = self.backend.first
        Q, found = len(self.query), list[int]()
        for own in (*self.fed[1:], token):  # the first of them was chosen and is counted
            if own >= arguments:
                self.named_before.append(own - arguments)
            elif own >= tools:
                self.named_before = []
        if token >= arguments:
            self.wanted = self.pointed[-1, 2 * Q : 2 * Q + len(self.arguments)].copy()
            found = self._value(token - arguments)
        elif places <= token < tools and not self.begun:
            begin = token - places
            found = [token + int(self.pointed[-1, Q + begin : Q + min(Q, PLACE_LABELS)].argmax())]
        elif not members <= token < tools:
            return []
        self.wanted[self.named_before] = -np.inf
        for argument in self.wanted.argsort()[::-1]:
            if len(found) >= most or not np.isfinite(self.wanted[argument]):
                break
            found += [arguments + int(argument), *self._value(int(argument))]
        return found[:most]

    def _value(self, argument: int) -> list[int]:
        """The tokens of a value that an argument might have."""
        members, places, *_ = self.backend.first
        count, first = self.form.count[argument], self.form.first[argument]
        if count:
            fits = self.form.member_keys[first : first + min(count, MEMBER_LABELS)] @ self.arguments[argument]
            return [members + int(fits.argmax())]
        begins, ends = (own[argument, :PLACE_LABELS] for own in self.fits)
        begin = int(begins.argmax())
        return [places + begin, places + begin + int(ends[begin:].argmax())]

    def cut(self, count: int) -> None:
        self.position -= count
        self.past = [own[:, :, : self.position] for own in self.past]
        self.states = self.states[: len(self.states) - count]
        for name in ("fed", "hidden", "pointed"):
            setattr(self, name, getattr(self, name)[: len(self.states)])
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

    def _scores(self, text: Floats) -> Floats:
        """[n, V] behind the last tokens."""
        backend, pointed, Q, A, U = self.backend, self.pointed, len(self.query), len(self.arguments), len(self.tools)
        members, places, tools, arguments = backend.first
        scores = np.full((len(text), arguments + ARGUMENT_LABELS), -np.inf, np.float32)
        text, gates = text[:, : backend.text], text[:, backend.text :]
        scores[:, : backend.text] = text + gates[:, TEXT, None]
        scores[:, arguments : arguments + A] = pointed[:, 2 * Q : 2 * Q + A] + gates[:, ARGUMENT, None]
        first = 2 * Q + A
        scores[:, tools : tools + U] = pointed[:, first : first + U] + gates[:, TOOL, None]
        if backend.literal:
            literal = np.zeros((2, len(text), LEVELS), np.float32)
            literal[:, :, 1:] = gates[:, LITERAL:].reshape(-1, 2, LEVELS - 1).swapaxes(0, 1)
            scores[:, tools : tools + U] += literal[1][:, self.named]
        said = min(Q, PLACE_LABELS)
        for row, (argument, begun) in enumerate(self.states):
            at = Q if begun else 0
            scores[row, places : places + said] = pointed[row, at : at + said] + gates[row, PLACE]
            count = min(self.form.count[argument], MEMBER_LABELS) if argument >= 0 else 0
            if count:
                own = self.form.first[argument]
                at = first + U + own
                scores[row, members : members + count] = pointed[row, at : at + count] + gates[row, MEMBER]
                if backend.literal:
                    scores[row, members : members + count] += literal[0, row, self.levels[own : own + count]]
        return scores
