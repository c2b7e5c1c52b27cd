"""`needle export`: a checkpoint in a format that other runtimes read. `needle export checkpoint=DIR`

Without Hydra, as `needle serve`.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, field
from pathlib import Path

from needle.cli.plain import read_settings
from needle.cli.say import console, fail
from needle.data.invented.requests import invented
from needle.engine.onnx import MANIFEST
from needle.exports.llama import export_gguf, export_huggingface
from needle.students.checkpoint import Checkpoint, load_checkpoint
from needle.text.files import write_json
from needle.text.formats import read_records

FORMATS = ("onnx", "huggingface", "gguf")
SEED, LOOKED_AT = 998, 64  # made-up requests that nothing trains with, and how many tell what eight bits must bear


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
    from needle.exports.onnx import export_onnx
    from needle.exports.parity import parity

    precisions = config.precisions or ["int8"]
    records = list(read_records(Path(config.data))) if config.data else invented(config.check, SEED)
    if len(records) > config.check:
        records = random.Random(0).sample(records, config.check)
    manifest = export_onnx(checkpoint, folder, precisions, invented(LOOKED_AT, SEED + 1))
    console.print(f"{folder}: {', '.join(precisions)}, {manifest['bytes'] / 1e6:.1f} MB", markup=False)
    for precision in precisions if records else ():
        found = parity(checkpoint, folder, precision, records)
        manifest.setdefault("parity", {})[precision] = found
        console.print(
            f"{precision}: {100 * found['same']:.1f}% of {found['records']} answers as in torch, confidence within"
            f" {found['confidence_difference']:.2g}",
            markup=False,
        )
    write_json(folder / MANIFEST, manifest)


def main() -> None:
    try:
        config = read_settings(ExportSettings, sys.argv[1:], "export")
        if config is not None:
            run(config)
    except (ValueError, FileNotFoundError) as error:
        fail(str(error))
