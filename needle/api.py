"""The front door: a student that answers requests with calls of your functions, in a few lines of Python.

from needle import Needle

needle = Needle()  # the released student; Needle("runs/mine") is yours
answer = needle.call("set a timer for 20 minutes", tools=[set_timer])
answer.calls[0].arguments, answer.confidence
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any

from needle.engine.decode import MAX_TOKENS, Answer, Request
from needle.engine.open import open_engine
from needle.text.declarations import read_tools
from needle.text.declare import declared

Tools = Sequence[Any] | Mapping[str, Any]


class Needle:
    """A student, ready to answer. One object may be shared by threads, which take turns in torch.

    Args:
        checkpoint: a folder that `needle train` wrote; the released student when there is none.
        precision: float32, bfloat16, mixed, int8, or auto: what is fastest on this processor.
        backend: onnx (what `needle export` wrote beside the weights), torch, or auto: onnx if there is an export.
        max_tools: of more tools than these, the student is shown those that fit a request best; 0 shows all.

    Raises:
        CheckpointError: the folder isn't a checkpoint.
    """

    def __init__(
        self,
        checkpoint: Path | str | None = None,
        *,
        precision: str = "auto",
        max_tools: int = 0,
        backend: str = "auto",
    ) -> None:
        self.engine = open_engine(checkpoint, precision=precision, max_tools=max_tools, alone=True, backend=backend)
        free = self.engine.backend.concurrent
        self._turn: AbstractContextManager[object] = nullcontext() if free else Lock()

    def __repr__(self) -> str:
        model = self.engine.model
        return f"Needle({str(model.folder)!r}, {model.family})"

    def call(
        self,
        request: str,
        tools: Tools,
        max_tokens: int = MAX_TOKENS,
        *,
        strict: bool = False,
        now: datetime | None = None,
        omit: bool = False,
    ) -> Answer:
        """The calls that a request asks for.

        Args:
            request: what somebody said.
            tools: dictionaries in any dialect (OpenAI, Anthropic, MCP, Gemini, bare JSON Schema), typed Python
                functions, pydantic models, or all of these together.
            max_tokens: the most tokens of the answer; beyond it there is no answer.
            strict: a tool that can't be used is an error. Otherwise it is left out and stands in `skipped`.
            now: the moment against which dates such as "tomorrow" are read.
            omit: leave an optional argument out if what was said doesn't fit it; it stands in `left_out`. Otherwise
                there is no answer then.

        Returns:
            `calls`, each with `name`, `arguments` and `sources`: where in the request a value was copied from. None are
            right when no tool fits; `calls` is None when there is no answer, `finish` says which way and `error` why.
            `confidence` is 0 to 1. `missing` are tools that were wished for but lack a required value: ask for it.

        Raises:
            ToolSchemaError: no tool can be used, or with `strict` one of them. PromptError: the request is too long.
        """
        asked = _request(request, tools, strict, now, omit)
        with self._turn:
            return self.engine.answer_one(asked, max_tokens)

    def call_many(
        self,
        requests: Sequence[str],
        tools: Tools,
        max_tokens: int = MAX_TOKENS,
        batch_size: int = 64,
        *,
        strict: bool = False,
        now: datetime | None = None,
        omit: bool = False,
    ) -> list[Answer]:
        """Answers to many requests for the same tools, in their order, several times faster than one by one.

        A request that can't be read gets finish `refused`, and the rest go on.
        """
        shared = _request("", tools, strict, now, omit)
        asked = [replace(shared, query=request, id=str(number)) for number, request in enumerate(requests)]
        with self._turn:
            return self.engine.answer_all(asked, max_tokens, batch_size)


def _request(query: str, tools: Tools, strict: bool, now: datetime | None, omit: bool) -> Request:
    read = read_tools(tools if isinstance(tools, Mapping) else list(tools), strict=strict, declare=declared)
    return Request(query, read.tools, strict=strict, now=now, omit=omit, skipped=read.skipped, places=read.places)
