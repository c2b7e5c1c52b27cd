"""An export as it stands on disk, and the sessions that run it.

onnx/  manifest.json  tables.safetensors  fp32/*.onnx  int8/*.onnx
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from needle.engine.backend import Floats
from needle.text.folder import CheckpointError

MANIFEST, TABLES = "manifest.json", "tables.safetensors"
PRECISIONS = ("int8", "fp32")
FORMAT = 2
CACHE_BYTES = 96_000_000  # of what was read of tools


class Export:
    """Graphs and tables of one precision, the first of `PRECISIONS` that there is unless told; `tokenizer` is the
    fingerprint of the model's.

    Raises:
        CheckpointError: a file is missing or broken, or was made from other weights or for another version.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: str,
        precision: str | None = None,
        threads: int = 1,
    ) -> None:
        self.folder, self.cache_bytes = folder, CACHE_BYTES
        try:
            self.facts: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if self.facts["format"] != FORMAT:
                raise CheckpointError(f"{folder} is of format {self.facts['format']}; this version reads {FORMAT}")
            if self.facts["tokenizer"] != tokenizer:
                raise CheckpointError(f"{folder} was made for the tokenizer {self.facts['tokenizer']}, not {tokenizer}")
            precision = precision or next(name for name in PRECISIONS if name in self.facts["precisions"])
            if precision not in self.facts["precisions"]:
                raise CheckpointError(
                    f"{folder} has no {precision}; it has {', '.join(self.facts['precisions'])}"
                    f" (needle export checkpoint={folder.parent} precisions=[{precision}])"
                )
            self.precision = precision
            self.tables: dict[str, Floats] = load_file(folder / TABLES)
            self._sessions = {
                name: onnxruntime.InferenceSession(
                    str(folder / precision / f"{name}.onnx"), _options(threads), ["CPUExecutionProvider"]
                )
                for name in self.facts["graphs"]
            }
        except CheckpointError:
            raise
        except Exception as error:  # onnxruntime's errors share no base, safetensors has its own
            kind = SafetensorError if isinstance(error, SafetensorError) else type(error)
            raise CheckpointError(
                f"the export in {folder} can't be read: {kind.__name__}: {str(error).splitlines()[0][:300]}; make it"
                f" again with needle export checkpoint={folder.parent}"
            ) from error
        self._inputs = {name: [one.name for one in own.get_inputs()] for name, own in self._sessions.items()}

    def run(self, graph: str, *inputs: NDArray[Any]) -> list[Floats]:
        """A graph's outputs, of inputs in its order."""
        found: list[Floats] = self._sessions[graph].run(None, dict(zip(self._inputs[graph], inputs, strict=True)))
        return found

    def run_named(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> list[Floats]:
        """As `run`, of inputs by name; those that the graph doesn't have are left out."""
        return self.run(graph, *(inputs[name] for name in self._inputs[graph]))

    def rows(self, table: str, ids: NDArray[np.int64]) -> Floats:
        """Rows of a table, which may be held in eight bits with a scale for each row."""
        rows, scales = self.tables[table][ids], self.tables.get(f"{table}_scale")
        return rows if scales is None else rows.astype(np.float32) * scales[ids][:, None]


class Answering(Protocol):
    """One answer in the making."""

    def step(self, tokens: Sequence[int], open_tool: int) -> Floats:
        """[n, V] scores behind tokens, of which only the first may open a tool."""

    def draft(self, token: int, most: int) -> list[int]:
        """At most so many tokens that may follow, each a label that means one thing and none that opens a tool."""

    def cut(self, count: int) -> None:
        """Forgets the last `count` tokens of those that came together."""


class OneByOne:
    """The answers of one batch in the making, each by itself."""

    def __init__(self, every: Sequence[Answering]) -> None:
        self.every = list(every)

    def step(self, tokens: Sequence[Sequence[int]], open_tool: Sequence[Sequence[int]]) -> Floats:
        every = zip(self.every, tokens, open_tool, strict=True)
        found = [one.step(fed, opened[0]) for one, fed, opened in every]
        return np.stack(found) if len(found) > 1 else found[0][None]

    def select(self, rows: Sequence[int]) -> None:
        self.every = [self.every[row] for row in rows]

    def sources(self) -> None:
        return None

    def draft(self, token: int, most: int) -> list[int]:
        return self.every[0].draft(token, most)

    def confirms(self, token: int, step: int) -> bool:
        return True

    def cut(self, count: int) -> None:
        self.every[0].cut(count)


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options
