"""A memory limit of the kernel around a process, where one may be set.

A budget is a promise of the engine; under a limit it is a fact, and the page cache is
limited too, without which buffered reads and mmap use all the machine's free memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
#: Joins a control group from its first instruction on, and becomes another program.
JOIN = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"']


@contextmanager
def control_group(nbytes: int) -> Iterator[Path]:
    """A control group that may use ``nbytes`` of memory, page cache included, and no swap;
    version 1 or 2, whichever is mounted.

    Raises:
        OSError: it cannot be made here.
    """
    version2 = (ROOT / "cgroup.controllers").exists()
    group = (ROOT if version2 else ROOT / "memory") / f"headgate-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.max" if version2 else "memory.limit_in_bytes")).write_text(str(nbytes))
        with suppress(OSError):  # no swap configured
            (group / ("memory.swap.max" if version2 else "memory.swappiness")).write_text("0")
        yield group
    finally:
        group.rmdir()


def joining(group: Path) -> list[str]:
    """Words to put before a command so that it runs in ``group``."""
    return [*JOIN, str(group)]


@contextmanager
def memory_limit(nbytes: int | None) -> Iterator[list[str]]:
    """Words to put before a command so that it may use ``nbytes`` of memory. None where
    there is nothing to limit or it is not allowed."""
    with ExitStack() as stack:
        group = None
        if nbytes is not None:
            with suppress(OSError):
                group = stack.enter_context(control_group(nbytes))
        yield [] if group is None else joining(group)
