"""A folder in small files, and back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from needle.training.shards import MANIFEST, ShardError, cut, join


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run" / "state").mkdir(parents=True)
    (tmp_path / "run" / "state" / "model.safetensors").write_bytes(os.urandom(5000))
    (tmp_path / "run" / "empty").write_bytes(b"")
    (tmp_path / "run" / "progress.json").write_text("{}")
    return tmp_path / "run"


def test_what_was_cut_is_joined_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    pieces = cut(folder, tmp_path / "pieces", 1024)
    assert len(pieces) == 5 + 1 + 1
    assert all(piece.stat().st_size <= 1024 for piece in pieces)
    join(tmp_path / "pieces", tmp_path / "again")
    for file in folder.rglob("*"):
        if file.is_file():
            assert (tmp_path / "again" / file.relative_to(folder)).read_bytes() == file.read_bytes()


def test_a_missing_or_changed_piece_is_told_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    pieces = tmp_path / "pieces"
    cut(folder, pieces, 1024)
    one = pieces / "0003.shard"
    whole = one.read_bytes()
    one.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ShardError, match="isn't the file that was cut"):
        join(pieces, tmp_path / "again")
    one.unlink()
    with pytest.raises(ShardError, match=r"lacks 0003\.shard"):
        join(pieces, tmp_path / "again")
    assert not (tmp_path / "again" / "state" / "model.safetensors").exists()


def test_pieces_are_never_mixed_and_stay_inside(folder: Path, tmp_path: Path) -> None:
    pieces = tmp_path / "pieces"
    cut(folder, pieces, 1024)
    with pytest.raises(ShardError, match="already"):
        cut(folder, pieces, 1024)
    manifest = pieces / MANIFEST
    manifest.write_text(manifest.read_text().replace("progress.json", "../progress.json"))
    with pytest.raises(ShardError, match="outside"):
        join(pieces, tmp_path / "again")
    with pytest.raises(ShardError, match="no shards"):
        join(folder, tmp_path / "again")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ShardError, match="no file"):
        cut(tmp_path / "nothing", tmp_path / "other", 1024)
