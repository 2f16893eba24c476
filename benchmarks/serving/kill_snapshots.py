"""Kill a process that writes snapshots, again and again, and read what it has left.

    .venv/bin/python benchmarks/serving/kill_snapshots.py 50

Every file that is left under a snapshot's name must hold what was to be written, and
nothing that is half written may stay. Exit status 1 otherwise.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

import numpy as np
from checks import Figures

from headgate.engine.prefix_files import PrefixFiles, key_of
from headgate.engine.snapshot import Snapshot

IDENTITY = bytes(range(32))
LIMIT = 40 << 20  # a dozen snapshots: files are also removed while the process runs
ROWS = 800_000
LONGEST_S = 0.15


def snapshot(number: int) -> Snapshot:
    """The same contents for the same number, in every process."""
    rng = np.random.default_rng(number)
    tokens = rng.integers(0, 1000, number, np.int32)
    return Snapshot(tokens, [rng.random(ROWS, np.float32), rng.random((3, number), np.float32)])


def write_for_ever(folder: Path, first: int) -> None:
    """What the process does that is killed."""
    files = PrefixFiles(folder, IDENTITY, LIMIT)
    prepared = [snapshot(first + i) for i in range(6)]
    print("ready", flush=True)
    for i in count():
        one = prepared[i % len(prepared)]
        files.write(key_of(IDENTITY, one.tokens), one)


def kill_one(folder: Path, first: int, rng: random.Random) -> None:
    """Let a process write, and kill it at some moment."""
    command = [sys.executable, __file__, "--write", str(folder), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, LONGEST_S))
        process.kill()


def check(folder: Path) -> tuple[int, int]:
    """(snapshots that read as they were written, others)."""
    good = bad = 0
    files = PrefixFiles(folder, IDENTITY, LIMIT)
    for name, number in dict(files.lengths).items():
        expected = snapshot(number)
        arrays = [np.empty_like(array) for array in expected.arrays]
        tokens = files.read(name, number, arrays)
        same = tokens is not None and np.array_equal(tokens, expected.tokens)
        same = same and all(map(np.array_equal, arrays, expected.arrays))
        good, bad = good + same, bad + (not same)
    return good, bad


def main(kills: int) -> int:
    """Exit status."""
    rng, found, wrong, halves = random.Random(1), 0, 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kill in range(kills):
            kill_one(folder, 1 + 10 * kill, rng)
            halves += len(list(folder.glob(".*")))
            good, bad = check(folder)
            found, wrong = found + good, wrong + bad
        left = [x for x in folder.iterdir() if x.suffix != ".prefix"]
    figures = Figures()
    figures.tell("kills", str(kills))
    figures.tell("  in the middle of a file", str(halves))
    figures.check("snapshots that were read afterwards", str(found), ">= 1", found >= 1)
    figures.check("  with other contents", str(wrong), "0", wrong == 0)
    figures.check("files left over", str(len(left)), "0", not left)
    return figures.status


if __name__ == "__main__":
    if sys.argv[1] == "--write":
        write_for_ever(Path(sys.argv[2]), int(sys.argv[3]))
    sys.exit(main(int(sys.argv[1])))
