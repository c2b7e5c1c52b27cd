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
from needle.exports.onnx import export_onnx
from needle.exports.parity import parity
from needle.students.checkpoint import load_checkpoint
from needle.text.files import write_json
from needle.text.folder import EXPORT
from needle.text.formats import read_records

SEED, LOOKED_AT = 998, 64  # made-up requests that nothing trains with, and how many tell what eight bits must bear


@dataclass
class ExportSettings:
    """`checkpoint` a folder, the released student when there is none; `format` onnx; `output` the folder that is
    written, onnx in the checkpoint's when there is none, where `needle serve` finds it; `precisions` some of int8 and
    fp32. Answers are compared with torch's on `check` records of the file `data`, or as many made-up requests; 0
    doesn't."""

    checkpoint: str | None = None
    format: str = "onnx"
    output: str | None = None
    precisions: list[str] = field(default_factory=lambda: ["int8"])
    check: int = 200
    data: str | None = None


def run(config: ExportSettings) -> None:
    if config.format != "onnx":
        raise ValueError(f"format is '{config.format}'; expected onnx")
    checkpoint = load_checkpoint(config.checkpoint)
    assert checkpoint.folder is not None
    folder = Path(config.output) if config.output else checkpoint.folder / EXPORT
    records = list(read_records(Path(config.data))) if config.data else invented(config.check, SEED)
    if len(records) > config.check:
        records = random.Random(0).sample(records, config.check)
    manifest = export_onnx(checkpoint, folder, config.precisions, invented(LOOKED_AT, SEED + 1))
    console.print(f"{folder}: {', '.join(config.precisions)}, {manifest['bytes'] / 1e6:.1f} MB", markup=False)
    for precision in config.precisions if records else ():
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
