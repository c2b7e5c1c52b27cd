"""A checkpoint folder: safetensors weights, the student's config as JSON, the tokenizer. Nothing in it is pickled.

config.json  model.safetensors  tokenizer.json
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from needle import __version__
from needle.students.base import Student
from needle.students.build import FAMILIES, StudentConfig, build_student
from needle.text.codecs import build_codec
from needle.text.files import replacing, write_json
from needle.text.prompt import Codec, Renderer
from needle.text.tokenizer import FILE_NAME, TextTokenizer

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
RELEASED = "needle-26m"


class CheckpointError(ValueError):
    """A folder that isn't a usable checkpoint; the message says which file is missing or wrong."""


@dataclass
class Checkpoint:
    """A student with all that it needs to answer."""

    student: Student
    config: StudentConfig
    tokenizer: TextTokenizer
    codec_name: str
    max_length: int
    data: Mapping[str, Any] = field(default_factory=dict)  # fingerprint and names of the training data
    folder: Path | None = None

    @cached_property
    def codec(self) -> Codec:
        return build_codec(self.codec_name, self.tokenizer)

    @cached_property
    def renderer(self) -> Renderer:
        return Renderer(self.tokenizer)

    @property
    def seen_tools(self) -> frozenset[str]:
        return frozenset(self.data.get("tools", ()))


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes each file beside its name and renames it, so that a crash leaves the old one."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.student.state_dict().items()}
    with replacing(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    checkpoint.tokenizer.save(folder)
    row = {
        "needle": __version__,
        "student": asdict(checkpoint.config),
        "vocabulary": checkpoint.tokenizer.size,
        "tokenizer": checkpoint.tokenizer.fingerprint,
        "codec": checkpoint.codec_name,
        "max_length": checkpoint.max_length,
        "data": dict(checkpoint.data),
    }
    write_json(folder / CONFIG, row)


def released() -> Path:
    """The folder of the student that comes with the library; raises `CheckpointError` where it was left out."""
    folder = Path(str(files("needle_models"))) / RELEASED
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(
            f"the released student isn't in {folder}; give checkpoint=DIR, a folder that `needle train` wrote (after"
            " `make demo`: checkpoint=outputs/demo/best)"
        )
    return folder


def load_checkpoint(folder: Path | str | None = None) -> Checkpoint:
    """The student of a folder, or the released one; raises `CheckpointError` if it isn't a checkpoint or its parts
    don't fit each other."""
    folder = released() if folder is None else Path(folder)
    for name in (CONFIG, WEIGHTS, FILE_NAME):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} isn't a checkpoint: it has no {name} (expected {CONFIG}, {WEIGHTS} and {FILE_NAME}, as"
                " `needle train` writes them)"
            )
    try:
        row = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        config = student_config(row["student"])
        tokenizer = TextTokenizer.load(folder)
        if tokenizer.fingerprint != row["tokenizer"]:
            raise CheckpointError(
                f"{folder}: {FILE_NAME} has fingerprint {tokenizer.fingerprint}, but the weights were trained with"
                f" {row['tokenizer']}"
            )
        student = build_student(config, tokenizer.size)
        student.load_state_dict(load_file(folder / WEIGHTS))
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} can't be loaded: {type(error).__name__}: {error}") from error
    student.eval()
    return Checkpoint(student, config, tokenizer, row["codec"], row["max_length"], row.get("data", {}), folder)


def student_config(row: Mapping[str, Any] | StudentConfig) -> StudentConfig:
    """The typed config of a family; raises `CheckpointError` for an unknown family or field."""
    if not isinstance(row, Mapping):
        return row
    family = row.get("family")
    if family not in FAMILIES:
        raise CheckpointError(f"student.family is '{family}'; expected one of {', '.join(FAMILIES)}")
    kind = FAMILIES[family]
    unknown = set(row) - {entry.name for entry in fields(kind)}
    if unknown:
        raise CheckpointError(f"student has the unknown field '{sorted(unknown)[0]}' for family {family}")
    return kind(**row)


def weights_fingerprint(folder: Path) -> str:
    """A hash of the weights file: what a cache of this teacher's signals is keyed by."""
    digest = hashlib.sha256()
    with open(folder / WEIGHTS, "rb") as weights:
        while block := weights.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]
