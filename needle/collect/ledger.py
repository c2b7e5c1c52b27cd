"""The one file of a collection: requests, money and raw answers in SQLite. A request is `planned → reserved → sent →
done | dead`.

Before a request is sent, the most that it can cost is reserved; afterwards the true price is settled, in the same
transaction that stores the answer. Charged and reserved sums stand in one row that changes with the request, so that
any number of workers, also in several processes, can't spend more than the budget together. Where nobody knows whether
a request was answered (a timeout, a lost connection, a crash), what was reserved for it stays charged. A transaction is
on the disk before anybody is told of it.
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import zstandard
from cachetools import LRUCache

FILE = "ledger.sqlite"
SCHEMA = """
CREATE TABLE IF NOT EXISTS requests(
  id TEXT PRIMARY KEY, purpose TEXT NOT NULL, state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
  reserved INTEGER NOT NULL DEFAULT 0, charged INTEGER NOT NULL DEFAULT 0, owner TEXT, job TEXT, reason TEXT,
  frame INTEGER, line INTEGER) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS unsettled ON requests(state, owner) WHERE state IN ('reserved', 'sent');
CREATE TABLE IF NOT EXISTS frames(id INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS money(
  one INTEGER PRIMARY KEY CHECK (one = 1), charged INTEGER NOT NULL, reserved INTEGER NOT NULL);
INSERT OR IGNORE INTO money VALUES (1, 0, 0);
CREATE TABLE IF NOT EXISTS events(kind TEXT PRIMARY KEY, count INTEGER NOT NULL);
"""
Row = Mapping[str, Any]  # what was asked (`id`, `purpose`, …), the answer as it came (`raw`), and its `cost`


class Ledger:
    """One process's view of a run's folder. `owner` names this process; a lock file shows the others that it lives."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.owner = folder, uuid.uuid4().hex[:12]
        (folder / "workers").mkdir(exist_ok=True)
        with self._door():
            self._alive = _lock(folder / "workers" / self.owner)
        self.base = sqlite3.connect(folder / FILE, timeout=60, isolation_level=None, check_same_thread=False)
        self.base.execute("PRAGMA journal_mode=WAL")
        self.base.execute("PRAGMA synchronous=FULL")
        with self._door():
            self._upgrade()
            self.base.executescript(SCHEMA)

    def close(self) -> None:
        self.base.close()
        if self._alive:
            (self.folder / "workers" / self.owner).unlink(missing_ok=True)
            self._alive.close()
            self._alive = None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What happens inside happens as a whole, and after everything that other processes have begun."""
        self.base.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.base.execute("ROLLBACK")
            raise
        self.base.execute("COMMIT")

    # Everything from here to `recover` belongs into a transaction.

    def reserve(self, request: str, purpose: str, most: int, budget: int | None) -> bool:
        """Sets `most` aside for a request; False, and nothing changes, when that would exceed the budget."""
        if budget is not None and sum(self.money()) + most > budget:
            return False
        self.base.execute("UPDATE money SET reserved = reserved + ?", (most,))
        self.base.execute(
            "INSERT INTO requests(id, purpose, state, reserved, owner) VALUES (?, ?, 'reserved', ?, ?) ON CONFLICT(id)"
            " DO UPDATE SET state = 'reserved', reserved = excluded.reserved, owner = excluded.owner, job = NULL,"
            " reason = NULL",
            (request, purpose, most, self.owner),
        )
        return True

    def sent(self, request: str, job: str | None = None) -> None:
        """From here on the request may cost money. `job` names the batch that it goes in."""
        self.base.execute(
            "UPDATE requests SET state = 'sent', attempts = attempts + 1, job = ? WHERE id = ?", (job, request)
        )

    def settle(self, rows: Sequence[Row]) -> None:
        """Stores answers, together in one frame, and what they cost."""
        text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)
        data = zstandard.ZstdCompressor(level=6).compress(text.encode("utf-8", "surrogatepass"))
        frame = self.base.execute("INSERT INTO frames(data) VALUES (?)", (data,)).lastrowid
        for line, row in enumerate(rows):
            self.base.execute(
                "UPDATE money SET charged = charged + ?,"
                " reserved = reserved - COALESCE((SELECT reserved FROM requests WHERE id = ?), 0)",
                (row["cost"], row["id"]),
            )
            self.base.execute(
                "UPDATE requests SET state = 'done', charged = charged + ?, reserved = 0, job = NULL, frame = ?,"
                " line = ? WHERE id = ?",
                (row["cost"], frame, line, row["id"]),
            )

    def failed(self, request: str, reason: str, charged: bool, dead: bool) -> None:
        """No answer came. What was reserved is free again, or stays charged where the request may have been paid
        for."""
        (reserved,) = self.base.execute("SELECT reserved FROM requests WHERE id = ?", (request,)).fetchone()
        spent = reserved if charged else 0
        self.base.execute("UPDATE money SET charged = charged + ?, reserved = reserved - ?", (spent, reserved))
        self.base.execute(
            "UPDATE requests SET state = ?, charged = charged + ?, reserved = 0, job = NULL, reason = ? WHERE id = ?",
            ("dead" if dead else "planned", spent, reason, request),
        )

    def count(self, kind: str, number: int = 1) -> None:
        self.base.execute(
            "INSERT INTO events VALUES (?, ?) ON CONFLICT(kind) DO UPDATE SET count = count + excluded.count",
            (kind, number),
        )

    def recover(self) -> list[str]:
        """Takes over what processes left behind that are gone; what was found, in sentences.

        Requests that were only reserved are free again; of those that were sent without an answer nobody knows, so they
        stay charged.
        """
        notes: list[str] = []
        with self._door(), self.transaction():
            living = self._living()
            open_ = self.base.execute("SELECT id, state, job, owner FROM requests WHERE state IN ('reserved', 'sent')")
            for request, state, job, owner in open_.fetchall():
                if owner in living:
                    continue
                if state == "reserved":
                    self.failed(request, "never sent", charged=False, dead=False)
                elif job is None:
                    self.failed(request, "lost", charged=True, dead=False)
                    self.count("lost")
                    notes.append(
                        f"request {request[:8]} was sent and its answer is lost; what it may have cost stays charged"
                    )
            for path in (self.folder / "workers").iterdir():
                if path.name not in living:
                    path.unlink()
        return notes

    # Reading

    def money(self) -> tuple[int, int]:
        """(charged, reserved) in nanodollars."""
        charged, reserved = self.base.execute("SELECT charged, reserved FROM money").fetchone()
        return charged, reserved

    def state(self, request: str) -> str:
        row = self.base.execute("SELECT state FROM requests WHERE id = ?", (request,)).fetchone()
        return row[0] if row else "planned"

    def states(self) -> Mapping[str, int]:
        """How many requests are in each state."""
        return dict(self.base.execute("SELECT state, COUNT(*) FROM requests GROUP BY state").fetchall())

    def events(self) -> Mapping[str, int]:
        """How often each fault and each odd answer was seen."""
        return dict(self.base.execute("SELECT kind, count FROM events").fetchall())

    def spent_on(self) -> Mapping[str, int]:
        """Nanodollars charged for each purpose."""
        return dict(self.base.execute("SELECT purpose, SUM(charged) FROM requests GROUP BY purpose").fetchall())

    def in_jobs(self) -> dict[str, list[str]]:
        """The requests that wait for each batch."""
        found: dict[str, list[str]] = {}
        waiting = self.base.execute("SELECT job, id FROM requests WHERE state = 'sent' AND job IS NOT NULL ORDER BY id")
        for job, request in waiting:
            found.setdefault(job, []).append(request)
        return found

    # Processes

    def _living(self) -> set[str]:
        """This process, and those that hold the lock of their name."""
        living = {self.owner}
        for path in (self.folder / "workers").iterdir():
            lock = None if path.name == self.owner else _lock(path)
            if lock is None:
                living.add(path.name)
            else:
                lock.close()
        return living

    @contextmanager
    def _door(self) -> Iterator[None]:
        """One process at a time comes in or looks who is there."""
        with (self.folder / "door").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _upgrade(self) -> None:
        """Takes the answers that versions before 0.2 kept in files of their own (`answers/*.jsonl.zst`) into the
        ledger; they have been paid for."""
        columns = {row[1] for row in self.base.execute("PRAGMA table_info(requests)")}
        if "shard" not in columns:
            return
        with self.transaction():
            self.base.execute("CREATE TABLE frames(id INTEGER PRIMARY KEY, data BLOB NOT NULL)")
            self.base.execute("ALTER TABLE requests ADD COLUMN frame INTEGER")
            for (shard,) in self.base.execute("SELECT DISTINCT shard FROM requests WHERE state = 'done'").fetchall():
                data = (self.folder / "answers" / shard).read_bytes()
                places = self.base.execute("SELECT DISTINCT offset FROM requests WHERE shard = ?", (shard,)).fetchall()
                for (offset,) in places:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                    text = frame.decompress(data[offset:])
                    stored = self.base.execute(
                        "INSERT INTO frames(data) VALUES (?)", (zstandard.ZstdCompressor(level=6).compress(text),)
                    ).lastrowid
                    self.base.execute(
                        "UPDATE requests SET frame = ? WHERE shard = ? AND offset = ?", (stored, shard, offset)
                    )
            for column in ("shard", "offset"):
                self.base.execute(f"ALTER TABLE requests DROP COLUMN {column}")


class Answers:
    """The stored answers, for a reader that doesn't wait for whoever writes."""

    def __init__(self, folder: Path) -> None:
        self.base = sqlite3.connect(f"file:{folder / FILE}?mode=ro", uri=True, timeout=60)
        self._frames: LRUCache[int, list[bytes]] = LRUCache(64)

    def find(self, request: str) -> dict[str, Any] | None:
        """What was asked and answered; None while there is no answer."""
        found = self.base.execute("SELECT frame, line FROM requests WHERE id = ? AND state = 'done'", (request,))
        place = found.fetchone()
        return None if place is None else self._read(*place)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Every answer, in the order in which they were stored."""
        places = self.base.execute("SELECT frame, line FROM requests WHERE state = 'done' ORDER BY frame, line")
        for place in places.fetchall():
            yield self._read(*place)

    def close(self) -> None:
        self.base.close()

    def _read(self, frame: int, line: int) -> dict[str, Any]:
        if frame not in self._frames:
            (data,) = self.base.execute("SELECT data FROM frames WHERE id = ?", (frame,)).fetchone()
            self._frames[frame] = zstandard.ZstdDecompressor().decompress(data).split(b"\n")
        row: dict[str, Any] = json.loads(self._frames[frame][line].decode("utf-8", "surrogatepass"))
        return row


def _lock(path: Path) -> IO[str] | None:
    """The file, locked for as long as it is open; None when another process holds it."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
