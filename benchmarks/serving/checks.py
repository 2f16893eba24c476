"""What the checks of serving have in common: a server process, and figures with their bars."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

START_S, STOP_S = 120.0, 60.0


class Server:
    """``headgate serve`` in a process of its own, for as long as a ``with`` block runs.

    Args:
        options: of the command.
        cache: instead of the user's cache folder, for kept prefixes.

    Attributes:
        url: where it listens.
        notes: what it has said on stderr.
        peak_bytes: the most memory that it took; 0 where the kernel does not say.
        status: its exit status, when it has ended.
    """

    def __init__(self, store: Path, options: Sequence[str] = (), cache: Path | None = None) -> None:
        command = [sys.executable, "-m", "headgate", "serve", str(store), "--port", "0", *options]
        env = {**os.environ, **({"XDG_CACHE_HOME": str(cache)} if cache else {})}
        self.notes: list[str] = []
        self.url, self.peak_bytes, self.status = "", 0, -1
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
        self._started = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.notes.append(line.rstrip())
            if " at http://" in line:
                self.url = line.rpartition(" at ")[2].split(",")[0].strip()
                self._started.set()
        self._started.set()

    def __enter__(self) -> Server:
        if not self._started.wait(START_S) or not self.url:
            self._process.kill()
            raise SystemExit("the server does not start: " + " ".join(self.notes))
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=600, trust_env=False)

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """End it as a user does."""
        if self._process.poll() is None:
            self.peak_bytes = peak_bytes(self.pid)
            self._process.send_signal(number)
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self.status = self._process.wait()
        self._reader.join(STOP_S)


def peak_bytes(pid: int) -> int:
    """The most memory that a running process took; 0 where the kernel does not say."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return 0
    lines = status.read_text().splitlines()
    return next(int(x.split()[1]) << 10 for x in lines if x.startswith("VmHWM:"))


@dataclass
class Figures:
    """Prints one line for each figure, and remembers whether all bars were reached."""

    missed: list[str] = field(default_factory=list)

    def check(self, name: str, value: str, bar: str, reached: bool) -> None:
        """A figure with its bar."""
        print(f"{name:60} {value:>14}  {bar:12} {'yes' if reached else 'NO'}", flush=True)
        if not reached:
            self.missed.append(name)

    def tell(self, name: str, value: str) -> None:
        """A figure beside it."""
        print(f"{name:60} {value:>14}", flush=True)

    @property
    def status(self) -> int:
        """Exit status."""
        return int(bool(self.missed))
