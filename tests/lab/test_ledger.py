"""The ledger: what is written is there, and damage costs only what it hits."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from headgate.errors import ResourceError, UsageError
from headgate.lab.experiment import Code, Measurement, Protocol, Sample, Subject
from headgate.lab.ledger import PAGE, Ledger
from headgate.lab.page import page
from headgate.lab.report import (
    details,
    experiments_tsv,
    measurements_tsv,
    table,
    verdict_of,
)
from headgate.lab.runner import Runner
from tests.lab.machines import Machine, proposal

EXPERIMENTS, PAIRS = 12, 8


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A ledger with experiments of several verdicts, as bytes."""
    path = tmp_path_factory.mktemp("ledger") / "l"
    ledger = Ledger(path)
    for seed in range(EXPERIMENTS):
        machine = Machine(seed, 1.2 if seed % 3 == 0 else 0.9)
        Runner(ledger, machine.measure).start(proposal(Protocol(pairs=PAIRS, seed=seed)))
    ledger.close()
    return path.read_bytes()


def write(folder: Path, data: bytes) -> Path:
    path = folder / "l"
    path.write_bytes(data)
    return path


def contents(path: Path) -> tuple[dict[int, str], int, list[str]]:
    """Verdicts by number, count of measurements, and what opening had to say."""
    notes: list[str] = []
    ledger = Ledger(path, notes.append)
    found = {e.id: verdict_of(e) for e in ledger.all()}
    count = len(ledger.measurements())
    ledger.close()
    return found, count, notes


def test_what_is_written_is_read(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "deep" / "l")
    subject = Subject({"depth": 3, "policy": "lru"}, Code("a" * 40, "b" * 40, "diff\n+ä\t\n"))
    asked = proposal(Protocol(metric="answer", pairs=9, memory=1 << 30), subject)
    id = ledger.begin(asked)
    sample = Sample(12.5, [[1, 2], [3]], {"load": 0.5, "stream": {"hits": 3}})
    ledger.add(Measurement(id, 0, 1, "B", 17.0, sample))
    ledger.close()
    ledger = Ledger(tmp_path / "deep" / "l")
    assert ledger.get(id).proposal == asked
    assert ledger.measurements(id) == [Measurement(id, 0, 1, "B", 17.0, sample)]
    ledger.finish(id, "kept", "because", {"ratio": 1.5})
    assert ledger.get(id).ratio == 1.5 and ledger.open_ones() == []


def test_sound_ledger_is_left_as_it_is(tmp_path: Path, whole: bytes) -> None:
    path = write(tmp_path, whole)
    verdicts, count, notes = contents(path)
    assert notes == [] and len(verdicts) == EXPERIMENTS and count > EXPERIMENTS * 6
    assert [p.name for p in tmp_path.iterdir()] == ["l"]


def test_two_processes_do_not_measure_at_once(tmp_path: Path) -> None:
    first, second = Ledger(tmp_path / "l"), Ledger(tmp_path / "l")
    with first.measuring():
        with pytest.raises(ResourceError, match="another process"), second.measuring():
            pass
        assert second.all() == []  # but others may read
    with second.measuring():
        pass


def test_killed_process_leaves_what_it_has_measured(tmp_path: Path) -> None:
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from headgate.lab.ledger import Ledger
from headgate.lab.runner import Runner
from tests.lab.machines import Machine, Killed, proposal
ledger = Ledger(Path({str(tmp_path / "l")!r}))
with ledger.measuring():
    try:
        Runner(ledger, Machine(0, kill_at=5).measure).start(proposal())
    except Killed:
        os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    ledger = Ledger(tmp_path / "l")
    assert len(ledger.measurements(1)) == 5
    with ledger.measuring():
        assert [e.id for e in ledger.open_ones()] == [1]


# -- damage


@pytest.mark.parametrize("number", range(1, 40, 6))
def test_zeroed_page_costs_what_it_held(tmp_path: Path, whole: bytes, number: int) -> None:
    number = min(number, len(whole) // PAGE - 1)
    hurt = bytearray(whole)
    hurt[number * PAGE : (number + 1) * PAGE] = bytes(PAGE)
    path = write(tmp_path, bytes(hurt))
    before = contents(write(tmp_path / "..", whole))
    try:
        verdicts, count, notes = contents(path)
    except UsageError:  # the root of the table: nothing is left to find
        assert number <= 3
        assert path.read_bytes() == bytes(hurt)
        return
    assert "was damaged" in notes[0]
    [aside] = [p for p in tmp_path.iterdir() if "damaged" in p.name]
    assert aside.read_bytes() == bytes(hurt)
    same = {id: v for id, v in verdicts.items() if before[0].get(id) == v}
    assert len(same) + count >= (EXPERIMENTS + before[1]) // 2 or number <= 3
    assert all(v == "void" for id, v in verdicts.items() if id not in same)
    # The new one is sound, and is written on.
    assert contents(path)[2] == []
    ledger = Ledger(path)
    assert ledger.begin(proposal()) > max(verdicts)
    ledger.close()


def test_lost_header_costs_nothing(tmp_path: Path, whole: bytes) -> None:
    path = write(tmp_path, bytes(PAGE) + whole[PAGE:])
    verdicts, count, notes = contents(path)
    before = contents(write(tmp_path / "..", whole))
    assert (verdicts, count) == before[:2]
    assert notes[1] == f"kept: {EXPERIMENTS} experiments, {before[1]} measurements"


def test_flipped_byte_of_a_row_is_noticed(tmp_path: Path, whole: bytes) -> None:
    at = whole.index(b"depth 7 is faster")
    path = write(tmp_path, whole[:at] + b"D" + whole[at + 1 :])
    verdicts, _, notes = contents(path)
    assert list(verdicts.values()).count("void") == 1
    assert any("lost experiments" in note for note in notes)


def test_flipped_figure_is_never_counted(tmp_path: Path, whole: bytes) -> None:
    db = write(tmp_path, whole)
    connection = sqlite3.connect(db)
    connection.execute("UPDATE measurements SET value = 1e9 WHERE id = 5")
    connection.commit()
    connection.close()
    _, count, notes = contents(db)
    assert count == contents(write(tmp_path / "..", whole))[1] - 1
    assert "lost measurements: 1" in notes


def test_no_damage_is_fatal(tmp_path: Path, whole: bytes) -> None:
    rng = random.Random(0)
    for case in range(25):
        hurt = bytearray(whole)
        for _ in range(rng.randint(1, 40)):
            hurt[rng.randrange(len(hurt))] = rng.randrange(256)
        if case % 3 == 0:
            hurt = hurt[: rng.randrange(len(hurt))]
        folder = tmp_path / f"{case}"
        folder.mkdir()
        path = write(folder, bytes(hurt))
        try:
            verdicts, _, _ = contents(path)
            assert len(verdicts) <= EXPERIMENTS
            assert contents(path)[2] == []
        except UsageError as error:
            assert "not a ledger" in str(error)


@pytest.mark.parametrize("data", [b"hello\n" * 2000, b"SQLite format 3\0" + b"x" * 5000])
def test_other_files_are_refused_and_left_alone(tmp_path: Path, data: bytes) -> None:
    path = write(tmp_path, data)
    with pytest.raises(UsageError, match="not a ledger"):
        Ledger(path)
    assert path.read_bytes() == data
    assert [p.name for p in tmp_path.iterdir()] == ["l"]


def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "l")
    connection.execute("CREATE TABLE experiments (id INTEGER PRIMARY KEY, x TEXT)")
    connection.execute("INSERT INTO experiments VALUES (1, 'mine')")
    connection.commit()
    connection.close()
    before = (tmp_path / "l").read_bytes()
    with pytest.raises(UsageError, match="not a ledger"):
        Ledger(tmp_path / "l")
    assert (tmp_path / "l").read_bytes() == before


def test_newer_ledger_is_refused_and_left_alone(tmp_path: Path, whole: bytes) -> None:
    path = write(tmp_path, whole)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 9")
    connection.commit()
    connection.close()
    with pytest.raises(UsageError, match="newer headgate"):
        Ledger(path)


def test_folder_or_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot use the ledger"):
        Ledger(tmp_path)
    with pytest.raises(UsageError, match="there is no ledger"):
        Ledger.existing(tmp_path / "none")


# -- reports


def test_tsv_has_a_cell_for_every_column(tmp_path: Path, whole: bytes) -> None:
    ledger = Ledger(write(tmp_path, whole))
    id = ledger.begin(proposal())
    ledger.change(id, candidate=Subject({"depth": 1}), hypothesis="a\tb\nc\\d")
    experiments = [line.split("\t") for line in experiments_tsv(ledger.all())]
    assert {len(cells) for cells in experiments} == {len(experiments[0])}
    assert experiments[-1][experiments[0].index("hypothesis")] == "a\\tb\\nc\\\\d"
    measured = [line.split("\t") for line in measurements_tsv(ledger.measurements())]
    assert len(measured) == 1 + len(ledger.measurements())
    value = float(measured[1][measured[0].index("value")])
    assert value == ledger.measurements()[0].sample.value


def test_reports_show_every_experiment(tmp_path: Path, whole: bytes) -> None:
    ledger = Ledger(write(tmp_path, whole))
    id = ledger.begin(proposal())
    ledger.change(id, candidate=Subject(), hypothesis="<script>alert(1)</script>")
    found = ledger.all()
    assert table(found).splitlines()[-1].endswith("1 open")
    html = page(found, "l")
    assert html.count("<circle") == EXPERIMENTS and "<script>" not in html
    kept = next(e for e in found if e.verdict == "kept")
    assert f"{PAIRS} pairs" in details(kept, ledger.measurements(kept.id))
    assert "no experiment has a figure" in page([found[-1]], "l")
    assert page([], "l")
