"""A checkpoint as graphs for onnxruntime, in float32 and in eight bits."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from safetensors.numpy import save_file
from torch import Tensor

from needle import __version__
from needle.engine.onnx import FORMAT, MANIFEST, PRECISIONS, TABLES
from needle.exports.span import Graph, graphs, tables
from needle.students.base import count_parameters
from needle.students.checkpoint import Checkpoint
from needle.students.span.student import SpanStudent
from needle.text.files import write_json
from needle.text.folder import weights_fingerprint

OPSET = 17
WIDE = "embed"  # the table that is large enough to be held in eight bits


class ExportError(ValueError):
    """A student that can't be exported; the message says why and what can."""


def export_onnx(checkpoint: Checkpoint, folder: Path, precisions: Sequence[str] = ("int8",)) -> dict[str, Any]:
    """Writes graphs, tables and manifest into `folder`, which is replaced, and returns the manifest.

    Raises:
        ExportError: a family or an option that has no graphs.
    """
    student = checkpoint.student
    if not isinstance(student, SpanStudent) or student.config.names:
        raise ExportError(f"format=onnx takes students of the family span, without names; this is {checkpoint.config}")
    unknown = [name for name in precisions if name not in PRECISIONS]
    if unknown or not precisions:
        raise ExportError(f"precisions={list(precisions)}; expected some of {', '.join(PRECISIONS)}")
    student = student.float().eval()
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        made = Path(temporary) / folder.name
        (made / "fp32").mkdir(parents=True)
        every = graphs(student)
        for name, graph in every.items():
            _write(graph, made / "fp32" / f"{name}.onnx")
            if "int8" in precisions:
                (made / "int8").mkdir(exist_ok=True)
                _quantise(made / "fp32" / f"{name}.onnx", made / "int8" / f"{name}.onnx")
        if "fp32" not in precisions:
            shutil.rmtree(made / "fp32")
        save_file(_tables(tables(student), whole="fp32" in precisions), made / TABLES)
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
            "opset": OPSET,
            "bytes": sum(file.stat().st_size for file in made.rglob("*") if file.is_file()),
        }
        write_json(made / MANIFEST, manifest)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    return manifest


@torch.no_grad()
def _write(graph: Graph, path: Path) -> None:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph.module.eval(),
            tuple(graph.inputs.values()),
            str(path),
            input_names=list(graph.inputs),
            output_names=graph.outputs,
            dynamic_axes=graph.axes,
            opset_version=OPSET,
            dynamo=False,
        )
    onnx.checker.check_model(str(path))


def _quantise(path: Path, target: Path) -> None:
    """Weights in eight bits, a scale for each column; activations in eight bits by what each call holds."""
    logging.getLogger().setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as temporary:
        ready = Path(temporary) / "ready.onnx"
        quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
        quantize_dynamic(
            str(ready),
            str(target),
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )


def _tables(found: dict[str, Tensor], whole: bool) -> dict[str, Any]:
    """As arrays; the wide one in eight bits with a scale for each row, unless `whole`."""
    out = {name: table.numpy() for name, table in found.items()}
    if not whole:
        scales = np.abs(out[WIDE]).max(axis=1) / 127
        out[f"{WIDE}_scale"] = scales.astype(np.float32)
        out[WIDE] = np.rint(out[WIDE] / np.maximum(scales, 1e-12)[:, None]).astype(np.int8)
    return out
