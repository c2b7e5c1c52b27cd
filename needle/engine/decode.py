"""The engine: greedy answers from a checkpoint, free or under the grammar of the declared tools.

Evaluation, serving and the checks during training all decode here, in one loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from needle.engine.backend import Backend, Floats, backend_of
from needle.engine.confidence import ARGUMENT, CALL, FIRST, VALUE, Calibration, Decision, Noticed, how_sure
from needle.engine.fit import shortened
from needle.engine.retrieve import build_retriever
from needle.engine.spans import copied_spans, pointed_spans, with_scales
from needle.text.declarations import SkippedTool
from needle.text.grammar import Grammar, GrammarError, Matcher
from needle.text.jsontext import DecodeError
from needle.text.pieces import Said
from needle.text.prompt import Example, PromptError
from needle.text.records import Call, FieldError, Missing, Tool, ToolSchemaError, encodable
from needle.text.validity import call_errors

if TYPE_CHECKING:
    from needle.students.checkpoint import Checkpoint

DECODINGS = ("constrained", "free")
MAX_TOKENS = 150
SHORTENED = 256  # tools that were too long, and what was made of them
MAX_UNSAID = 32  # tokens that a value may have beyond those of the request, and of a tool with its enums
MAX_DRAFT = 4  # tokens of a value that are proposed at once

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Request:
    """What somebody said, and the tools to answer it with.

    A tool that can't be used, being too long or too large for a grammar, is left out; with `strict` it is an error.
    `skipped` are those that were left out before, and `places` says where the others stood among the declarations.
    `now` is the moment against which "tomorrow" is read. With `omit`, an optional argument whose words don't fit is
    left out; without it there is no answer. If it is `required`, something is called whatever was said.
    """

    query: str
    tools: tuple[Tool, ...]
    id: str = ""
    strict: bool = False
    now: datetime | None = None
    omit: bool = False
    required: bool = False
    skipped: tuple[SkippedTool, ...] = ()
    places: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.places:
            object.__setattr__(self, "places", tuple(range(len(self.tools))))


@dataclass(frozen=True)
class Answer:
    """`calls` is None when there is no answer: the budget ran out (`length`), the output was broken (`invalid`),
    or the request couldn't be read (`refused`, the reason in `error`).

    `confidence` is the probability that the whole answer is right if it is `calibrated`; else the product of the
    student's own probabilities of the tokens that it was free to choose and of those that end a value, 0 to 1.
    `call_confidence` and `argument_confidence` are the same of each call and of its arguments by name, and `reasons`
    say what is in doubt where it is low. `skipped` are tools that were left out, `shortened` those whose descriptions
    were cut, `left_out` the optional arguments whose words didn't fit, each with the reason, and `missing` the tools
    that were wished for but lack a required value, which nobody said.
    """

    calls: tuple[Call, ...] | None
    confidence: float
    finish: str
    tokens: int = 0
    error: str = ""
    skipped: tuple[SkippedTool, ...] = ()
    shortened: tuple[SkippedTool, ...] = ()
    left_out: tuple[str, ...] = ()
    missing: tuple[Missing, ...] = ()
    calibrated: bool = False
    call_confidence: tuple[float, ...] = ()
    argument_confidence: tuple[Mapping[str, float], ...] = ()
    reasons: tuple[str, ...] = ()
    noticed: Noticed | None = field(default=None, compare=False, repr=False)


@dataclass
class _Row:
    """One answer in the making."""

    index: int
    request: Request
    matcher: Matcher | None
    shortened: tuple[SkippedTool, ...] = ()
    said: Said | None = None
    limit: int = 0  # of tokens
    longest: int = 1 << 30  # tokens of a value; more were neither said nor declared
    value: int = 0  # tokens of the value that is being written
    tokens: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)  # where each token, <answer> first, was copied from
    log_prob: float = 0.0
    decisions: list[Decision] = field(default_factory=list)
    calls: int = 0  # that are begun
    lacking: set[int] = field(default_factory=set)  # those of them that lack a value
    argument: int = -1  # the one that is open
    open_tool: int = -1
    error: str = ""
    answer: Answer | None = None


class Engine:
    """Answers requests with one model: a backend, or a checkpoint, which torch then computes.

    Of more than `max_tools` tools, if that isn't 0, the student is shown only the `max_tools` that fit the request
    best: by its own encoder and BM25 in turn where it has one, else by BM25. With a `calibration`, its confidence is a
    probability.
    """

    def __init__(
        self,
        given: Backend | Checkpoint,
        decoding: str = "constrained",
        max_tools: int = 0,
        calibration: Calibration | None = None,
    ) -> None:
        if decoding not in DECODINGS:
            raise ValueError(f"decoding is '{decoding}'; expected one of {', '.join(DECODINGS)}")
        if max_tools < 0:
            raise ValueError(
                f"max_tools is {max_tools}; it must be 0 (show the student every tool) or how many it is shown at once"
            )
        self.backend = backend_of(given)
        self.model = model = self.backend.model
        self.tokenizer, self.codec, self.renderer = model.tokenizer, model.codec, model.renderer
        self.grammar = Grammar(self.tokenizer, model.codec_name) if decoding == "constrained" else None
        self.max_tools, self.calibration = max_tools, calibration
        self.retriever = build_retriever(self.backend)
        self._short: LRUCache[Tool, tuple[Tool, str] | None] = LRUCache(SHORTENED)
        self._lock = Lock()

    def answer(self, query: str, tools: Sequence[Tool], max_tokens: int = MAX_TOKENS) -> Answer:
        """One answer. Raises as `answer_one` does."""
        return self.answer_one(Request(query, tuple(tools)), max_tokens)

    def answer_one(self, request: Request, max_tokens: int = MAX_TOKENS) -> Answer:
        """One answer. Raises `PromptError` for a request that is too long, `ToolSchemaError` if none of its tools can
        be used, or not all if it is strict."""
        row, example = self._prepare(0, request)
        return self._decode([row], [example], max_tokens)[0]

    def answer_all(
        self,
        requests: Sequence[Request],
        max_tokens: int = MAX_TOKENS,
        batch_size: int = 64,
        sample: int | None = None,
        report: Report | None = None,
    ) -> list[Answer]:
        """Answers in the order of the requests; one that can't be read gets finish `refused`, and the rest go on.

        `sample` is a seed: answers are then drawn from the student's own distribution instead of taking the likeliest
        token. `report` hears after each batch how many are answered, of how many.
        """
        answers: list[Answer | None] = [None] * len(requests)
        ready: list[tuple[_Row, Example]] = []
        for index, request in enumerate(requests):
            try:
                ready.append(self._prepare(index, request))
            except (PromptError, ToolSchemaError) as error:
                answers[index] = Answer(None, 0.0, "refused", error=str(error))
        ready.sort(key=lambda pair: pair[1].prompt_length)
        for start in range(0, len(ready), batch_size):
            rows, examples = zip(*ready[start : start + batch_size], strict=True)
            random = None if sample is None else np.random.default_rng(sample * 1_000_003 + start)
            for row, answer in zip(rows, self._decode(list(rows), list(examples), max_tokens, random), strict=True):
                answers[row.index] = answer
            if report:
                report(start + len(rows), len(ready))
        return [answer for answer in answers if answer is not None]

    def _prepare(self, index: int, request: Request) -> tuple[_Row, Example]:
        try:
            encodable(request.query, "request")
        except FieldError as error:
            raise PromptError(str(error)) from error
        request, shortened = self._usable(request)
        shown = self._choose_tools(request)
        example = self._read(shown)
        while True:
            try:
                matcher = self.grammar.matcher(shown.tools, example.said) if self.grammar else None
                return _Row(index, shown, matcher, shortened, example.said), example
            except ToolSchemaError as error:
                place, _, rest = error.pointer.removeprefix("/").partition("/")
                if not place.isdigit():
                    raise
                where = f"/{shown.places[int(place)]}/{rest}"
                shown = _without(shown, int(place), ToolSchemaError(where, error.message))
                example = self._read(shown)

    def _usable(self, request: Request) -> tuple[Request, tuple[SkippedTool, ...]]:
        """The request with the tools that the student can read, their descriptions cut where they are too long."""
        shortened: list[SkippedTool] = []
        if self.max_tools and len(request.tools) > self.max_tools:
            return request, ()  # it chooses among those that can be read
        for number in reversed(range(len(request.tools))):
            tool, place = request.tools[number], request.places[number]
            if self._readable(tool):
                continue
            try:
                long = len(self.renderer.tool(tool).ids)
                found = None if request.strict else self._shortened(tool)
                why = f"{long} tokens long, {self.model.max_length - 1} at most are read"
            except PromptError as error:
                found, why = None, str(error)
            if found is None:
                request = _without(request, number, ToolSchemaError(f"/{place}", why))
            else:
                tools = (*request.tools[:number], found[0], *request.tools[number + 1 :])
                request = replace(request, tools=tools)
                shortened.append(SkippedTool(place, tool.name, f"{why}; {found[1]}"))
        return request, tuple(reversed(shortened))

    def _choose_tools(self, request: Request) -> Request:
        """The request with its best tools, in the order in which they were declared. Tools that are too long to be read
        aren't among them."""
        if not self.max_tools or len(request.tools) <= self.max_tools:
            return request
        self._check(len(self.renderer.query(request.query)))
        readable = [index for index, tool in enumerate(request.tools) if self._readable(tool)]
        if not readable:
            return request  # which says why
        ranked = self.retriever.rank(request.query, [request.tools[index] for index in readable])[: self.max_tools]
        chosen = [readable[place] for place in sorted(ranked)]
        return replace(
            request,
            tools=tuple(request.tools[index] for index in chosen),
            places=tuple(request.places[index] for index in chosen),
        )

    def _shortened(self, tool: Tool) -> tuple[Tool, str] | None:
        with self._lock:
            if tool in self._short:
                return self._short[tool]
        found = shortened(tool, self._readable)
        with self._lock:
            self._short[tool] = found
        return found

    def _readable(self, tool: Tool) -> bool:
        try:
            return len(self.renderer.tool(tool).ids) < self.model.max_length
        except PromptError:
            return False

    def _read(self, request: Request) -> Example:
        example = self.renderer.prompt(request.id, request.query, request.tools)
        self._check(self.backend.read_length(example))
        return example

    def _check(self, length: int) -> None:
        if length >= self.model.max_length:
            raise PromptError(
                f"{self.backend.read_at_once} {length} tokens long; this student reads fewer than"
                f" {self.model.max_length}"
            )

    def _decode(
        self, rows: list[_Row], examples: list[Example], max_tokens: int, random: np.random.Generator | None = None
    ) -> list[Answer]:
        """Answers of one batch, step by step.

        A single answer takes fewer steps than it has tokens: once a value's first token is known, the request's next
        words are scored along with it (Stern et al. 2018, arXiv:1811.03115; Saxena 2023, prompt lookup), and kept as
        long as they are what the student chooses. The answer is the same.
        """
        # Reading the prompts.
        answers = self.backend.start(examples)
        for row, example in zip(rows, examples, strict=True):
            row.limit = min(max_tokens, self.backend.room(example, self.model.max_length))
            row.longest = max(len(example.query), *(len(tool.ids) for tool in example.tools), 0) + MAX_UNSAID
        drafting = len(rows) == 1 and random is None
        active = list(rows)
        fed = [[self.tokenizer.answer] for _ in rows]  # the tokens of each row that the next step reads
        while active:
            # A step: the scores behind each token that is fed, and where these were copied from.
            scores = answers.step(fed, [[row.open_tool] * len(own) for row, own in zip(active, fed, strict=True)])
            sources = answers.sources()
            for place in range(len(fed[0])):
                for number, row in enumerate(active):
                    row.sources.append(sources[number][place] if sources else -1)
                # One token for each row; a drafted one is kept if it is the one that was chosen.
                chosen = self._choose(scores[:, place], active, random)
                going = [i for i, row in enumerate(active) if not self._advance(row, chosen[i])]
                unread = len(fed[0]) - place - 1  # drafted tokens behind the one that was chosen
                if not going or not unread:
                    break
                if chosen[0] != fed[0][place + 1] or not answers.confirms(chosen[0], place):
                    answers.cut(unread)
                    break
            # What is finished leaves the batch.
            if 0 < len(going) < len(active):
                answers.select(going)
            active = [active[i] for i in going]
            fed = [[chosen[i], *(answers.draft(chosen[i], MAX_DRAFT) if drafting else ())] for i in going]
        return [row.answer for row in rows if row.answer is not None]

    def _choose(self, scores: Floats, active: list[_Row], random: np.random.Generator | None) -> list[int]:
        """The likeliest allowed token of each row, or one drawn.

        Adds its log-probability unless it was the only one allowed. One that ends a value counts all the same: a value
        that the grammar cut off isn't what the student meant.
        """
        log_probs = scores - _log_sum(scores)
        masked, free = log_probs, [True] * len(active)
        if self.grammar:
            allowed = np.stack([self._allowed(row, row.matcher) for row in active if row.matcher])
            free = [int(np.count_nonzero(row)) > 1 for row in allowed]
            # A finite penalty keeps the order of allowed labels that the student calls impossible.
            masked = np.where(allowed, np.maximum(log_probs, np.float32(-1e4)), np.float32(-np.inf))
        drawn = masked
        if random:  # the largest of the log-probabilities with Gumbel's noise is drawn as often as they say
            drawn = masked + random.gumbel(size=masked.shape)
        chosen = [int(token) for token in drawn.argmax(-1)]
        for index, (row, token) in enumerate(zip(active, chosen, strict=True)):
            if free[index] or self._ends_value(row, token):
                row.log_prob += float(log_probs[index, token])
            if free[index]:
                row.decisions.append(self._decision(row, token, masked[index]))
        return chosen

    def _decision(self, row: _Row, token: int, allowed: Floats) -> Decision:
        """What is noticed when a token is chosen among several; `allowed` [V] are the log-probabilities of those that
        are, else -inf."""
        names = self.tokenizer
        kind, call, argument = VALUE, row.calls - 1, row.argument
        if token == names.eos or names.is_tool_label(token):
            kind, call, argument = (CALL if row.tokens else FIRST), row.calls - (token == names.eos), -1
        elif names.is_argument_label(token):
            kind, argument = ARGUMENT, token - names.first_argument_label
        others = allowed.copy()
        others[token] = -np.inf
        other, chosen = int(others.argmax()), float(allowed[token])
        return Decision(
            kind, call, argument, token, chosen, other, float(others[other]), float(np.log(np.exp(allowed).sum()))
        )

    def _allowed(self, row: _Row, matcher: Matcher) -> NDArray[np.bool_]:
        try:
            allowed = matcher.allowed()
        except GrammarError as error:
            row.error = str(error)
            only: NDArray[np.bool_] = np.arange(self.tokenizer.size) == self.tokenizer.eos
            return only
        return self._called(row, allowed) if row.request.required else allowed

    def _called(self, row: _Row, allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Without the tokens that would leave it at no call, where others are allowed."""
        fewer = allowed.copy()
        fewer[self.tokenizer.query] = False
        if not row.tokens:
            fewer[self.tokenizer.eos] = False
        return fewer if fewer.any() else allowed

    def _ends_value(self, row: _Row, token: int) -> bool:
        label = token >= self.tokenizer.first_tool_label or token in (self.tokenizer.eos, self.tokenizer.item)
        return label and bool(row.tokens) and row.tokens[-1] < self.tokenizer.first_tool_label

    def _advance(self, row: _Row, token: int) -> bool:
        """Takes one token; True when the row is finished."""
        if row.matcher and not row.error:
            try:
                row.matcher.consume(token)
            except GrammarError as error:
                row.error = str(error)
        if row.error:
            row.answer = self._answered(row, Answer(None, 0.0, "invalid", len(row.tokens), row.error))
        elif token == self.tokenizer.eos:
            row.answer = self._finish(row)
        elif len(row.tokens) >= row.limit:
            row.answer = self._answered(row, Answer(None, 0.0, "length", len(row.tokens)))
        else:
            row.tokens.append(token)
            row.value = 0 if token >= self.tokenizer.first_tool_label or token == self.tokenizer.item else row.value + 1
            if self.tokenizer.is_tool_label(token):
                row.open_tool = token - self.tokenizer.first_tool_label
                row.calls, row.argument = row.calls + 1, -1
            elif self.tokenizer.is_argument_label(token):
                row.argument = token - self.tokenizer.first_argument_label
            elif token == self.tokenizer.query:
                row.lacking.add(row.calls - 1)
            elif row.value > row.longest and self.codec.name == "decisions":
                why = "a value is longer than what was said, and goes on"
                row.answer = self._answered(row, Answer(None, 0.0, "invalid", len(row.tokens), why))
        return row.answer is not None

    def _finish(self, row: _Row) -> Answer:
        request = row.request
        left_out: list[str] | None = [] if request.omit else None
        try:
            missing: list[Missing] = []
            calls = self.codec.decode(row.tokens, request.tools, request.now, left_out, row.said, missing)
            spans = copied_spans(row.tokens, row.sources[1:], request.query, request.tools, self.tokenizer)
            if row.said:
                spans = pointed_spans(row.tokens, row.said, request.tools, self.tokenizer)
            named = {tool.name: tool for tool in request.tools}
            calls = [
                replace(with_scales(call, own, request.query, named[call.name]), sources=own)
                for call, own in zip(calls, spans or [{}] * len(calls), strict=True)
            ]
            if self.grammar:
                calls = [_valid(call, request.tools, left_out) for call in calls]
        except DecodeError as error:
            return self._answered(row, Answer(None, 0.0, "invalid", len(row.tokens), str(error)))
        noticed = Noticed(tuple(row.decisions), request.query, request.tools, tuple(calls), tuple(missing))
        begun = [number for number in range(row.calls) if number not in row.lacking]
        sure = how_sure(noticed, math.exp(row.log_prob), begun, self.tokenizer, self.calibration)
        answer = Answer(
            tuple(calls), sure.whole, "stop", len(row.tokens), left_out=tuple(left_out or ()), missing=tuple(missing),
            calibrated=self.calibration is not None, call_confidence=sure.calls, argument_confidence=sure.arguments,
            reasons=sure.reasons, noticed=noticed,
        )  # fmt: skip
        return self._answered(row, answer)

    def _answered(self, row: _Row, answer: Answer) -> Answer:
        if not row.request.skipped and not row.shortened:
            return answer
        return replace(answer, skipped=row.request.skipped, shortened=row.shortened)


def _log_sum(scores: Floats) -> Floats:
    """[B, V] to the logarithms of the sums of their exponentials, [B, 1]."""
    most = scores.max(axis=-1, keepdims=True)
    total: Floats = np.log(np.exp(scores - most).sum(axis=-1, keepdims=True)) + most
    return total


def _without(request: Request, number: int, error: ToolSchemaError) -> Request:
    """The request without one of its tools; raises the error if it is strict or nothing remains."""
    if request.strict or len(request.tools) == 1:
        raise error
    gone = SkippedTool(request.places[number], request.tools[number].name, error.message)
    return replace(
        request,
        tools=request.tools[:number] + request.tools[number + 1 :],
        places=request.places[:number] + request.places[number + 1 :],
        skipped=tuple(sorted((*request.skipped, gone), key=lambda one: one.index)),
    )


def _valid(call: Call, tools: Sequence[Tool], left_out: list[str] | None) -> Call:
    """The call, without the optional arguments that don't fit if those may be left out. Raises `DecodeError`."""
    while errors := call_errors(call, tuple(tools)):
        name = errors[0].partition(":")[0].split("/")[1]
        tool = next(tool for tool in tools if tool.name == call.name)
        if left_out is None or name not in call.arguments or name in tool.parameters.get("required", ()):
            raise DecodeError(errors[0])
        left_out.append(errors[0])
        rest = {key: value for key, value in call.arguments.items() if key != name}
        call = replace(call, arguments=rest)
    return call
