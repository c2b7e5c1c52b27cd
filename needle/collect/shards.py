"""Raw answers on disk: JSON lines in zstd frames, one frame a commit, only ever appended to.

A frame is on the disk before anything speaks of it. A crash can leave half a frame at the end of a file; `tail` finds
what is whole, and `cut` takes the rest away.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

LARGEST = 64 << 20  # bytes of one file
KEPT = 64  # frames that a reader remembers


@dataclass(frozen=True)
class Place:
    """Where an answer lies: a file, the first byte of its frame, its line in the frame."""

    shard: str
    offset: int
    line: int


class ShardWriter:
    """The files of one worker, which nobody else writes to."""

    def __init__(self, folder: Path, owner: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.owner, self.number = folder, owner, 0
        self.compressor = zstandard.ZstdCompressor(level=6, write_checksum=True)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[Place], int]:
        """Writes rows as one frame and waits until the disk has it; where they are, and the file's new length."""
        path = self.folder / f"{self.owner}-{self.number:05d}.jsonl.zst"
        if path.exists() and path.stat().st_size > LARGEST:
            self.number += 1
            return self.append(rows)
        text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)
        frame = self.compressor.compress(text.encode("utf-8", "surrogatepass"))
        new = not path.exists()
        with path.open("ab") as out:
            offset = out.tell()
            out.write(frame)
            out.flush()
            os.fsync(out.fileno())
        if new:
            _sync_folder(self.folder)
        return [Place(path.name, offset, line) for line in range(len(rows))], offset + len(frame)


class ShardReader:
    """Reads answers by their places; neighbours in a frame cost one decompression."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._frames: OrderedDict[tuple[str, int], list[bytes]] = OrderedDict()

    def read(self, place: Place) -> dict[str, Any]:
        key = (place.shard, place.offset)
        if key not in self._frames:
            with (self.folder / place.shard).open("rb") as file:
                file.seek(place.offset)
                _, lines = next(_frames(file.read, place.offset))
            self._frames[key] = lines
            while len(self._frames) > KEPT:
                self._frames.popitem(last=False)
        self._frames.move_to_end(key)
        row: dict[str, Any] = json.loads(self._frames[key][place.line].decode("utf-8", "surrogatepass"))
        return row


def tail(path: Path, start: int) -> tuple[list[tuple[Place, dict[str, Any]]], int]:
    """The rows of all whole frames from byte `start` on, and where the last of these frames ends."""
    found, end = [], start
    with path.open("rb") as file:
        file.seek(start)
        for (offset, length), lines in _frames(file.read, start):
            found += [
                (Place(path.name, offset, number), json.loads(line.decode("utf-8", "surrogatepass")))
                for number, line in enumerate(lines)
            ]
            end = offset + length
    return found, end


def cut(path: Path, length: int) -> int:
    """Shortens a file to its whole frames; how many bytes went."""
    gone = path.stat().st_size - length
    if gone > 0:
        with path.open("r+b") as file:
            file.truncate(length)
            file.flush()
            os.fsync(file.fileno())
    return max(gone, 0)


def rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Every answer that was ever stored, file after file."""
    for path in sorted(folder.glob("*.jsonl.zst")):
        with path.open("rb") as file:
            for _, lines in _frames(file.read, 0):
                for line in lines:
                    yield json.loads(line.decode("utf-8", "surrogatepass"))


def _frames(read: Any, offset: int) -> Iterator[tuple[tuple[int, int], list[bytes]]]:
    """Whole frames, each as (first byte, length) and its lines; ends at the first that isn't whole."""
    rest = b""
    while True:
        frame, text, length = zstandard.ZstdDecompressor().decompressobj(), b"", 0
        while not frame.eof:
            piece = rest or read(1 << 16)
            rest = b""
            if not piece:
                return
            try:
                text += frame.decompress(piece)
            except zstandard.ZstdError:
                return
            length += len(piece)
        rest = frame.unused_data
        length -= len(rest)
        yield (offset, length), text.splitlines()
        offset += length


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
