"""What can still be read of a damaged ledger, into a new one; the old one is set aside."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from headgate.errors import UsageError
from headgate.lab.ledger import COLUMNS, PAGE, Row, connect, insert, lost, matches

#: Files that SQLite keeps beside its own while it is in use.
SIDES = ("", "-wal", "-shm")
#: A row takes at least this many bytes, so a file has at most so many.
LEAST_ROW = 40


def recover(path: Path) -> list[str]:
    """Put a new ledger in the place of a damaged one. The damaged one is kept beside it.

    Every row is looked for by its number, so one unreadable page costs no others, and is
    kept if its checksum matches. If the first page, which holds SQLite's header, is
    unreadable, a fresh ledger's is tried in its place: the tables of all ledgers begin at
    the same pages.

    Returns:
        what was found, for people.

    Raises:
        UsageError: nothing in the file is a ledger's; it is left as it is.
    """
    with tempfile.TemporaryDirectory(prefix=".recover-", dir=path.parent) as folder:
        copy = Path(folder) / "copy"
        _copy(path, copy)
        rows = _read(copy)
        if not any(found.rows for found in rows.values()):
            _copy(path, copy)
            _replace_first_page(copy, Path(folder) / "fresh")
            rows = _read(copy)
        experiments, measurements = (rows[table].rows for table in COLUMNS)
        if not experiments and not measurements:
            raise UsageError(f"{path} is not a ledger of experiments, or nothing of it is readable")
        known = {row[0] for row in experiments}
        orphans = sorted({row[1] for row in measurements} - known)
        rebuilt = Path(folder) / "ledger"
        _write(rebuilt, experiments, measurements, orphans)
        aside = _set_aside(path)
        rebuilt.replace(path)
    return [
        f"the ledger {path} was damaged; it is now {aside.name}",
        f"kept: {len(experiments)} experiments, {len(measurements)} measurements",
        *_lost_lines(rows, known, orphans),
    ]


def _lost_lines(found: dict[str, _Found], known: set[int], orphans: list[int]) -> list[str]:
    """What is not in the new ledger. Numbers are given without gaps, so a gap is a loss."""
    gone = {*range(1, max([*known, *orphans, *found["experiments"].lost], default=0) + 1)} - known
    lines = []
    if gone:
        lines.append(f"lost experiments, void where measurements are left: {_list(sorted(gone))}")
    if lost := found["measurements"].lost:
        lines.append(f"lost measurements: {len(lost)}")
    for table, here in found.items():
        if here.open_end:
            lines.append(f"lost {table} at the end: it cannot be told how many")
    return lines


def _list(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:20]))
    return shown if len(numbers) <= 20 else f"{shown} and {len(numbers) - 20} more"


def _copy(path: Path, copy: Path) -> None:
    for side in SIDES:
        source = path.with_name(path.name + side)
        target = copy.with_name(copy.name + side)
        target.unlink(missing_ok=True)
        if source.exists() and side != "-shm":  # SQLite makes that one again
            shutil.copyfile(source, target)


def _replace_first_page(copy: Path, fresh: Path) -> None:
    connect(fresh).close()
    page = bytearray(fresh.read_bytes()[:PAGE])
    data = copy.read_bytes()
    page[28:32] = (-(-len(data) // PAGE)).to_bytes(4, "big")  # pages of the file
    copy.with_name(copy.name + "-wal").unlink(missing_ok=True)
    copy.write_bytes(bytes(page) + data[PAGE:])


@dataclass
class _Found:
    """Rows of a table.

    Attributes:
        rows: sound ones.
        lost: numbers of rows that were there.
        open_end: whether what follows the last row is unreadable too, so that nobody knows
            how many there were.
    """

    rows: list[Row] = field(default_factory=list)
    lost: set[int] = field(default_factory=set)
    open_end: bool = False


def _read(path: Path) -> dict[str, _Found]:
    most = path.stat().st_size // LEAST_ROW + 1
    found = {}
    for table in COLUMNS:
        found[table] = here = _Found()
        unreadable: set[int] = set()
        for id, row in _lookups(path, table, most):
            if row is None:
                unreadable.add(id)
            elif matches(row):
                here.rows.append(row)
            else:
                here.lost.add(id)
        # An unreadable page swallows numbers that were never given, too.
        top = here.rows[-1][0] if here.rows else 0
        here.lost |= {id for id in unreadable if id < top}
        here.open_end = any(id > top for id in unreadable)
    return found


def _lookups(path: Path, table: str, most: int) -> Iterator[tuple[int, Row | None]]:
    """(number, row) of every number that leads to something; None if it is unreadable."""
    db = sqlite3.connect(path)
    try:
        for id in range(1, most + 1):
            try:
                row = db.execute(f"SELECT * FROM {table} WHERE id = ?", (id,)).fetchone()
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                if "no such table" in str(error) or "not a database" in str(error):
                    return
                yield id, None
                continue
            if row is not None:
                yield id, row
    finally:
        db.close()


def _write(path: Path, experiments: list[Row], measurements: list[Row], orphans: list[int]) -> None:
    db = connect(path)
    with db:
        for row in experiments:
            insert(db, "experiments", row[:-1])
        for id in orphans:
            insert(db, "experiments", lost(id, "its line of the ledger was damaged"))
        for row in measurements:
            insert(db, "measurements", row[:-1])
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()


def _set_aside(path: Path) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{stamp}-{number}")
    for side in SIDES:
        source = path.with_name(path.name + side)
        if source.exists():
            source.rename(aside.with_name(aside.name + side))
    return aside
