"""An onnx export that is looked at before it is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from needle.data.invented.requests import invented
from needle.engine.onnx import MANIFEST
from needle.exports.onnx import export_onnx
from needle.exports.parity import parity
from needle.students.checkpoint import Checkpoint
from needle.text.files import write_json
from needle.text.records import Record

SEED, LOOKED_AT = 998, 64  # made-up requests that nothing trains with, and how many tell what eight bits must bear


def make_onnx(
    checkpoint: Checkpoint,
    folder: Path,
    precisions: Sequence[str],
    records: Sequence[Record],
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Exports into `folder` and compares answers with torch's on `records`; the manifest that it then has.

    Raises:
        ExportError: as `export_onnx` does.
    """
    manifest = export_onnx(checkpoint, folder, precisions, invented(LOOKED_AT, SEED + 1))
    say(f"{folder}: {', '.join(precisions)}, {manifest['bytes'] / 1e6:.1f} MB")
    for precision in precisions if records else ():
        found = manifest.setdefault("parity", {})[precision] = parity(checkpoint, folder, precision, records)
        say(
            f"{precision}: {100 * found['same']:.1f}% of {found['records']} answers as in torch, confidence within"
            f" {found['confidence_difference']:.2g}"
        )
    write_json(folder / MANIFEST, manifest)
    return manifest
