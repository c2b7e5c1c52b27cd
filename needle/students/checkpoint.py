"""A checkpoint folder: safetensors weights, the student's config as JSON, the tokenizer. Nothing in it is pickled.

config.json  model.safetensors  tokenizer.json
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from needle import __version__
from needle.students.base import Student
from needle.students.build import FAMILIES, StudentConfig, build_student
from needle.text.files import replacing, write_json
from needle.text.folder import CONFIG, WEIGHTS, CheckpointError, Model, read_model, weights_fingerprint
from needle.text.prompt import Codec, Renderer
from needle.text.tokenizer import FILE_NAME, TextTokenizer


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
    def model(self) -> Model:
        """What is known of it apart from its weights."""
        return Model(self.tokenizer, self.codec_name, self.max_length, self.data, self.folder, self.config.family)

    @property
    def codec(self) -> Codec:
        return self.model.codec

    @property
    def renderer(self) -> Renderer:
        return self.model.renderer


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
        "weights": weights_fingerprint(folder),
        "tokenizer": checkpoint.tokenizer.fingerprint,
        "codec": checkpoint.codec_name,
        "max_length": checkpoint.max_length,
        "data": dict(checkpoint.data),
    }
    write_json(folder / CONFIG, row)


def load_checkpoint(folder: Path | str | None = None) -> Checkpoint:
    """The student of a folder, or the released one; raises `CheckpointError` if it isn't a checkpoint or its parts
    don't fit each other."""
    model, row = read_model(folder)
    assert model.folder is not None
    weights = model.folder / WEIGHTS
    if not weights.is_file():
        raise CheckpointError(
            f"{model.folder} isn't a checkpoint: it has no {WEIGHTS} (expected {CONFIG}, {WEIGHTS} and {FILE_NAME}, as"
            " `needle train` writes them)"
        )
    try:
        config = student_config(row["student"])
        student = build_student(config, model.tokenizer.size)
        student.load_state_dict(load_file(weights))
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{model.folder} can't be loaded: {type(error).__name__}: {error}") from error
    student.eval()
    return Checkpoint(student, config, model.tokenizer, model.codec_name, model.max_length, model.data, model.folder)


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
