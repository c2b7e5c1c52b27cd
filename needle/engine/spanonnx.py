"""The span student's export in onnxruntime, without torch: the graphs of `needle.exports.span`, and what stands between
them.

One answer at a time: what is read of tools is kept, and a step is one call of one graph.

Legend: as in `needle.exports.span`, and E members of the open tool's enums, U tools of a request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TypeVar

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from needle.engine.backend import Floats
from needle.engine.onnx import Export
from needle.text.folder import Model
from needle.text.pieces import SPECIAL
from needle.text.prompt import Example, RenderedTool
from needle.text.tokenizer import ARGUMENT_LABELS, MARKERS, MEMBER_LABELS, PLACE_LABELS

BEGIN = SPECIAL.index("[CLS]")
ANSWER = MARKERS.index("<answer>")
TEXT, MEMBER, PLACE, TOOL, ARGUMENT = range(5)  # gates of the kinds of outcome
ROLE_ANSWER, ROLE_TEXT, ROLE_TOOL, ROLE_ARGUMENT, ROLE_MEMBER, ROLE_BEGINS, ROLE_ENDS = range(7)


@dataclass
class _Card:
    """What tells a tool's use, as the decoder reads it."""

    seen: Floats  # [L, 2, H, C, d]
    use: Floats  # [D]
    key: Floats  # [D]

    @property
    def nbytes(self) -> int:
        return int(self.seen.nbytes + self.use.nbytes + self.key.nbytes)


@dataclass
class _Form:
    """A whole tool, read alone."""

    kept: Floats  # [J, W, 2D]
    markers: Floats  # [A, D]
    members: Floats  # [E, D]
    member_keys: Floats  # [E, D]
    first: NDArray[np.int64]  # [A] the first member of each argument

    @property
    def nbytes(self) -> int:
        return int(self.kept.nbytes + self.markers.nbytes + self.members.nbytes + self.member_keys.nbytes)


@dataclass
class _Offer:
    """The tools of a request together."""

    seen: Floats  # [L, 2, H, S, d]
    uses: Floats  # [U, D]
    keys: Floats  # [U, D]

    @property
    def nbytes(self) -> int:
        return int(self.seen.nbytes + self.uses.nbytes + self.keys.nbytes)


Kept = TypeVar("Kept", _Card, _Form, _Offer)


class SpanOnnx:
    """An export as what computes; it may be asked by several threads at once."""

    name = "onnxruntime"
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
        self.nothing = np.zeros((self.joint, 0, 2 * self.width), np.float32)
        self.empty = self.tables["seen_empty"].reshape(self.layers, 2, self.heads, 1, self.head)
        self._kept: LRUCache[tuple[str, ...], _Card | _Form | _Offer] = LRUCache(
            export.cache_bytes, getsizeof=lambda own: own.nbytes
        )
        self._lock = Lock()
        frequencies = self.student["rope_theta"] ** (-np.arange(0, self.head, 2, dtype=np.float32) / self.head)
        angles = np.arange(model.max_length + 1, dtype=np.float32)[:, None] * frequencies.astype(np.float32)
        self.cos, self.sin = np.cos(angles), np.sin(angles)

    def read_length(self, example: Example) -> int:
        return max([len(example.query), *(len(tool.ids) for tool in example.tools)])

    def room(self, example: Example, max_length: int) -> int:
        return max_length

    def start(self, examples: Sequence[Example]) -> SpanAnswers:
        return SpanAnswers([_Answering(self, example) for example in examples])

    def tool_keys(self, tools: Sequence[RenderedTool]) -> Floats:
        return np.stack([self.card(tool).key for tool in tools])

    def request_key(self, example: Example) -> Floats:
        answering = _Answering(self, example)
        answering.step(ANSWER, -1)
        key: Floats = answering.hidden[-1] * np.float32(self.width**-0.5)
        return key

    # Reading

    def encode(self, ids: Sequence[int], cases: Sequence[int], kind: int) -> tuple[Floats, Floats, Floats]:
        """[s, D] below the layers that read together and above, and the keys and values of those [J, s, 2D]."""
        places = np.minimum(np.arange(len(ids)), len(self.tables["position"]) - 1)
        x = self.export.rows("embed", np.asarray(ids)) + self.tables["case"][np.asarray(cases)]
        x = x + self.tables["position"][places] + self.tables["kind"][kind]
        (lower,) = self.export.run("lower", x)
        read, kept = self.export.run("upper", lower, self.nothing)
        return lower, read, kept

    def card(self, tool: RenderedTool) -> _Card:
        found = self._known("card", tool.key)
        if not isinstance(found, _Card):
            _, read, _ = self.encode(tool.card, tool.card_cases, 1)
            found = self._keep(_Card(*self.export.run("card", read)), "card", tool.key)
        return found

    def form(self, tool: RenderedTool) -> _Form:
        found = self._known("form", tool.key)
        if not isinstance(found, _Form):
            lower, read, kept = self.encode(tool.ids, tool.cases, 1)
            spans = [place for leaf in tool.members for place in leaf]
            members = np.stack([read[begin:behind].mean(0) for begin, behind in spans] or [read[0]])
            first = np.cumsum([0, *(len(leaf) for leaf in tool.members)])[:-1]
            form = _Form(kept, lower[list(tool.markers)], members, members @ self.tables["key_member"].T, first)
            found = self._keep(form, "form", tool.key)
        return found

    def offer(self, tools: Sequence[RenderedTool]) -> _Offer:
        keys = tuple(tool.key for tool in tools)
        found = self._known("offer", *keys)
        if not isinstance(found, _Offer):
            cards = [self.card(tool) for tool in tools]
            none = np.zeros((0, self.width), np.float32)
            found = _Offer(
                np.concatenate([self.empty, *(card.seen for card in cards)], axis=3),
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


class SpanAnswers:
    """The answers of one batch in the making, each by itself."""

    def __init__(self, every: list[_Answering]) -> None:
        self.every = every

    def step(self, tokens: Sequence[Sequence[int]], open_tool: Sequence[Sequence[int]]) -> Floats:
        return np.stack(
            [
                np.stack([one.step(token, tool) for token, tool in zip(fed, opened, strict=True)])
                for one, fed, opened in zip(self.every, tokens, open_tool, strict=True)
            ]
        )

    def select(self, rows: Sequence[int]) -> None:
        self.every = [self.every[row] for row in rows]

    def sources(self) -> None:
        return None

    def draft(self, token: int, most: int) -> list[int]:
        return []

    def confirms(self, token: int, step: int) -> bool:
        raise NotImplementedError("this student doesn't draft")

    def cut(self, count: int) -> None:
        raise NotImplementedError("this student doesn't draft")


class _Answering:
    """One answer in the making, as `SpanStudent.start` and `.step` make it."""

    def __init__(self, backend: SpanOnnx, example: Example) -> None:
        self.backend, self.tools = backend, example.tools
        ids = example.query or (backend.model.tokenizer.pieces.unknown,)  # type: ignore[union-attr]
        self.lower, read, _ = backend.encode((BEGIN, *ids), (0, *(example.cases or (0,))), 0)
        self.query = read[1:]
        self.offer = backend.offer(example.tools)
        self.arguments = self.members = self.member_keys = np.zeros((0, backend.width), np.float32)
        self.first: NDArray[np.int64] = np.zeros(0, np.int64)
        self.count: list[int] = []
        self.cross, self.keys = backend.export.run("row", self.query, self.arguments)
        self.past = np.zeros((backend.layers, 2, backend.heads, 0, backend.head), np.float32)
        self.hidden = np.zeros((0, backend.width), np.float32)
        self.argument, self.begun = -1, False

    def open(self, number: int) -> None:
        """Reads the request together with a tool."""
        backend, tool = self.backend, self.tools[number]
        form, length = backend.form(tool), len(self.lower)
        read, _ = backend.export.run("upper", np.concatenate([self.lower, form.markers]), form.kept)
        self.query, self.arguments = read[1:length], read[length:]
        self.cross, self.keys = backend.export.run("row", self.query, self.arguments)
        self.members, self.member_keys, self.first = form.members, form.member_keys, form.first
        self.count = [len(leaf) for leaf in tool.members]

    def step(self, token: int, open_tool: int) -> Floats:
        """[V] scores behind a token."""
        backend, position = self.backend, self.past.shape[3]
        x = self._input(token, open_tool)[None]
        seen = (self.offer.seen, self.keys, self.offer.keys, self.member_keys)
        self.past, self.hidden, text, pointed = backend.export.run(
            "step", x, backend.cos[position : position + 1], backend.sin[position : position + 1],
            np.zeros((1, position + 1), np.float32), self.past, self.cross, *seen,
        )  # fmt: skip
        return self._scores(text[0], pointed[0])

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
            x, role = self.members[self.first[self.argument] + token - members], ROLE_MEMBER
        elif token == ANSWER:
            x, role = self._asked() @ tables["opening"].T, ROLE_ANSWER
        else:
            x = tables["write"][token]
        given: Floats = x + tables["role"][role]
        return given

    def _asked(self) -> Floats:
        mean: Floats = self.query.mean(0)
        return mean

    def _scores(self, text: Floats, pointed: Floats) -> Floats:
        backend, Q, A, U = self.backend, len(self.query), len(self.arguments), len(self.tools)
        members, places, tools, arguments = backend.first
        scores = np.full(arguments + ARGUMENT_LABELS, -np.inf, np.float32)
        text, gates = text[: backend.text], text[backend.text :]
        scores[: backend.text] = text + gates[TEXT]
        at = Q if self.begun else 0
        said = min(Q, PLACE_LABELS)
        scores[places : places + said] = pointed[at : at + said] + gates[PLACE]
        scores[arguments : arguments + A] = pointed[2 * Q : 2 * Q + A] + gates[ARGUMENT]
        behind = 2 * Q + A
        scores[tools : tools + U] = pointed[behind : behind + U] + gates[TOOL]
        if self.argument >= 0 and self.count[self.argument]:
            count = min(self.count[self.argument], MEMBER_LABELS)
            first = behind + U + int(self.first[self.argument])
            scores[members : members + count] = pointed[first : first + count] + gates[MEMBER]
        return scores
