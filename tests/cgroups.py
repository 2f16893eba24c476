"""Running a command under a hard memory limit of the kernel."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")


@contextmanager
def memory_limit(nbytes: int) -> Iterator[Path]:
    """A control group that may use ``nbytes`` of memory, page cache included, and no
    swap. Skips the test where none can be made."""
    version2 = (V2 / "cgroup.controllers").exists()
    group = (V2 if version2 else V1) / f"headgate-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no memory control group can be made here: {error}")
    try:
        try:
            if version2:
                (group / "memory.max").write_text(str(nbytes))
                with suppress(OSError):  # no swap configured
                    (group / "memory.swap.max").write_text("0")
            else:
                (group / "memory.limit_in_bytes").write_text(str(nbytes))
                with suppress(OSError):
                    (group / "memory.swappiness").write_text("0")
        except OSError as error:
            pytest.skip(f"memory cannot be limited here: {error}")
        yield group
    finally:
        group.rmdir()


def run_in(group: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run ``command`` as a member of ``group`` from its first instruction."""
    script = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
    return subprocess.run(
        ["sh", "-c", script, str(group), *command],
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
