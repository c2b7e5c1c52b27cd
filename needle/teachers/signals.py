"""Where a run's signals come from: a cache that is filled once and read by every arm of a sweep, or the teacher itself.

A cache folder holds `manifest.json` and shards of safetensors, each with its index and checksum beside it. A record's
signal is stored under a hash of what the model reads and writes (request, rendered tools, target tokens), so order,
data size and batches don't matter, and a record that was changed in any way (other distractors, another order of tools,
renamed arguments) has no signal until it gets its own. The folder's name is a hash of the teacher's weights, the
tokenizer, the codec, the kind of signal and the temperature: another teacher is another folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from needle.losses.loss import Signal
from needle.students.base import Trace
from needle.students.batch import Batch
from needle.teachers.local import LocalTeacher
from needle.teachers.replay import Stored
from needle.text.files import replacing, write_json
from needle.text.prompt import Example
from needle.text.records import Record

MANIFEST = "manifest.json"
SHARD = 2048  # records; what a killed build has to do again at most
REQUIRED = ("tokenizer", "codec", "kind", "temperature", "rung", "rebuild")


class Maker(Protocol):
    """Makes signals for records; see `teachers.local` and `teachers.replay`."""

    rung: str
    kind: str
    temperature: float
    identity: dict[str, Any]
    rebuild: str

    @property
    def bytes_per_token(self) -> int: ...

    def make(self, records: Sequence[Record], examples: Sequence[Example], device: torch.device) -> list[Stored]: ...


class Signals(Protocol):
    """What training asks for the signal of a batch."""

    @property
    def identity(self) -> Mapping[str, Any]: ...

    def read(self, examples: Sequence[Example], batch: Batch, trace: Trace | None = None) -> Signal:
        """The signal of a batch, flattened to its B*T target positions; `trace` gets the teacher's insides if it is at
        hand."""


class OnlineSignals:
    """The teacher looks at every batch as it comes: nothing is stored, and changed records are no matter."""

    def __init__(self, teacher: LocalTeacher) -> None:
        self.teacher = teacher
        self.identity: dict[str, Any] = {"teacher": teacher.fingerprint, "online": True}

    def read(self, examples: Sequence[Example], batch: Batch, trace: Trace | None = None) -> Signal:
        return Signal.dense(self.teacher.log_probs(examples, batch.targets.device, batch, trace).flatten(0, 1))


def example_key(example: Example) -> str:
    """A hash of everything that a teacher's answer depends on."""
    content = json.dumps(
        [
            example.query,
            [tool.key for tool in example.tools],
            example.target,
            *([example.votes] if example.votes else []),
        ]
    )
    return hashlib.sha256(content.encode()).hexdigest()[:24]


class SignalCache:
    """Signals on disk, read from memory-mapped shards."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any], maker: Maker | None = None) -> None:
        self.folder, self.manifest, self.maker = folder, dict(manifest), maker
        self.kind: str = manifest["kind"]
        self.temperature: float = manifest["temperature"]
        self.identity: Mapping[str, Any] = {
            key: value for key, value in manifest.items() if key not in ("rebuild", "bytes_per_token")
        }
        self._index: dict[str, tuple[int, int, int]] = {}  # key: shard, first position, length
        self._shards: list[Any] = []
        self._load()

    @classmethod
    def beside(cls, root: Path, maker: Maker) -> SignalCache:
        """The cache of a teacher under `root`, empty if it is new."""
        identity = {**maker.identity, "temperature": maker.temperature, "rung": maker.rung}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        folder = root / f"signals-{digest}"
        manifest = {**identity, "kind": maker.kind, "bytes_per_token": maker.bytes_per_token, "rebuild": maker.rebuild}
        path = folder / MANIFEST
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            different = [name for name in manifest if name != "rebuild" and stored.get(name) != manifest[name]]
            if different:
                name = different[0]
                raise ValueError(
                    f"{path} was built for {name}={stored.get(name)}, not {manifest[name]}; delete the folder to build"
                    " it anew"
                )
        return cls(folder, manifest, maker)

    @classmethod
    def open(cls, folder: Path, tokenizer: str, codec: str, temperature: float) -> SignalCache:
        """A finished cache, without its teacher.

        Raises:
            ValueError: the folder is no cache, or is about other tokens, another codec or another temperature.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise ValueError(
                f"{folder} holds no {MANIFEST}; teacher.signals names a folder of stored signals, as training with"
                " teacher=local leaves it in its cache"
            )
        manifest = json.loads(path.read_text(encoding="utf-8"))
        lacking = [name for name in REQUIRED if name not in manifest]
        if lacking:
            raise ValueError(f"{path} lacks '{lacking[0]}': it wasn't written by this version; build the cache anew")
        wanted: dict[str, Any] = {"tokenizer": tokenizer, "codec": codec}
        if manifest["kind"] == "sampled":
            wanted["temperature"] = temperature
        for name, value in wanted.items():
            if manifest[name] != value:
                raise ValueError(
                    f"the signals in {folder} were built for {name} {manifest[name]}, this run has {name} {value};"
                    f" build others with {manifest['rebuild']}"
                )
        return cls(folder, manifest)

    @property
    def bytes_per_token(self) -> int:
        return int(self.manifest["bytes_per_token"])

    def missing(self, examples: Sequence[Example]) -> list[int]:
        """Indices of distinct examples that have no signal yet."""
        found = {
            key: index for index, example in enumerate(examples) if (key := example_key(example)) not in self._index
        }
        return list(found.values())

    def build(
        self,
        records: Sequence[Record],
        examples: Sequence[Example],
        device: torch.device,
        progress: Callable[[int, int], None] | None = None,
        batch_size: int = 64,
    ) -> int:
        """Makes what is missing, a shard at a time, so that a killed build goes on; returns how many records that was.

        Raises:
            ValueError: signals are missing and this cache was opened without its teacher.
        """
        todo = sorted(self.missing(examples), key=lambda index: len(examples[index].target))
        if todo and self.maker is None:
            raise ValueError(
                f"{self.folder} has no signals for {len(todo)} of {len(examples)} records; it was built with"
                f" {self.manifest['rebuild']}"
            )
        for first in range(0, len(todo), SHARD):
            shard = todo[first : first + SHARD]
            made: list[Stored] = []
            for start in range(0, len(shard), batch_size):
                part = shard[start : start + batch_size]
                assert self.maker is not None
                made += self.maker.make([records[i] for i in part], [examples[i] for i in part], device)
                if progress:
                    progress(first + start + len(part), len(todo))
            self._write_shard([example_key(examples[i]) for i in shard], made)
        if todo:
            self._load()
        return len(todo)

    def _write_shard(self, keys: list[str], made: Sequence[Stored]) -> None:
        """Tensors first, then their index with the checksum, each renamed into place: a crash or a second writer can't
        mix shards up."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / MANIFEST, self.manifest)
        name = f"shard-{hashlib.sha256(' '.join(keys).encode()).hexdigest()[:16]}"
        with replacing(self.folder / f"{name}.safetensors") as temporary:
            save_file({part: torch.cat([stored[part] for stored in made]).contiguous() for part in made[0]}, temporary)
            index = {
                "keys": keys,
                "lengths": [len(stored["log_probs"]) for stored in made],
                "sha256": _checksum(temporary),
            }
        write_json(self.folder / f"{name}.json", index)

    def verify(self) -> list[str]:
        """Removes shards whose bytes aren't what was written, and says which; `build` then makes them again."""
        broken = []
        for path in sorted(self.folder.glob("shard-*.json")):
            tensors = path.with_suffix(".safetensors")
            try:
                intact = json.loads(path.read_text(encoding="utf-8"))["sha256"] == _checksum(tensors)
            except (OSError, ValueError, KeyError):
                intact = False
            if not intact:
                broken.append(f"{tensors} doesn't match its checksum; its signals are made again")
                tensors.unlink(missing_ok=True)
                path.unlink(missing_ok=True)
        if broken:
            self._load()
        return broken

    def _load(self) -> None:
        self._index, self._shards = {}, []
        for path in sorted(self.folder.glob("shard-*.json")):
            try:
                shard = json.loads(path.read_text(encoding="utf-8"))
                self._shards.append(safe_open(path.with_suffix(".safetensors"), framework="pt"))
            except (OSError, ValueError, SafetensorError):
                continue  # `verify` will find it
            first = 0
            for key, length in zip(shard["keys"], shard["lengths"], strict=True):
                self._index[key] = (len(self._shards) - 1, first, length)
                first += length

    def read(self, examples: Sequence[Example], batch: Batch, trace: Trace | None = None) -> Signal:
        """Raises `KeyError` for an example without a stored signal."""
        stored = []
        for example in examples:
            number, first, length = self._index[example_key(example)]
            shard = self._shards[number]
            stored.append({name: shard.get_slice(name)[first : first + length] for name in shard.keys()})  # noqa: SIM118 - a file, not a dict
        return assemble(stored, batch.targets.shape[1], self.kind, self.temperature).to(batch.targets.device)


def assemble(stored: Sequence[Stored], width: int, kind: str, temperature: float) -> Signal:
    """The signal of a batch from those of its records, T padded to `width`; padding is not known."""
    if kind == "span":
        span = torch.full((len(stored), width), -1, dtype=torch.long)
        starts = torch.tensor([0, *(len(part["log_probs"]) for part in stored)]).cumsum(0)
        for row, part in enumerate(stored):
            span[row, : len(part["span"])] = part["span"] + starts[row]
        return Signal.spans(span.flatten(), torch.cat([part["log_probs"] for part in stored]).clamp_max(0.0))

    def padded(name: str, fill: float, dtype: torch.dtype) -> Tensor:
        out = torch.full((len(stored), width, *stored[0][name].shape[1:]), fill, dtype=dtype)
        for row, part in enumerate(stored):
            out[row, : len(part[name])] = part[name]
        return out.flatten(0, 1)

    known = torch.zeros(len(stored), width, dtype=torch.bool)
    for row, part in enumerate(stored):
        known[row, : len(part["log_probs"])] = part.get("known", torch.tensor(True))
    ids, log_probs = padded("ids", 0, torch.long), padded("log_probs", -torch.inf, torch.float32)
    if kind == "sampled":
        return Signal.sampled(ids, log_probs, padded("entropy", 0.0, torch.float32), temperature, known.flatten())
    tail = padded("tail", -torch.inf, torch.float32) if "tail" in stored[0] else None
    return Signal.top_k(ids, log_probs, temperature, known.flatten(), tail)


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
