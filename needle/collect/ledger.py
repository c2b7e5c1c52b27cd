"""The book of requests and money: SQLite, one row a request, `planned → reserved → sent → done | dead`.

Before a request is sent, the most that it can cost is reserved; afterwards the true price is settled. Charged and
reserved sums stand in one row that changes in the same transaction as the request, so that any number of workers, also
in several processes, can't spend more than the budget together. Where nobody knows whether a request was answered (a
timeout, a lost connection, a crash), what was reserved for it stays charged.
"""

from __future__ import annotations

import fcntl
import sqlite3
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from needle.collect.shards import Place, cut, tail

SCHEMA = """
CREATE TABLE IF NOT EXISTS requests(
  id TEXT PRIMARY KEY, purpose TEXT NOT NULL, state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
  reserved INTEGER NOT NULL DEFAULT 0, charged INTEGER NOT NULL DEFAULT 0, owner TEXT, job TEXT, reason TEXT,
  shard TEXT, offset INTEGER, line INTEGER) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS unsettled ON requests(state, owner) WHERE state IN ('reserved', 'sent');
CREATE TABLE IF NOT EXISTS money(
  one INTEGER PRIMARY KEY CHECK (one = 1), charged INTEGER NOT NULL, reserved INTEGER NOT NULL);
INSERT OR IGNORE INTO money VALUES (1, 0, 0);
CREATE TABLE IF NOT EXISTS events(kind TEXT PRIMARY KEY, count INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS shards(name TEXT PRIMARY KEY, indexed INTEGER NOT NULL);
"""


class Ledger:
    """One process's view of a run's folder. `owner` names this process; a lock file shows the others that it lives."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.owner = folder, uuid.uuid4().hex[:12]
        (folder / "workers").mkdir(exist_ok=True)
        with self._door():
            self._alive = _lock(folder / "workers" / self.owner)
        self.base = sqlite3.connect(folder / "ledger.sqlite", timeout=60, isolation_level=None, check_same_thread=False)
        self.base.execute("PRAGMA journal_mode=WAL")
        self.base.execute("PRAGMA synchronous=FULL")
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
        charged, reserved = self.base.execute("SELECT charged, reserved FROM money").fetchone()
        if budget is not None and charged + reserved + most > budget:
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

    def settle(self, request: str, cost: int, place: Place) -> None:
        """The answer is on the disk at `place`, and this is what it cost."""
        self.base.execute(
            "UPDATE money SET charged = charged + ?, reserved = reserved - (SELECT reserved FROM requests WHERE id"
            " = ?)",
            (cost, request),
        )
        self.base.execute(
            "UPDATE requests SET state = 'done', charged = charged + ?, reserved = 0, job = NULL, shard = ?, offset ="
            " ?, line = ? WHERE id = ?",
            (cost, place.shard, place.offset, place.line, request),
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

    def indexed(self, shard: str, length: int) -> None:
        """All of a file's first `length` bytes are in the book."""
        self.base.execute(
            "INSERT INTO shards VALUES (?, ?) ON CONFLICT(name) DO UPDATE SET indexed = excluded.indexed",
            (shard, length),
        )

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
        for job, request in self.base.execute(
            "SELECT job, id FROM requests WHERE state = 'sent' AND job IS NOT NULL ORDER BY id"
        ):
            found.setdefault(job, []).append(request)
        return found

    # After a crash

    def recover(self, shards: Path) -> list[str]:
        """Takes over what processes left behind that are gone; what was found, in sentences.

        Torn ends of files are cut. Answers that were stored but not yet in the book are entered. Requests that were
        only reserved are free again; of those that were sent without an answer nobody knows, so they stay charged.
        """
        notes: list[str] = []
        with self._door(), self.transaction():
            living = self._living()
            for path in sorted(shards.glob("*.jsonl.zst")):
                if path.name.rsplit("-", 1)[0] not in living:
                    notes += self._reindex(path)
            notes += self._missing(shards)
            for request, state, job, owner in self.base.execute(
                "SELECT id, state, job, owner FROM requests WHERE state IN ('reserved', 'sent')"
            ).fetchall():
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

    def _reindex(self, path: Path) -> list[str]:
        row = self.base.execute("SELECT indexed FROM shards WHERE name = ?", (path.name,)).fetchone()
        start = row[0] if row else 0
        if path.stat().st_size <= start:
            return []
        found, end = tail(path, start)
        for place, answer in found:
            self.base.execute(
                "INSERT OR IGNORE INTO requests(id, purpose, state) VALUES (?, ?, 'sent')",
                (answer["id"], answer["purpose"]),
            )
            self.settle(answer["id"], answer["cost"], place)
        self.indexed(path.name, end)
        gone = cut(path, end)
        notes = [f"{path.name}: {len(found)} answers entered that were stored and not in the book"] if found else []
        return notes + ([f"{path.name}: a torn end of {gone} bytes cut"] if gone else [])

    def _missing(self, shards: Path) -> list[str]:
        """Answers that the book knows and the disk doesn't, because somebody took files away: they will be asked for
        again."""
        notes = []
        for name, length in self.base.execute("SELECT name, indexed FROM shards").fetchall():
            size = (shards / name).stat().st_size if (shards / name).exists() else 0
            if size < length:
                lost = self.base.execute(
                    "UPDATE requests SET state = 'planned', shard = NULL WHERE state = 'done' AND shard = ? AND offset"
                    " >= ?",
                    (name, size),
                ).rowcount
                self.indexed(name, size)
                notes.append(
                    f"{name}: {length - size} bytes with {lost} or more answers are missing; these will be asked for"
                    " again"
                )
        return notes

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


class Places:
    """Where answers lie, for a reader that doesn't wait for whoever writes."""

    def __init__(self, folder: Path) -> None:
        self.base = sqlite3.connect(f"file:{folder / 'ledger.sqlite'}?mode=ro", uri=True, timeout=60)

    def find(self, request: str) -> Place | None:
        """None while there is no answer."""
        row = self.base.execute(
            "SELECT shard, offset, line FROM requests WHERE id = ? AND state = 'done'", (request,)
        ).fetchone()
        return Place(*row) if row else None

    def close(self) -> None:
        self.base.close()


def _lock(path: Path) -> IO[str] | None:
    """The file, locked for as long as it is open; None when another process holds it."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
