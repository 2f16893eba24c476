"""Running somebody's command: bounded in time, and nothing of it outlives it."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from headgate.errors import ResourceError

#: In the environment of everything that a command starts.
MARK = "HEADGATE_LAB_MARK"
TAIL = 2000


@dataclass(frozen=True)
class Ended:
    """A command that has ended.

    Attributes:
        status: of the exit; negative for a signal.
        late: it was ended because its time was over.
        tail: last characters of what it printed.
    """

    status: int
    late: bool
    seconds: float
    tail: str


def run_command(
    command: str, folder: Path, env: Mapping[str, str], timeout_s: float, log: Path
) -> Ended:
    """Run a shell command in ``folder``, its output in ``log``.

    When it ends, or its time does, every process of its group is ended too, and on Linux
    every other one that has its mark in the environment.

    Raises:
        ResourceError: it cannot be started.
    """
    mark = secrets.token_hex(16)
    began = time.monotonic()
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["/bin/sh", "-c", command],
                cwd=folder,
                env={**os.environ, **env, MARK: mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        raise ResourceError(f"cannot run the command: {error.strerror}") from None
    late = False
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        late = True
    finally:
        _end(process.pid, mark)
        process.wait()
    return Ended(process.returncode, late, time.monotonic() - began, _tail(log))


def _end(group: int, mark: str) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
    # Until none is found: one may have started another meanwhile.
    for _ in range(10):
        found = _marked(mark)
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            return
        time.sleep(0.01)


def _marked(mark: str) -> list[int]:
    """Processes that have ``mark`` in their environment and still run."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # A process that has ended has no environment any more.
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 4 * TAIL))
        return file.read().decode(errors="replace")[-TAIL:]
