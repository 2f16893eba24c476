"""A memory limit of the kernel around a process, where one may be set.

A budget is a promise of the engine; under a limit it is a fact, and the page cache is
limited too, without which buffered reads and mmap use all the machine's free memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
#: Joins a control group from its first instruction on, and becomes another program.
JOIN = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"']


@contextmanager
def memory_limit(nbytes: int | None) -> Iterator[list[str]]:
    """Words to put before a command so that it may use ``nbytes`` of memory, page cache
    included, and no swap. None where there is nothing to limit or it is not allowed."""
    group = None if nbytes is None else _make_group(nbytes)
    try:
        yield [] if group is None else [*JOIN, str(group)]
    finally:
        if group is not None:
            with suppress(OSError):
                group.rmdir()


def _make_group(nbytes: int) -> Path | None:
    version2 = (ROOT / "cgroup.controllers").exists()
    group = (ROOT if version2 else ROOT / "memory") / f"headgate-bench-{os.getpid()}"
    limit, swap = (
        (("memory.max", nbytes), ("memory.swap.max", 0))
        if version2
        else (("memory.limit_in_bytes", nbytes), ("memory.swappiness", 0))
    )
    try:
        group.mkdir(exist_ok=True)
        (group / limit[0]).write_text(str(limit[1]))
    except OSError:
        with suppress(OSError):
            group.rmdir()
        return None
    with suppress(OSError):  # no swap configured
        (group / swap[0]).write_text(str(swap[1]))
    return group
