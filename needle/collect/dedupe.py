"""Duplicates: the same request and calls, and the same phrasing with other values; within a split and across splits.

What has been seen lies in a SQLite file, so that memory stays flat. Near duplicates are found by MinHash (Broder 1997)
over three-word pieces of the request, its values masked, in bands (Leskovec et al., Mining of Massive Datasets, 3.4),
and confirmed by their Jaccard similarity.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from datasketch import MinHash

from needle.collect.grounding import plain
from needle.text.records import Record, canonical_json

ROWS, BANDS, ALIKE = 4, 16, 0.8
WORD = re.compile(r"<\w+>|\w+")


@dataclass(frozen=True)
class Print:
    """What two records are compared by: their exact key, their masked words, their bands."""

    exact: str
    masked: str
    bands: tuple[bytes, ...]


def fingerprint(record: Record) -> Print:
    masked = mask(record)
    minhash = MinHash(num_perm=ROWS * BANDS, seed=1)
    minhash.update_batch([piece.encode() for piece in sorted(pieces(masked))])
    values = minhash.hashvalues.reshape(BANDS, ROWS)
    calls = canonical_json(sorted(call.key for call in record.answers))
    exact = f"{' '.join(WORD.findall(plain(record.query)))}\n{calls}"
    return Print(exact, masked, tuple(row.tobytes() for row in values))


def mask(record: Record) -> str:
    """The request in plain words, with each value that stands in it replaced by its argument's name, and numbers by one
    sign."""
    text = plain(record.query)
    values = sorted(
        (
            (plain(str(value)), name)
            for call in record.answers
            for name, value in call.arguments.items()
            if isinstance(value, str | int | float)
        ),
        key=lambda pair: -len(pair[0]),
    )
    for value, name in values:
        if value:
            text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", f" <{re.sub(r'[^a-z0-9]', '', name.lower())}> ", text)
    return " ".join(WORD.findall(re.sub(r"\d+", "0", text)))


def pieces(masked: str) -> frozenset[str]:
    """Three words at a time, with the ends marked."""
    words = ["<s>", *masked.split(), "</s>"]
    return frozenset(" ".join(words[start : start + 3]) for start in range(max(len(words) - 2, 1)))


class Seen:
    """What came before, in a file of its own for as long as it is open; a context manager."""

    def __init__(self, path: Path, phrasings: int) -> None:
        path.unlink(missing_ok=True)
        self.path, self.phrasings = path, phrasings
        self.base = sqlite3.connect(path, isolation_level=None)
        self.base.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;CREATE TABLE exact(key TEXT PRIMARY KEY) WITHOUT"
            " ROWID;CREATE TABLE phrasing(id INTEGER PRIMARY KEY, masked TEXT, split TEXT, count INTEGER);CREATE TABLE"
            " band(number INTEGER, hash BLOB, id INTEGER, PRIMARY KEY(number, hash, id)) WITHOUT ROWID; BEGIN"
        )

    def reason(self, seen: Print, split: str) -> str | None:
        """`duplicate`, `near_duplicate`, or None for a record that is now known and kept."""
        if self.base.execute("SELECT 1 FROM exact WHERE key = ?", (seen.exact,)).fetchone():
            return "duplicate"
        for number in self._near(seen):
            masked, other, count = self.base.execute(
                "SELECT masked, split, count FROM phrasing WHERE id = ?", (number,)
            ).fetchone()
            if _jaccard(pieces(masked), pieces(seen.masked)) >= ALIKE:
                if other != split or count >= self.phrasings:
                    return "near_duplicate"
                self.base.execute("UPDATE phrasing SET count = count + 1 WHERE id = ?", (number,))
                break
        else:
            new = self.base.execute(
                "INSERT INTO phrasing(masked, split, count) VALUES (?, ?, 1)", (seen.masked, split)
            ).lastrowid
            self.base.executemany(
                "INSERT OR IGNORE INTO band VALUES (?, ?, ?)",
                [(band, hash_, new) for band, hash_ in enumerate(seen.bands)],
            )
        self.base.execute("INSERT INTO exact VALUES (?)", (seen.exact,))
        return None

    def _near(self, seen: Print) -> Iterable[int]:
        found: dict[int, None] = {}
        for band, hash_ in enumerate(seen.bands):
            found |= dict.fromkeys(
                row[0] for row in self.base.execute("SELECT id FROM band WHERE number = ? AND hash = ?", (band, hash_))
            )
        return found

    def __enter__(self) -> Seen:
        return self

    def __exit__(self, *reason: object) -> None:
        self.base.close()
        self.path.unlink()


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / max(len(one | other), 1)
