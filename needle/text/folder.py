"""A model's folder: what every file in it is called, and what is known of a model whatever computes it.

config.json  model.safetensors  tokenizer.json  (pieces.json)  (onnx/)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from needle.text.codecs import build_codec
from needle.text.prompt import Codec, Renderer
from needle.text.tokenizer import FILE_NAME, TextTokenizer

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
EXPORT = "onnx"  # the folder of an export beside the weights
RELEASED = "needle-26m"


class CheckpointError(ValueError):
    """A folder that isn't a usable checkpoint; the message says which file is missing or wrong."""


@dataclass
class Model:
    """What a model reads and writes with, and what it was trained on."""

    tokenizer: TextTokenizer
    codec_name: str
    max_length: int
    data: Mapping[str, Any] = field(default_factory=dict)  # fingerprint and names of the training data
    folder: Path | None = None
    family: str = ""
    weights: str = ""  # fingerprint

    @cached_property
    def codec(self) -> Codec:
        return build_codec(self.codec_name, self.tokenizer)

    @cached_property
    def renderer(self) -> Renderer:
        return Renderer(self.tokenizer)

    @property
    def seen_tools(self) -> frozenset[str]:
        return frozenset(self.data.get("tools", ()))


def released() -> Path:
    """The folder of the student that comes with the library; raises `CheckpointError` where it was left out."""
    folder = Path(str(files("needle_models"))) / RELEASED
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"the released student isn't in {folder}; give checkpoint=DIR, a folder that `needle train` wrote (after"
            " `make demo`: checkpoint=outputs/demo/best)"
        )
    return folder


def read_model(folder: Path | str | None = None) -> tuple[Model, dict[str, Any]]:
    """The model of a folder, or the released one, and its config; its weights aren't looked at.

    Raises:
        CheckpointError: a file is missing, or the tokenizer isn't the one that the weights were trained with.
    """
    folder = released() if folder is None else Path(folder)
    for name in (CONFIG, FILE_NAME):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} isn't a checkpoint: it has no {name} (expected {CONFIG}, {WEIGHTS} and {FILE_NAME}, as"
                " `needle train` writes them)"
            )
    try:
        row: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tokenizer = TextTokenizer.load(folder)
        if tokenizer.fingerprint != row["tokenizer"]:
            raise CheckpointError(
                f"{folder}: {FILE_NAME} has fingerprint {tokenizer.fingerprint}, but the weights were trained with"
                f" {row['tokenizer']}"
            )
        family = row["student"]["family"]
        data, weights = row.get("data", {}), row.get("weights", "")
        return Model(tokenizer, row["codec"], row["max_length"], data, folder, family, weights), row
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} can't be loaded: {type(error).__name__}: {error}") from error


def weights_fingerprint(folder: Path) -> str:
    """A hash of the weights file: what a cache of this teacher's signals is keyed by."""
    digest = hashlib.sha256()
    with open(folder / WEIGHTS, "rb") as weights:
        while block := weights.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]
