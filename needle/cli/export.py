"""`needle export`: a checkpoint in a format that other runtimes read. `needle export checkpoint=DIR`

Without Hydra, as `needle serve`.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from needle.cli.plain import read_settings
from needle.cli.say import console, fail
from needle.data.invented.requests import invented
from needle.exports.llama import export_gguf, export_huggingface
from needle.students.checkpoint import Checkpoint, load_checkpoint
from needle.text.formats import read_records

FORMATS = ("onnx", "huggingface", "gguf")


@dataclass
class ExportSettings:
    """`checkpoint` a folder, the released student when there is none; `format` onnx for students of the family span,
    huggingface or gguf for llama; `output` the folder that is written, one named after the format in the checkpoint's
    when there is none, where `needle serve` finds onnx. `precisions` some of int8 and fp32 (onnx), or one of F16 and
    F32 (gguf). An onnx export's answers are compared with torch's on `check` records of the file `data`, or as many
    made-up requests; 0 doesn't."""

    checkpoint: str | None = None
    format: str = "onnx"
    output: str | None = None
    precisions: list[str] = field(default_factory=list)
    check: int = 200
    data: str | None = None


def run(config: ExportSettings) -> None:
    if config.format not in FORMATS:
        raise ValueError(f"format is '{config.format}'; expected one of {', '.join(FORMATS)}")
    checkpoint = load_checkpoint(config.checkpoint)
    assert checkpoint.folder is not None
    folder = Path(config.output) if config.output else checkpoint.folder / config.format
    if config.format == "huggingface":
        export_huggingface(checkpoint, folder)
        console.print(f"{folder}: AutoModelForCausalLM.from_pretrained loads it", markup=False)
    elif config.format == "gguf":
        file = export_gguf(checkpoint, folder, *config.precisions[:1])
        console.print(f"{file}: {file.stat().st_size / 1e6:.1f} MB", markup=False)
    else:
        _onnx(checkpoint, folder, config)


def _onnx(checkpoint: Checkpoint, folder: Path, config: ExportSettings) -> None:
    from needle.exports.make import SEED, make_onnx  # needs the package onnx, which the other formats don't

    records = list(read_records(Path(config.data))) if config.data else invented(config.check, SEED)
    if len(records) > config.check:
        records = random.Random(0).sample(records, config.check)
    say = partial(console.print, markup=False)
    make_onnx(checkpoint, folder, config.precisions or ["int8"], records, say)


def main() -> None:
    try:
        config = read_settings(ExportSettings, sys.argv[1:], "export")
        if config is not None:
            run(config)
    except (ValueError, FileNotFoundError) as error:
        fail(str(error))
