"""A progress bar on stderr; nothing moves where stderr is no terminal."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class ProgressBar:
    """Bytes done, rate and time left; a context manager.

    The first line says what begins, in a log file too; the bar itself is for terminals.
    """

    def __init__(self, title: str, total: int | None = None) -> None:
        self._title = title
        self._total = total
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> ProgressBar:
        print(f"{self._title} ...", file=sys.stderr, flush=True)
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def update(self, done: int, total: int, doing: str) -> None:
        """``done`` of ``total`` bytes; what is being done now."""
        self._bar.update(self._task, completed=done, total=total, description=doing)

    def advance(self, nbytes: int) -> None:
        """``nbytes`` more."""
        self._bar.advance(self._task, nbytes)
