"""The engine: greedy answers from a checkpoint, free or under the grammar of the declared tools.

Evaluation, serving and the checks during training all decode here.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from needle.engine.bm25 import Bm25Retriever
from needle.engine.retrieve import EncoderRetriever, MergedRetriever, Retriever
from needle.students.base import Student
from needle.students.batch import collate, move
from needle.students.checkpoint import Checkpoint
from needle.students.pointer import PointerStudent
from needle.students.pointer_parts import PointerState
from needle.text.codecs import DecodeError
from needle.text.grammar import Grammar, GrammarError, Matcher
from needle.text.prompt import Example, PromptError
from needle.text.records import Call, Tool
from needle.text.toolschema import ToolSchemaError, call_errors

DECODINGS = ("constrained", "free")
PRECISIONS = ("auto", "float32", "bfloat16", "mixed")
MAX_TOKENS = 150
GUESSES = 4  # tokens of a value that are proposed at once
CACHED_BYTES = 512 * 2**20  # of encoded tools

Report = Callable[[int, int], None]


def hold(student: Student, precision: str, alone: bool = False) -> None:
    """Puts the weights into the precision that answers are decoded in.

    `mixed` is bfloat16 for what reads and float32 for what decodes, for students that have both apart, and bfloat16 for
    others. `auto` is float32 where the processor doesn't multiply bfloat16 by itself. Where it does, it is `mixed` if
    requests come `alone`, and bfloat16 if they come in batches.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is '{precision}'; expected one of {', '.join(PRECISIONS)}")
    if precision == "auto":
        able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        precision = ("mixed" if alone else "bfloat16") if able.get("avx512_bf16") or able.get("amx_bf16") else "float32"
    if precision == "mixed" and isinstance(student, PointerStudent):
        student.mix(torch.bfloat16)
    else:
        student.to(torch.float32 if precision == "float32" else torch.bfloat16)


@dataclass(frozen=True)
class Request:
    query: str
    tools: tuple[Tool, ...]
    id: str = ""


@dataclass(frozen=True)
class Answer:
    """`calls` is None when there is no answer: the budget ran out (`length`), the output was broken (`invalid`),
    or the request couldn't be read (`refused`, the reason in `error`).

    `confidence` is the product of the student's own probabilities of the tokens that it was free to choose and of those
    that end a value, 0 to 1. It isn't calibrated.
    """

    calls: tuple[Call, ...] | None
    confidence: float
    finish: str
    tokens: int = 0
    error: str = ""


@dataclass
class _Row:
    """One answer in the making."""

    index: int
    request: Request
    matcher: Matcher | None
    tokens: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    open_tool: int = -1
    error: str = ""


class Engine:
    """Answers requests with one checkpoint. Encodings of tools are kept between calls.

    Of more than `most_tools` tools, if that isn't 0, the student is shown only the `most_tools` that fit the request
    best: by its own encoder and BM25 in turn where it has one, else by BM25.
    """

    def __init__(self, checkpoint: Checkpoint, decoding: str = "constrained", most_tools: int = 0) -> None:
        if decoding not in DECODINGS:
            raise ValueError(f"decoding is '{decoding}'; expected one of {', '.join(DECODINGS)}")
        self.checkpoint = checkpoint
        self.student = checkpoint.student
        self.tokenizer = checkpoint.tokenizer
        self.codec = checkpoint.codec
        self.renderer = checkpoint.renderer
        self.grammar = Grammar(self.tokenizer, checkpoint.codec_name) if decoding == "constrained" else None
        self.most_tools = most_tools
        self.retriever: Retriever = Bm25Retriever()
        if isinstance(self.student, PointerStudent):
            self.retriever = MergedRetriever(EncoderRetriever(self.student, self.renderer), self.retriever)
        self._tools: OrderedDict[str, tuple[Tensor, ...]] = OrderedDict()
        self._sizes: dict[str, int] = {}

    def answer(self, query: str, tools: Sequence[Tool], max_tokens: int = MAX_TOKENS) -> Answer:
        """One answer. Raises `PromptError` for a request that is too long, `ToolSchemaError` for tools that no grammar
        can hold."""
        row, example = self._prepare(0, Request(query, tuple(tools)))
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
            random = None if sample is None else torch.Generator().manual_seed(sample * 1_000_003 + start)
            for row, answer in zip(rows, self._decode(list(rows), list(examples), max_tokens, random), strict=True):
                answers[row.index] = answer
            if report:
                report(start + len(rows), len(ready))
        return [answer for answer in answers if answer is not None]

    def _prepare(self, index: int, request: Request) -> tuple[_Row, Example]:
        shown = self._choose_tools(request)
        example = self._read(shown)
        try:
            matcher = self.grammar.matcher(shown.tools) if self.grammar else None
        except ToolSchemaError as error:
            place, _, rest = error.pointer.removeprefix("/").partition("/")
            if not place.isdigit():
                raise
            raise ToolSchemaError(f"/{request.tools.index(shown.tools[int(place)])}/{rest}", error.message) from error
        return _Row(index, shown, matcher), example

    def _choose_tools(self, request: Request) -> Request:
        """The request with its best tools, in the order in which they were declared. Tools that are too long to be read
        aren't among them."""
        if not self.most_tools or len(request.tools) <= self.most_tools:
            return request
        self._check(len(self.renderer.query(request.query)))
        readable = [index for index, tool in enumerate(request.tools) if self._readable(tool)]
        if not readable:
            return request  # which says why
        ranked = self.retriever.rank(request.query, [request.tools[index] for index in readable])[: self.most_tools]
        return replace(request, tools=tuple(request.tools[readable[place]] for place in sorted(ranked)))

    def _readable(self, tool: Tool) -> bool:
        try:
            return len(self.renderer.tool(tool).ids) < self.checkpoint.max_length
        except PromptError:
            return False

    def _read(self, request: Request) -> Example:
        example = self.renderer.prompt(request.id, request.query, request.tools)
        self._check(self._length(example))
        return example

    def _check(self, length: int) -> None:
        if length >= self.checkpoint.max_length:
            whole = (
                "the request and its tools are"
                if self.student.layout == "flat"
                else "the longest of the request and its tools is"
            )
            raise PromptError(
                f"{whole} {length} tokens long; this student reads fewer than {self.checkpoint.max_length}"
            )

    def _length(self, example: Example) -> int:
        """Tokens that the student reads at once: everything, or the longest piece where it reads tools apart."""
        if self.student.layout == "flat":
            return example.prompt_length
        return max([len(example.query), *(len(tool.ids) for tool in example.tools)])

    @torch.inference_mode()
    def _decode(
        self, rows: list[_Row], examples: list[Example], max_tokens: int, random: torch.Generator | None = None
    ) -> list[Answer]:
        device = next(self.student.parameters()).device
        batch = move(collate(examples, self.tokenizer, self.student.layout), device)
        state = self.student.start(batch, self._tools if self.student.layout == "split" else None)
        self._forget()
        answers: dict[int, Answer] = {}
        active = list(rows)
        tokens = torch.full((len(rows),), self.tokenizer.answer, device=device)
        room = [
            self.checkpoint.max_length - self._length(example) if self.student.layout == "flat" else max_tokens
            for example in examples
        ]
        limits = {row.index: min(max_tokens, most) for row, most in zip(rows, room, strict=True)}
        if (
            len(active) == 1
            and random is None
            and isinstance(self.student, PointerStudent)
            and isinstance(state, PointerState)
        ):
            return [self._decode_one(self.student, state, active[0], limits[active[0].index], answers)]
        while active:
            open_tool = torch.tensor([row.open_tool for row in active], device=device)
            scores = self.student.step(state, tokens, open_tool).float().cpu()
            chosen = self._choose(scores, active, random)
            going = [
                i
                for i, (row, token) in enumerate(zip(active, chosen, strict=True))
                if not self._advance(row, token, limits[row.index], answers)
            ]
            if len(going) < len(active) and going:
                state.select(torch.tensor(going, device=device))
            active = [active[i] for i in going]
            tokens = torch.tensor([chosen[i] for i in going], device=device)
        return [answers[row.index] for row in rows]

    def _forget(self) -> None:
        """Drops the tools that weren't asked for the longest while, once they take too much memory."""
        for key, tensors in self._tools.items():
            if key not in self._sizes:
                self._sizes[key] = len(key) + sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        size = sum(self._sizes.values())
        while size > CACHED_BYTES and len(self._tools) > 1:
            size -= self._sizes.pop(self._tools.popitem(last=False)[0])

    def _decode_one(
        self, student: PointerStudent, state: PointerState, row: _Row, limit: int, answers: dict[int, Answer]
    ) -> Answer:
        """The same answer in fewer steps: once a value's first token is known, the request's next words are tried with
        it.

        Each step scores the last token and some guesses after it (Stern et al. 2018, arXiv:1811.03115; Saxena 2023,
        prompt lookup); guesses are kept as long as they are what the student chooses.
        """
        device, token = state.sources.device, self.tokenizer.answer
        while True:
            guesses = (
                []
                if token >= self.tokenizer.first_tool_label or token == self.tokenizer.answer
                else student.guess(state, token, GUESSES)
            )
            fed = torch.tensor([[token, *guesses]], device=device)
            scores = student.extend(state, fed, torch.full_like(fed, row.open_tool))[0].float().cpu()
            for place in range(fed.shape[1]):
                (token,) = self._choose(scores[place : place + 1], [row], None)
                if self._advance(row, token, limit, answers):
                    return answers[row.index]
                if place == len(guesses) or token != guesses[place] or not state.confirms(token, place):
                    state.cut(len(guesses) - place)
                    break

    def _choose(self, scores: Tensor, active: list[_Row], random: torch.Generator | None) -> list[int]:
        """The likeliest allowed token of each row, or one drawn.

        Adds its log-probability unless it was the only one allowed. One that ends a value counts all the same: a value
        that the grammar cut off isn't what the student meant.
        """
        log_probs = scores.log_softmax(-1).numpy()
        masked, free = log_probs, [True] * len(active)
        if self.grammar:
            allowed = np.stack([self._allowed(row, row.matcher) for row in active if row.matcher])
            free = [int(np.count_nonzero(row)) > 1 for row in allowed]
            # A finite penalty keeps the order of allowed labels that the student calls impossible.
            masked = np.where(allowed, np.maximum(log_probs, np.float32(-1e4)), np.float32(-np.inf))
        best = (
            torch.from_numpy(masked).softmax(-1).multinomial(1, generator=random)[:, 0] if random else masked.argmax(-1)
        )
        chosen = [int(token) for token in best]
        for index, (row, token) in enumerate(zip(active, chosen, strict=True)):
            if free[index] or self._ends_value(row, token):
                row.log_prob += float(log_probs[index, token])
        return chosen

    def _allowed(self, row: _Row, matcher: Matcher) -> NDArray[np.bool_]:
        try:
            return matcher.allowed()
        except GrammarError as error:
            row.error = str(error)
            only: NDArray[np.bool_] = np.arange(self.tokenizer.size) == self.tokenizer.eos
            return only

    def _ends_value(self, row: _Row, token: int) -> bool:
        label = token >= self.tokenizer.first_tool_label or token in (self.tokenizer.eos, self.tokenizer.item)
        return label and bool(row.tokens) and row.tokens[-1] < self.tokenizer.first_tool_label

    def _advance(self, row: _Row, token: int, limit: int, answers: dict[int, Answer]) -> bool:
        """Takes one token; True when the row is finished."""
        if row.matcher and not row.error:
            try:
                row.matcher.consume(token)
            except GrammarError as error:
                row.error = str(error)
        if row.error:
            answers[row.index] = Answer(None, 0.0, "invalid", len(row.tokens), row.error)
            return True
        if token == self.tokenizer.eos:
            answers[row.index] = self._finish(row)
            return True
        if len(row.tokens) >= limit:
            answers[row.index] = Answer(None, 0.0, "length", len(row.tokens))
            return True
        row.tokens.append(token)
        if self.tokenizer.is_tool_label(token):
            row.open_tool = token - self.tokenizer.first_tool_label
        return False

    def _finish(self, row: _Row) -> Answer:
        try:
            calls = tuple(self.codec.decode(row.tokens, row.request.tools))
        except DecodeError as error:
            return Answer(None, 0.0, "invalid", len(row.tokens), str(error))
        if self.grammar:
            errors = [error for call in calls for error in call_errors(call, row.request.tools)]
            if errors:
                return Answer(None, 0.0, "invalid", len(row.tokens), errors[0])
        return Answer(calls, math.exp(row.log_prob), "stop", len(row.tokens))
