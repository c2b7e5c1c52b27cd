"""A folder in small files, to carry a run's state or a checkpoint where only those pass, and the folder made of them
again.

    python -m needle.training.shards cut outputs/run pieces --mib 16
    python -m needle.training.shards join pieces outputs/run
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from needle.text.files import replacing, write_json

MANIFEST = "shards.json"


class ShardError(ValueError):
    """Pieces that don't make the folder that was cut."""


def cut(folder: Path, target: Path, size: int) -> list[Path]:
    """Every file below `folder` in pieces of at most `size` bytes, and a manifest beside them.

    Raises:
        ShardError: there is nothing to cut, or pieces lie in `target` already.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise ShardError(f"{folder} holds no file")
    if (target / MANIFEST).exists():
        raise ShardError(f"{target} holds pieces already; give another folder")
    target.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    pieces: list[Path] = []
    for file in files:
        digest, own = hashlib.sha256(), []
        with open(file, "rb") as source:
            while block := source.read(size):
                digest.update(block)
                piece = target / f"{len(pieces):04d}.shard"
                piece.write_bytes(block)
                pieces.append(piece)
                own.append(piece.name)
        rows.append({"file": file.relative_to(folder).as_posix(), "sha256": digest.hexdigest(), "pieces": own})
    write_json(target / MANIFEST, {"files": rows})
    return [*pieces, target / MANIFEST]


def join(pieces: Path, folder: Path) -> list[Path]:
    """The folder that was cut, file by file; one is written only if all of it is there.

    Raises:
        ShardError: the manifest or a piece is missing, or a file isn't the one that was cut.
    """
    try:
        rows = json.loads((pieces / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        raise ShardError(f"{pieces} has no {MANIFEST} that can be read: {error}") from error
    made = []
    for row in rows:
        file = folder / row["file"]
        if not file.resolve().is_relative_to(folder.resolve()):
            raise ShardError(f"{MANIFEST} names {row['file']}, which lies outside of {folder}")
        missing = [name for name in row["pieces"] if not (pieces / name).is_file()]
        if missing:
            raise ShardError(f"{row['file']} lacks {', '.join(missing[:3])} in {pieces}")
        file.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with replacing(file) as temporary:
            with open(temporary, "wb") as out:
                for name in row["pieces"]:
                    block = (pieces / name).read_bytes()
                    digest.update(block)
                    out.write(block)
            if digest.hexdigest() != row["sha256"]:
                raise ShardError(f"{row['file']} isn't the file that was cut: its pieces have changed")
        made.append(file)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    cutting, joining = commands.add_parser("cut"), commands.add_parser("join")
    for command in (cutting, joining):
        command.add_argument("source", type=Path)
        command.add_argument("target", type=Path)
    cutting.add_argument("--mib", type=int, default=16)
    given = parser.parse_args()
    if given.command == "cut":
        made = cut(given.source, given.target, given.mib * 2**20)
    else:
        made = join(given.source, given.target)
    print(f"{len(made)} files in {given.target}")


if __name__ == "__main__":
    main()
