"""The state after a prefix of tokens, in memory and as a file.

A file holds, little-endian and without padding:

    8 bytes   magic "hgprefix"
    uint32    version, 1
    uint32    n, tokens
    32 bytes  identity: what the state depends on beside the tokens
    int32     [n] the tokens
    float32   the arrays of the state, in the order of :meth:`headgate.models.State.arrays`
    uint32    CRC-32C of everything before

Shapes are not in the file: they follow from the model and n, and so does the size of the
file, which is compared before anything is read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headgate._native import crc32c

MAGIC = b"hgprefix"
VERSION = 1
IDENTITY_BYTES = 32
HEADER = struct.Struct(f"<8sII{IDENTITY_BYTES}s")
TRAILER = struct.Struct("<I")
#: Bytes that are written, read or summed at a time.
PIECE = 1 << 20

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Snapshot:
    """A state that can be gone on from.

    Attributes:
        tokens: int32 [n].
        arrays: float32, copies of :meth:`headgate.models.State.arrays`.
    """

    tokens: npt.NDArray[np.int32]
    arrays: Sequence[Floats]

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + sum(array.nbytes for array in self.arrays)


class DamagedSnapshot(Exception):
    """A file is not the snapshot that it should be."""


def file_bytes(state_bytes: int) -> int:
    """Size of the file of a snapshot of ``state_bytes``, tokens included."""
    return HEADER.size + state_bytes + TRAILER.size


def write_snapshot(path: Path, identity: bytes, snapshot: Snapshot) -> None:
    """Write a file that appears under its name only when it is whole and on the drive.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    header = HEADER.pack(MAGIC, VERSION, len(snapshot.tokens), identity)
    try:
        with partial.open("wb", buffering=0) as file:
            checksum = 0
            for data in (memoryview(header), *_pieces(snapshot.tokens, *snapshot.arrays)):
                checksum = crc32c(data, checksum)
                _write(file.fileno(), data)
            _write(file.fileno(), memoryview(TRAILER.pack(checksum)))
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):  # its pages would crowd out others
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_snapshot(
    path: Path, identity: bytes, length: int, arrays: Sequence[Floats]
) -> npt.NDArray[np.int32]:
    """Read the snapshot of ``length`` tokens into ``arrays``, which are of no meaning if
    this fails.

    Returns:
        the tokens, int32 [length].

    Raises:
        DamagedSnapshot: the file holds something else, or not what was written.
        OSError: it cannot be read.
    """
    tokens = np.empty(length, "<i4")
    whole = file_bytes(tokens.nbytes + sum(array.nbytes for array in arrays))
    with path.open("rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size != whole:
            raise DamagedSnapshot("its size is wrong")
        header = bytearray(HEADER.size)
        checksum = _read(file.fileno(), memoryview(header), 0)
        if bytes(header) != HEADER.pack(MAGIC, VERSION, length, identity):
            raise DamagedSnapshot("it belongs to another store, or to other settings")
        if hasattr(os, "posix_fadvise"):  # all at once, not a window at a time
            os.posix_fadvise(file.fileno(), 0, whole, os.POSIX_FADV_WILLNEED)
        for data in _pieces(tokens, *arrays):
            checksum = _read(file.fileno(), data, checksum)
        trailer = bytearray(TRAILER.size)
        _read(file.fileno(), memoryview(trailer), 0)
    if TRAILER.unpack(trailer)[0] != checksum:
        raise DamagedSnapshot("its checksum does not match")
    return tokens


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that are no more have left half written."""
    for path in folder.glob(".*.tmp"):
        process = path.name.split(".")[-2]
        if process.isdigit() and not _alive(int(process)):
            path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _pieces(*arrays: npt.NDArray[np.generic]) -> Iterator[memoryview]:
    for array in arrays:
        data = array.reshape(-1).view(np.uint8).data
        for start in range(0, len(data), PIECE):
            yield data[start : start + PIECE]


def _write(file: int, data: memoryview) -> None:
    while len(data):
        data = data[os.write(file, data) :]


def _read(file: int, data: memoryview, checksum: int) -> int:
    """Fill ``data``; the checksum of all that was read so far."""
    rest = data
    while len(rest):
        count = os.readv(file, [rest])
        if count == 0:
            raise DamagedSnapshot("it ends early")
        rest = rest[count:]
    return crc32c(data, checksum)
