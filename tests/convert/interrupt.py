"""Kills conversions at chosen moments; run as a program by test_resume.py.

    python -m tests.convert.interrupt SRC WORK MOMENTS SEED

For each moment a child converts SRC to a fresh place and is killed when a random number
of bytes has appeared there; another child then completes it. A last one is killed again
and again until it is done. Prints JSON: for each moment the bytes on disk at the kill,
and whether the outcome is byte for byte that of an uninterrupted conversion.

A program of its own so that it has no threads, which fork does not carry over.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from headgate.convert import convert
from tests.stores import digests


def main() -> None:
    src, work, moments, seed = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])
    rng = random.Random(seed)
    assert complete(src, work / "whole") == 0
    expected = digests(work / "whole")
    total = on_disk(work / "whole")
    results = []
    for moment in range(moments):
        out = work / "out"
        # Halfway between two equal steps, so that early and late moments all occur.
        killed_at = kill_at(src, out, int(total * (moment + rng.random()) / moments))
        results.append({"killed_at": killed_at, **finished(src, out, expected)})
    out, kills = work / "out", 0
    while kills < 200 and not out.exists():
        kill_at(src, out, on_disk(out.with_name("out.partial")) + rng.randrange(total // 4))
        kills += 1
    results.append({"kills": kills, **finished(src, out, expected)})
    print(json.dumps({"total": total, "results": results}))


def finished(src: Path, out: Path, expected: dict[str, str]) -> dict[str, bool]:
    status = 0 if out.exists() else complete(src, out)
    same = status == 0 and digests(out) == expected
    shutil.rmtree(out, ignore_errors=True)
    return {"same": same, "clean": not out.with_name("out.partial").exists()}


def kill_at(src: Path, out: Path, nbytes: int) -> int:
    """Kill a conversion once ``nbytes`` are on disk; the bytes then there, or -1 if it
    was done sooner."""
    child = spawn(src, out)
    partial = out.with_name(out.name + ".partial")
    deadline = time.monotonic() + 60
    while on_disk(partial) < nbytes and time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            return -1
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return on_disk(partial) if not out.exists() else -1


def complete(src: Path, out: Path) -> int:
    return os.waitpid(spawn(src, out), 0)[1]


def spawn(src: Path, out: Path) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            convert(src, out)
            status = 0
        finally:
            os._exit(status)
    return child


def on_disk(folder: Path) -> int:
    """Bytes in the files below ``folder``, which may be changing."""
    return sum(size(Path(root) / file) for root, _, files in os.walk(folder) for file in files)


def size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # renamed meanwhile
        return 0


if __name__ == "__main__":
    main()
