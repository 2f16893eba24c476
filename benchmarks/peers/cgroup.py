"""Running a program under a hard memory limit of the kernel, and counting what it reads."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from headgate.measure.limit import control_group, joining

#: of ``ru_inblock``, whatever the drive's own
SECTOR = 512


@contextmanager
def memory_limit(nbytes: int | None) -> Iterator[Path | None]:
    """As :func:`headgate.measure.limit.control_group`; None makes none."""
    if nbytes is None:
        yield None
        return
    with control_group(nbytes) as group:
        yield group


@dataclass(frozen=True)
class Finished:
    """A program that has ended.

    Attributes:
        code: as of :class:`subprocess.Popen`: negative for a signal.
        bytes_read: from the drive by this process after it said ``marker``, whether through
            the page cache or past it; None if it never did.
        peak_bytes: largest resident memory, mapped pages of files included.
        others_cpu: share of the machine's processor time that went elsewhere meanwhile, to
            kernel threads included; None where it is not told.
        errors: the last lines of its standard error.
    """

    code: int
    output: str
    bytes_read: int | None
    peak_bytes: int
    others_cpu: float | None
    errors: str


def run(command: Sequence[str], marker: str, group: Path | None, timeout: float = 900) -> Finished:
    """Run ``command`` as a member of ``group`` from its first instruction."""
    if group is not None:
        command = [*joining(group), *command]
    before, last = None, deque[str](maxlen=5)
    begin = processor_seconds()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        timer = threading.Timer(timeout, process.kill)
        timer.start()
        assert process.stderr is not None
        for line in process.stderr:
            last.append(line)
            if before is None and marker in line:
                before = _bytes_read(process.pid)
        # Not process.wait(): the usage of this child alone is wanted.
        _, status, usage = os.wait4(process.pid, 0)
        timer.cancel()
        elsewhere = _elsewhere(begin, processor_seconds(), usage.ru_utime + usage.ru_stime)
        process.stderr.close()
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    read = None if before is None else max(0, usage.ru_inblock * SECTOR - before)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Finished(process.returncode, text, read, peak, elsewhere, "".join(last).strip())


def _bytes_read(pid: int) -> int | None:
    """Bytes that the drive has delivered to a process so far."""
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


def processor_seconds() -> tuple[float, float] | None:
    """(busy, all) seconds of all cores since the machine started."""
    try:
        words = Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]
    except OSError:
        return None
    # user, nice, system, idle, waiting for a drive, interrupts, soft interrupts, stolen
    ticks = [int(word) / os.sysconf("SC_CLK_TCK") for word in words]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def _elsewhere(
    begin: tuple[float, float] | None, end: tuple[float, float] | None, own: float
) -> float | None:
    if begin is None or end is None or end[1] <= begin[1]:
        return None
    return max(0.0, end[0] - begin[0] - own) / (end[1] - begin[1])
