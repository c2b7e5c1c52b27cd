"""The cache of a teacher's signals: computed once, kept by content, read by every arm of a sweep.

A folder holds `manifest.json` and shards of safetensors. Each record's signal is stored under a hash of what the model
reads and writes (request, rendered tools, target tokens), so order, data size and batches don't matter. The folder's name
is a hash of the teacher's weights, the tokenizer, the codec, K and the temperature: another teacher is another folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from needle.checkpoint import write_json
from needle.losses import Signal
from needle.prompt import Example
from needle.teachers.local import LocalTeacher

MANIFEST = "manifest.json"


def example_key(example: Example) -> str:
    """A hash of everything that a teacher's answer depends on."""
    content = json.dumps([example.query, [tool.key for tool in example.tools], example.target])
    return hashlib.sha256(content.encode()).hexdigest()[:24]


class SignalCache:
    """Top-K log-probabilities at one temperature, the tail exact. Reads from memory-mapped shards."""

    def __init__(self, root: Path, teacher: LocalTeacher, k: int, temperature: float) -> None:
        k = min(k, teacher.tokenizer.size)
        self.teacher, self.k, self.temperature = teacher, k, temperature
        self.identity = {
            "teacher": teacher.fingerprint,
            "tokenizer": teacher.tokenizer.fingerprint,
            "codec": teacher.codec_name,
            "k": k,
            "temperature": temperature,
            "rung": "white box: a local teacher that shares the tokenizer",
        }
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = root / f"signals-{digest}"
        self._index: dict[str, tuple[int, int, int]] = {}  # key: shard, first position, length
        self._shards: list[Any] = []
        self._open()

    @property
    def bytes_per_token(self) -> int:
        return self.k * (4 + 4)

    def missing(self, examples: Sequence[Example]) -> list[Example]:
        """Distinct examples that have no signal yet."""
        found = {key: example for example in examples if (key := example_key(example)) not in self._index}
        return list(found.values())

    def build(self, examples: Sequence[Example], device: torch.device, progress: Callable[[int, int], None] | None = None, batch_size: int = 64) -> int:
        """Computes what is missing as one new shard, and returns how many records that was. `progress` hears (done, all)."""
        todo = sorted(self.missing(examples), key=lambda example: len(example.target))
        if not todo:
            return 0
        keys, lengths, ids, log_probs = [], [], [], []
        for start in range(0, len(todo), batch_size):
            part = todo[start : start + batch_size]
            tempered = (self.teacher.log_probs(part, device) / self.temperature).log_softmax(-1)
            top = tempered.topk(self.k, dim=-1)
            for row, example in enumerate(part):
                keys.append(example_key(example))
                lengths.append(len(example.target))
                ids.append(top.indices[row, : len(example.target)].to(torch.int32).cpu())
                log_probs.append(top.values[row, : len(example.target)].cpu())
            if progress:
                progress(min(start + batch_size, len(todo)), len(todo))
        self._write_shard(keys, lengths, torch.cat(ids), torch.cat(log_probs))
        return len(todo)

    def _write_shard(self, keys: list[str], lengths: list[int], ids: Tensor, log_probs: Tensor) -> None:
        """Tensors first, then their index, each renamed into place: a crash or a second writer can't mix shards up."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"shard-{hashlib.sha256(' '.join(keys).encode()).hexdigest()[:16]}"
        temporary = self.folder / f"{name}.safetensors.{os.getpid()}.tmp"
        save_file({"ids": ids.contiguous(), "log_probs": log_probs.contiguous()}, temporary)
        temporary.replace(self.folder / f"{name}.safetensors")
        write_json(self.folder / f"{name}.json", {"keys": keys, "lengths": lengths})
        write_json(self.folder / MANIFEST, {**self.identity, "bytes_per_token": self.bytes_per_token})
        self._open()

    def _open(self) -> None:
        self._index, self._shards = {}, []
        manifest = self.folder / MANIFEST
        if manifest.exists():
            stored = json.loads(manifest.read_text(encoding="utf-8"))
            different = [name for name, value in self.identity.items() if stored.get(name) != value]
            if different:
                name = different[0]
                raise ValueError(f"{manifest} was built for {name}={stored.get(name)}, not {self.identity[name]}; delete the folder to build it anew")
        for path in sorted(self.folder.glob("shard-*.json")):
            shard = json.loads(path.read_text(encoding="utf-8"))
            self._shards.append(safe_open(path.with_suffix(".safetensors"), framework="pt"))
            first = 0
            for key, length in zip(shard["keys"], shard["lengths"], strict=True):
                self._index[key] = (len(self._shards) - 1, first, length)
                first += length

    def read(self, examples: Sequence[Example], width: int) -> Signal:
        """The signal of a batch, flattened to [B*width, K]; padding says nothing (log-probability -inf).

        Raises:
            KeyError: an example without a stored signal.
        """
        ids = torch.zeros(len(examples), width, self.k, dtype=torch.int64)
        log_probs = torch.full((len(examples), width, self.k), -torch.inf)
        for row, example in enumerate(examples):
            number, first, length = self._index[example_key(example)]
            shard = self._shards[number]
            ids[row, :length] = shard.get_slice("ids")[first : first + length].long()
            log_probs[row, :length] = shard.get_slice("log_probs")[first : first + length]
        return Signal.top_k(ids.flatten(0, 1), log_probs.flatten(0, 1), self.temperature)
