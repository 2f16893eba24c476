"""Snapshots on the drive, within a number of bytes.

The folder is shared: by stores and settings, which the names of the files tell apart, and
by processes. So it is looked through whenever a file is added, and a file that has gone is
nothing unusual.
"""

from __future__ import annotations

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

    def read(self, key: bytes, tokens: npt.NDArray[np.int32], arrays: Sequence[Floats]) -> bool:
        """Read a snapshot into ``arrays``, which are of no meaning if this is false. A
        file that is damaged, or holds something else, is removed."""
        path = self.path(key, len(tokens))
        try:
            read_snapshot(path, self.identity, tokens, arrays)
            os.utime(path)
            return True
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
        return False

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
