"""The ledger: every experiment and every measurement, in one SQLite file.

Each row carries a checksum, because SQLite's pages have none. A ledger in which something
does not match is recovered when it is opened (:mod:`headgate.lab.recover`).
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headgate.errors import ResourceError, UsageError
from headgate.lab.experiment import (
    Experiment,
    Measurement,
    Proposal,
    Protocol,
    Sample,
    Subject,
    Verdict,
)

#: Marks the file as a ledger, at byte 68 of SQLite's header.
APPLICATION = 0x48474C42
VERSION = 1
PAGE = 4096
SCHEMA = """
CREATE TABLE experiments (
    id INTEGER PRIMARY KEY AUTOINCREMENT, created REAL NOT NULL, kind TEXT NOT NULL,
    campaign TEXT NOT NULL, parent INTEGER, hypothesis TEXT NOT NULL, baseline TEXT NOT NULL,
    candidate TEXT NOT NULL, protocol TEXT NOT NULL, store TEXT NOT NULL, machine TEXT NOT NULL,
    verdict TEXT, why TEXT NOT NULL, result TEXT NOT NULL, finished REAL, crc INTEGER NOT NULL);
CREATE TABLE measurements (
    id INTEGER PRIMARY KEY AUTOINCREMENT, experiment INTEGER NOT NULL, pair INTEGER NOT NULL,
    position INTEGER NOT NULL, side TEXT NOT NULL, started REAL NOT NULL, value REAL NOT NULL,
    sample TEXT NOT NULL, counted INTEGER NOT NULL, crc INTEGER NOT NULL);
"""
#: Table -> columns after the id, without the checksum.
COLUMNS = {
    "experiments": (
        "created", "kind", "campaign", "parent", "hypothesis", "baseline", "candidate",
        "protocol", "store", "machine", "verdict", "why", "result", "finished",
    ),
    "measurements": (
        "experiment", "pair", "position", "side", "started", "value", "sample", "counted",
    ),
}  # fmt: skip
#: Seconds to wait for another process that writes.
BUSY_S = 30.0

Note = Callable[[str], None]
Row = tuple[Any, ...]


class Ledger:
    """An open ledger.

    Args:
        path: of the file; made if it is not there.
        note: told what a recovery found.

    Raises:
        UsageError: the file is not a ledger, or a newer headgate's.
        ResourceError: it cannot be read or written.
    """

    def __init__(self, path: Path, note: Note = lambda _: None) -> None:
        from headgate.lab.recover import recover

        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and path.stat().st_size and not is_sound(path):
                for line in recover(path):
                    note(line)
            self._db = connect(path)
        except (OSError, sqlite3.Error) as error:
            raise ResourceError(f"cannot use the ledger {path}: {error}") from None

    @classmethod
    def existing(cls, path: Path, note: Note = lambda _: None) -> Ledger:
        """The same for a file that must be there.

        Raises:
            UsageError: it is not.
        """
        if not path.is_file():
            raise UsageError(f"there is no ledger at {path}: `headgate lab run` makes one")
        return cls(path, note)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __del__(self) -> None:
        if hasattr(self, "_db"):
            self._db.close()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Inside, nobody else measures for this ledger: two at once would disturb each
        other. It ends with the process, however that ends.

        Raises:
            ResourceError: somebody does.
        """
        lock = self.path.with_name(self.path.name + ".lock")
        with lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ResourceError(
                    f"another process is measuring for the ledger {self.path}: wait for it"
                ) from None
            yield

    # -- writing

    def begin(self, proposal: Proposal) -> int:
        """Enter an experiment that is about to be measured; returns its number."""
        values = (
            time.time(),
            proposal.kind,
            proposal.campaign,
            proposal.parent,
            proposal.hypothesis,
            *(_dump(s.to_dict()) for s in (proposal.baseline, proposal.candidate)),
            _dump(proposal.protocol.to_dict()),
            _dump(dict(proposal.store)),
            _dump(dict(proposal.machine)),
            None,
            "",
            "{}",
            None,
        )
        return self._insert("experiments", values)

    def change(self, id: int, *, candidate: Subject, hypothesis: str) -> None:
        """Say what is tested, where that was not known when the experiment was begun."""
        self._update(id, candidate=_dump(candidate.to_dict()), hypothesis=hypothesis)

    def finish(self, id: int, verdict: Verdict, why: str, result: Mapping[str, Any]) -> None:
        """Enter a verdict."""
        self._update(id, verdict=verdict, why=why, result=_dump(dict(result)), finished=time.time())

    def add(self, m: Measurement) -> None:
        """Enter a measurement; when this returns, it outlives this process."""
        values = (m.experiment, m.pair, m.position, m.side, m.started, m.sample.value,
                  _dump(m.sample.to_dict()), int(m.counted))  # fmt: skip
        self._insert("measurements", values)

    def discount(self, id: int, pair: int) -> None:
        """No longer count the measurements of a pair that was never completed."""
        with self._db:
            for row in self._rows("measurements", "experiment = ? AND pair = ?", (id, pair)):
                values = (*row[1:8], 0)
                self._db.execute(
                    "UPDATE measurements SET counted = 0, crc = ? WHERE id = ?",
                    (checksum((row[0], *values)), row[0]),
                )

    # -- reading

    def get(self, id: int) -> Experiment:
        """Raises UsageError if there is no experiment of this number."""
        rows = self._rows("experiments", "id = ?", (id,))
        if not rows:
            raise UsageError(f"the ledger {self.path} has no experiment {id}")
        return _experiment(rows[0])

    def all(self, campaign: str | None = None) -> list[Experiment]:
        """Experiments in order, of one campaign if asked for."""
        where = ("1", ()) if campaign is None else ("campaign = ?", (campaign,))
        return [_experiment(row) for row in self._rows("experiments", *where)]

    def open_ones(self) -> list[Experiment]:
        """Experiments that were begun and have no verdict."""
        return [_experiment(row) for row in self._rows("experiments", "verdict IS NULL", ())]

    def measurements(self, id: int | None = None) -> list[Measurement]:
        """Of an experiment, or all, in the order in which they were taken."""
        where = ("1", ()) if id is None else ("experiment = ?", (id,))
        return [_measurement(row) for row in self._rows("measurements", *where)]

    def _rows(self, table: str, where: str, values: Sequence[Any]) -> list[Row]:
        return self._db.execute(
            f"SELECT * FROM {table} WHERE {where} ORDER BY id", tuple(values)
        ).fetchall()

    def _insert(self, table: str, values: Row) -> int:
        with self._db:
            last = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,))
            id = int((last.fetchone() or (0,))[0]) + 1
            insert(self._db, table, (id, *values))
        return id

    def _update(self, id: int, **changes: Any) -> None:
        with self._db:
            row = dict(zip(("id", *COLUMNS["experiments"]), self._row(id), strict=True)) | changes
            names = ", ".join(f"{name} = ?" for name in changes)
            self._db.execute(
                f"UPDATE experiments SET {names}, crc = ? WHERE id = ?",
                (*changes.values(), checksum(tuple(row.values())), id),
            )

    def _row(self, id: int) -> Row:
        return tuple(self._rows("experiments", "id = ?", (id,))[0][:-1])


def connect(path: Path) -> sqlite3.Connection:
    """Open the file, and make the tables if it is empty.

    Raises:
        sqlite3.Error: it is damaged.
        UsageError: a newer headgate's.
    """
    # One thread writes; but whichever runs the collector may close a forgotten one.
    db = sqlite3.connect(path, timeout=BUSY_S, check_same_thread=False)
    try:
        db.execute(f"PRAGMA page_size = {PAGE}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        with db:
            db.execute("BEGIN IMMEDIATE")
            if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                for statement in filter(str.strip, SCHEMA.split(";")):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {APPLICATION}")
                db.execute(f"PRAGMA user_version = {VERSION}")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise UsageError(f"the ledger {path} has version {version}: use a newer headgate")
    except BaseException:
        db.close()
        raise
    return db


def is_sound(path: Path) -> bool:
    """Whether SQLite finds nothing wrong and every row has its checksum."""
    try:
        db = sqlite3.connect(path, timeout=BUSY_S)
        try:
            if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION:
                return False
            if db.execute("PRAGMA user_version").fetchone()[0] > VERSION:
                return True  # refused by connect()
            if db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                return False
            return all(matches(row) for t in COLUMNS for row in db.execute(f"SELECT * FROM {t}"))
        finally:
            db.close()
    except (sqlite3.DatabaseError, UnicodeDecodeError):
        return False


def checksum(values: Row) -> int:
    """Of a row's id and columns."""
    return zlib.crc32(json.dumps(values).encode())


def matches(row: Row) -> bool:
    """Whether a row, its checksum last, is what was written."""
    try:
        return bool(checksum(row[:-1]) == row[-1])
    except (TypeError, ValueError):
        return False


def insert(db: sqlite3.Connection, table: str, row: Row) -> None:
    """Add a row, its id first, and its checksum."""
    marks = ", ".join("?" * (len(row) + 1))
    db.execute(f"INSERT INTO {table} VALUES ({marks})", (*row, checksum(row)))


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _experiment(row: Row) -> Experiment:
    r = dict(zip(("id", *COLUMNS["experiments"]), row, strict=False))
    proposal = Proposal(
        r["kind"],
        r["hypothesis"],
        Subject.from_dict(json.loads(r["baseline"])),
        Subject.from_dict(json.loads(r["candidate"])),
        Protocol(**json.loads(r["protocol"])),
        json.loads(r["store"]),
        json.loads(r["machine"]),
        r["campaign"],
        r["parent"],
    )
    result = json.loads(r["result"])
    return Experiment(
        r["id"], proposal, r["created"], r["verdict"], r["why"], result, r["finished"]
    )


def _measurement(row: Row) -> Measurement:
    _, experiment, pair, position, side, started, _, sample, counted, _ = row
    found = Sample(**json.loads(sample))
    return Measurement(experiment, pair, position, side, started, found, bool(counted))


def lost(id: int, why: str) -> Row:
    """A row for an experiment of which only measurements are left."""
    empty, nobody = _dump(asdict(Subject())), "{}"
    return (id, 0.0, "run", "", None, "(lost)", empty, empty, _dump(Protocol().to_dict()),
            nobody, nobody, "void", why, "{}", 0.0)  # fmt: skip
