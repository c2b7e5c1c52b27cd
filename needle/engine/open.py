"""An engine from a model's folder: by its export where there is one, else in torch, in the precision that is fastest
here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from needle.engine.backend import Backend
from needle.engine.confidence import load_calibration
from needle.engine.decode import Engine
from needle.text.folder import EXPORT, WEIGHTS, CheckpointError, Model, read_model, weights_fingerprint

if TYPE_CHECKING:
    from needle.students.base import Student

BACKENDS = ("auto", "onnx", "torch")
PRECISIONS = ("auto", "float32", "bfloat16", "mixed", "int8")
EXPORTED = {"auto": None, "int8": "int8", "float32": "fp32"}  # what an export calls them


def open_engine(
    folder: Path | str | None = None,
    decoding: str = "constrained",
    precision: str = "auto",
    max_tools: int = 0,
    alone: bool = False,
    backend: str = "auto",
) -> Engine:
    """The engine of a model, the released one by default, for requests that come `alone`, or in batches.

    `backend` onnx is the export beside the weights, torch the weights; auto is the export if there is one that was made
    of these weights and has the wanted precision.

    Raises:
        CheckpointError: the folder isn't a model, or its export can't be used. ValueError: a choice that doesn't exist.
    """
    for name, value, choices in (("precision", precision, PRECISIONS), ("backend", backend, BACKENDS)):
        if value not in choices:
            raise ValueError(f"{name} is '{value}'; expected one of {', '.join(choices)}")
    opened = open_backend(folder, precision, alone, backend)
    model = opened.model
    return Engine(opened, decoding, max_tools, load_calibration(model.folder, model.weights, opened.precision))


def open_backend(folder: Path | str | None, precision: str, alone: bool, backend: str) -> Backend:
    model, row = read_model(folder)
    assert model.folder is not None
    if backend != "torch" and precision in EXPORTED:
        reason = _unusable(model.folder, row)
        if not reason:
            return open_export(model, model.folder / EXPORT, EXPORTED[precision])
        if backend == "onnx" or precision == "int8":
            raise CheckpointError(f"{reason}; make an export with needle export checkpoint={model.folder}")
    elif precision == "int8" or backend == "onnx":
        raise ValueError(
            f"backend={backend} has no precision={precision}; torch has float32, bfloat16 and mixed, onnx int8 and"
            " float32"
        )
    from needle.engine.eager import EagerBackend
    from needle.students.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(model.folder)
    set_precision(checkpoint.student, precision, alone)
    return EagerBackend(checkpoint)


def open_export(model: Model, folder: Path, precision: str | None = None) -> Backend:
    """The export of a model in a folder, in `precision` int8 or fp32, or the smallest that it has."""
    from needle.engine.flatonnx import FlatOnnx
    from needle.engine.onnx import Export
    from needle.engine.spanonnx import SpanOnnx

    export = Export(folder, model.tokenizer.fingerprint, precision)
    return SpanOnnx(model, export) if model.family == "span" else FlatOnnx(model, export)


def _unusable(folder: Path, row: dict[str, Any]) -> str:
    """Why the export beside these weights can't be used; empty if it can."""
    manifest = folder / EXPORT / "manifest.json"
    if not manifest.is_file():
        return f"there is no export in {manifest.parent}"
    if not (folder / WEIGHTS).is_file():
        return ""
    made_of = json.loads(manifest.read_text(encoding="utf-8")).get("weights")
    weights = row.get("weights") or weights_fingerprint(folder)
    return "" if made_of == weights else f"the export in {manifest.parent} was made of other weights"


def set_precision(student: Student, precision: str = "auto", alone: bool = False) -> None:
    """Puts the weights into the precision that answers are decoded in.

    `mixed` is bfloat16 for what reads and float32 for what decodes, for students that have both apart, and bfloat16 for
    others. `auto` is float32 where the processor doesn't multiply bfloat16 by itself. Where it does, it is `mixed` if
    requests come `alone`, and bfloat16 if they come in batches.
    """
    import torch

    from needle.students.base import multiplies_bf16

    if precision not in PRECISIONS or precision == "int8":
        raise ValueError(f"precision is '{precision}'; expected one of auto, float32, bfloat16, mixed")
    if precision == "auto":
        precision = ("mixed" if alone else "bfloat16") if multiplies_bf16() else "float32"
    whole = torch.float32 if precision == "float32" else torch.bfloat16
    student.set_precision(whole, torch.float32 if precision == "mixed" else whole)
