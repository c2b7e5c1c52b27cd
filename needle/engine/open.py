"""An engine from a checkpoint's folder, in the precision that is fastest here."""

from __future__ import annotations

from pathlib import Path

import torch

from needle.engine.decode import Engine
from needle.students.base import Student, multiplies_bf16
from needle.students.checkpoint import load_checkpoint

PRECISIONS = ("auto", "float32", "bfloat16", "mixed")


def open_engine(
    folder: Path | str | None = None,
    decoding: str = "constrained",
    precision: str = "auto",
    max_tools: int = 0,
    alone: bool = False,
) -> Engine:
    """The engine of a checkpoint, the released student's by default, for requests that come `alone`, or in batches.

    Raises:
        CheckpointError: the folder isn't a checkpoint. ValueError: a choice that doesn't exist.
    """
    checkpoint = load_checkpoint(folder)
    set_precision(checkpoint.student, precision, alone)
    return Engine(checkpoint, decoding, max_tools)


def set_precision(student: Student, precision: str = "auto", alone: bool = False) -> None:
    """Puts the weights into the precision that answers are decoded in.

    `mixed` is bfloat16 for what reads and float32 for what decodes, for students that have both apart, and bfloat16 for
    others. `auto` is float32 where the processor doesn't multiply bfloat16 by itself. Where it does, it is `mixed` if
    requests come `alone`, and bfloat16 if they come in batches.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is '{precision}'; expected one of {', '.join(PRECISIONS)}")
    if precision == "auto":
        precision = ("mixed" if alone else "bfloat16") if multiplies_bf16() else "float32"
    whole = torch.float32 if precision == "float32" else torch.bfloat16
    student.set_precision(whole, torch.float32 if precision == "mixed" else whole)
