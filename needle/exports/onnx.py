"""A checkpoint as graphs for onnxruntime, in float32 and in eight bits."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from torch import Tensor, nn

from needle import __version__
from needle.engine.onnx import FORMAT, MANIFEST, PRECISIONS, TABLES
from needle.exports.errors import ExportError
from needle.exports.flat import causal_graphs, san_graphs
from needle.exports.net import Net
from needle.exports.ranges import Ranges, input_ranges
from needle.exports.span import graphs, tables
from needle.students.base import Student, count_parameters
from needle.students.causal import CausalStudent, SeedStudent
from needle.students.checkpoint import Checkpoint
from needle.students.san import SanStudent
from needle.students.span.student import SpanStudent
from needle.text.files import write_json
from needle.text.folder import weights_fingerprint
from needle.text.records import Record

WIDE = ("embed", "write")  # tables that are large enough to be held in eight bits


def export_onnx(
    checkpoint: Checkpoint, folder: Path, precisions: Sequence[str] = ("int8",), records: Sequence[Record] = ()
) -> dict[str, Any]:
    """Writes graphs, tables and manifest into `folder`, which is replaced, and returns the manifest. Eight bits are
    chosen by what happens inside the student as it answers `records`.

    Raises:
        ExportError: a family or an option that has no graphs.
    """
    student = checkpoint.student
    if not isinstance(student, SpanStudent | CausalStudent | SanStudent):
        raise ExportError(f"format=onnx takes span, llama, seed and san; this student is of {checkpoint.config.family}")
    if isinstance(student, SpanStudent) and student.config.names:
        raise ExportError("format=onnx has no graph for student.names")
    unknown = [name for name in precisions if name not in PRECISIONS]
    if unknown or not precisions:
        raise ExportError(f"precisions={list(precisions)}; expected some of {', '.join(PRECISIONS)}")
    student = deepcopy(student).float().eval()  # the caller keeps its own as it is
    checkpoint = replace(checkpoint, student=student)
    spans = isinstance(student, SpanStudent)
    ranges = input_ranges(checkpoint, records) if spans and "int8" in precisions else {}
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        made = Path(temporary) / folder.name
        made.mkdir()
        for precision in precisions:
            (made / precision).mkdir(parents=True)
            every = _graphs(student, precision == "int8", checkpoint.max_length, ranges)
            for name, net in every.items():
                net.save(made / precision / f"{name}.onnx")
        save_file(_tables(_looked_up(student), whole="fp32" in precisions), made / TABLES)
        manifest = {
            "format": FORMAT,
            "needle": __version__,
            "family": checkpoint.config.family,
            "student": asdict(checkpoint.config),
            "parameters": count_parameters(student),
            "tokenizer": checkpoint.tokenizer.fingerprint,
            "weights": weights_fingerprint(checkpoint.folder) if checkpoint.folder else None,
            "graphs": list(every),
            "precisions": list(precisions),
            "bytes": sum(file.stat().st_size for file in made.rglob("*") if file.is_file()),
        }
        write_json(made / MANIFEST, manifest)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    return manifest


def _graphs(student: Student, small: bool, longest: int, ranges: Ranges) -> dict[str, Net]:
    if isinstance(student, SpanStudent):
        return graphs(student, small, longest, ranges)
    if isinstance(student, CausalStudent):
        return causal_graphs(student, small, longest)
    assert isinstance(student, SanStudent)
    return san_graphs(student, small, longest)


def _looked_up(student: Student) -> dict[str, Tensor]:
    if isinstance(student, SpanStudent):
        return tables(student)
    found: dict[str, nn.Embedding] = {}
    if isinstance(student, SanStudent):
        found["embed"] = student.embed
    elif isinstance(student, CausalStudent):
        found["embed"] = student.embed_tokens
    if isinstance(student, SeedStudent):
        found["positions"] = student.embed_positions
    return {name: table.weight.detach().float().contiguous() for name, table in found.items()}


def _tables(found: dict[str, Tensor], whole: bool) -> dict[str, Any]:
    """As arrays; the wide ones in eight bits with a scale for each row, unless `whole`."""
    out = {name: table.numpy() for name, table in found.items()}
    for name in WIDE if not whole else ():
        if name in out:
            scales = np.abs(out[name]).max(axis=1) / 127
            out[f"{name}_scale"] = scales.astype(np.float32)
            out[name] = np.rint(out[name] / np.maximum(scales, 1e-12)[:, None]).astype(np.int8)
    return out
