"""The front door: a student that answers requests with calls of your functions, in a few lines of Python.

from needle import Needle

needle = Needle()  # the released student; Needle("runs/mine") is yours
answer = needle.call("wake me in 20 minutes", tools=[set_timer])
answer.calls[0].arguments, answer.confidence
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from needle.engine.decode import MAX_TOKENS, Answer, Request
from needle.engine.open import open_engine
from needle.text.declare import declared
from needle.text.records import Tool
from needle.text.toolschema import normalise_tools


class Needle:
    """A student, ready to answer. One object may be shared by threads, which then take turns.

    Args:
        checkpoint: a folder that `needle train` wrote; the released student when there is none.
        precision: float32, bfloat16, mixed, or auto: what is fastest on this processor.
        max_tools: of more tools than these, the student is shown those that fit a request best; 0 shows all.

    Raises:
        CheckpointError: the folder isn't a checkpoint.
    """

    def __init__(self, checkpoint: Path | str | None = None, *, precision: str = "auto", max_tools: int = 0) -> None:
        self.engine = open_engine(checkpoint, precision=precision, max_tools=max_tools, alone=True)
        self._turn = Lock()

    def __repr__(self) -> str:
        checkpoint = self.engine.checkpoint
        return f"Needle({str(checkpoint.folder)!r}, {checkpoint.config.family})"

    def call(self, request: str, tools: Sequence[Any], max_tokens: int = MAX_TOKENS) -> Answer:
        """The calls that a request asks for.

        Args:
            request: what somebody said.
            tools: dictionaries in any dialect (OpenAI, Anthropic, MCP, Gemini, bare JSON Schema), typed Python
                functions, pydantic models, or all of these together.
            max_tokens: the most tokens of the answer; beyond it there is no answer.

        Returns:
            `calls`, each with `name`, `arguments` and `sources`: where in the request a value was copied from. None are
            right when no tool fits; `calls` is None when there is no answer, and `finish` says why. `confidence` is 0
            to 1.

        Raises:
            ToolSchemaError: a tool that can't be read. PromptError: the request or a tool is too long.
        """
        read = read_tools(tools)
        with self._turn:
            return self.engine.answer(request, read, max_tokens)

    def call_many(
        self, requests: Sequence[str], tools: Sequence[Any], max_tokens: int = MAX_TOKENS, batch_size: int = 64
    ) -> list[Answer]:
        """Answers to many requests for the same tools, in their order, several times faster than one by one.

        A request that can't be read gets finish `refused`, and the rest go on.
        """
        read = read_tools(tools)
        asked = [Request(request, read, str(number)) for number, request in enumerate(requests)]
        with self._turn:
            return self.engine.answer_all(asked, max_tokens, batch_size)


def read_tools(tools: Sequence[Any]) -> tuple[Tool, ...]:
    """Raises `ToolSchemaError`, whose pointer begins with the number of the tool."""
    return normalise_tools([declared(tool, f"/{index}") for index, tool in enumerate(tools)])
