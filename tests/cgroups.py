"""Running a command under a hard memory limit of the kernel."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from headgate.measure.limit import control_group, joining


@contextmanager
def memory_limit(nbytes: int) -> Iterator[Path]:
    """A control group that may use ``nbytes`` of memory. Skips the test where none can be
    made."""
    with ExitStack() as stack:
        try:
            group = stack.enter_context(control_group(nbytes))
        except OSError as error:
            pytest.skip(f"no memory control group can be made here: {error}")
        yield group


def run_in(group: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run ``command`` as a member of ``group`` from its first instruction."""
    return subprocess.run(
        [*joining(group), *command],
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
