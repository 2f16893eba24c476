"""Snapshots on the drive, within a number of bytes.

The folder is shared: by stores and settings, which the names of the files tell apart, and
by processes. So it is looked through whenever a file is added, and a file that has gone is
nothing unusual.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headgate.engine.snapshot import (
    DamagedSnapshot,
    Floats,
    Snapshot,
    file_bytes,
    read_snapshot,
    remove_leftovers,
    write_snapshot,
)

_NAME = re.compile(r"([0-9a-f]{16})-(\d{1,9})-([0-9a-f]{32})\.prefix")


def key_of(identity: bytes, tokens: npt.NDArray[np.int32]) -> bytes:
    """What the snapshot behind ``tokens`` is found by: 16 bytes."""
    return hashlib.sha256(identity + tokens.astype("<i4", copy=False).tobytes()).digest()[:16]


@dataclass(frozen=True)
class _File:
    path: Path
    nbytes: int
    used: float  # when it was last written or read


class PrefixFiles:
    """Snapshots of one identity in a folder.

    Args:
        folder: made when something is written.
        identity: 32 bytes.
        limit: bytes that all snapshots in the folder may take, those of others included.

    Attributes:
        lengths: key -> tokens of the snapshots that are there, as far as is known.
        nbytes: bytes of all snapshots in the folder, when it was last looked through.
    """

    def __init__(self, folder: Path, identity: bytes, limit: int) -> None:
        self.folder, self.identity, self.limit = folder, identity, limit
        self.lengths: dict[bytes, int] = {}
        self.nbytes = 0
        remove_leftovers(folder)
        self._look()

    def path(self, key: bytes, length: int) -> Path:
        """Where the snapshot with ``key`` of ``length`` tokens is kept."""
        return self.folder / f"{self.identity.hex()[:16]}-{length}-{key.hex()}.prefix"

    def write(self, key: bytes, snapshot: Snapshot) -> None:
        """Keep a snapshot, in place of the least recently used ones if need be.

        Raises:
            OSError: it cannot be written.
        """
        size = file_bytes(snapshot.nbytes)
        if size > self.limit:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        files = self._look()
        while files and self.nbytes + size > self.limit:
            oldest = files.pop(0)
            self._remove(oldest.path)
            self.nbytes -= oldest.nbytes
        write_snapshot(self.path(key, len(snapshot.tokens)), self.identity, snapshot)
        self.lengths[key] = len(snapshot.tokens)
        self.nbytes += size

    def newest(self) -> list[tuple[bytes, int]]:
        """(key, tokens) of what is there, most recently used first."""
        files = self._look()[::-1]
        known = {self.path(key, length).name: (key, length) for key, length in self.lengths.items()}
        return [known[file.path.name] for file in files if file.path.name in known]

    def read(
        self, key: bytes, length: int, arrays: Sequence[Floats], used: bool = True
    ) -> npt.NDArray[np.int32] | None:
        """Read the snapshot of ``length`` tokens into ``arrays``, which are of no meaning
        if there is none. A file that is damaged, or holds something else, is removed.

        Args:
            used: count it as used now.

        Returns:
            the tokens, int32 [length], or None.
        """
        path = self.path(key, length)
        try:
            tokens = read_snapshot(path, self.identity, length, arrays)
            if key_of(self.identity, tokens) != key:
                raise DamagedSnapshot("it holds other tokens")
            if used:
                os.utime(path)
            return tokens
        except DamagedSnapshot as error:
            print(f"headgate: note: removed the kept prefix {path}: {error}", file=sys.stderr)
            self._remove(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            print(
                f"headgate: note: cannot read the kept prefix {path}: {error.strerror}",
                file=sys.stderr,
            )
        self.lengths.pop(key, None)
        return None

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        match = _NAME.fullmatch(path.name)
        if match and match[1] == self.identity.hex()[:16]:
            self.lengths.pop(bytes.fromhex(match[3]), None)

    def _look(self) -> list[_File]:
        """All snapshots in the folder, least recently used first."""
        files: list[_File] = []
        lengths: dict[bytes, int] = {}
        try:
            entries = list(os.scandir(self.folder))
        except OSError:
            entries = []
        for entry in entries:
            match = _NAME.fullmatch(entry.name)
            if match is None:
                continue
            try:
                stat = entry.stat()
            except OSError:  # gone meanwhile
                continue
            files.append(_File(Path(entry.path), stat.st_size, stat.st_mtime))
            if match[1] == self.identity.hex()[:16]:
                lengths[bytes.fromhex(match[3])] = int(match[2])
        self.lengths = lengths
        self.nbytes = sum(file.nbytes for file in files)
        return sorted(files, key=lambda file: file.used)
