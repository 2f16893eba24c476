"""Random reads from a scratch file: direct through the engine's queue, and two others
to compare with."""

from __future__ import annotations

import mmap
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from headgate._native import AlignedBuffer, ReadQueue
from headgate.errors import ResourceError

Mode = Literal["direct", "buffered", "mmap"]

MIB = 1 << 20
ALIGNMENT = 4096
#: Destinations are shared by reads in flight beyond this; what they hold is not looked at.
BUFFER_BYTES = 128 * MIB
#: Reads of one measurement take this long, unless the queue needs more to be full ...
TARGET_S = 0.1
#: ... but if that takes longer than this, the measurement is left out.
LONGEST_S = 1.5
WRITE_BYTES = 8 * MIB
LEAST_BYTES = 64 * MIB


@dataclass
class ReadRate:
    """One combination of size and depth.

    Attributes:
        seconds: per read; median over rounds.
    """

    mode: Mode
    nbytes: int
    depth: int
    samples: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return statistics.median(self.samples)

    @property
    def bytes_per_s(self) -> float:
        return self.nbytes / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "seconds": self.seconds, "bytes_per_s": self.bytes_per_s}


@contextmanager
def scratch_file(folder: Path, nbytes: int, seconds: float) -> Iterator[Path]:
    """A file of random bytes in ``folder``, on the drive and not in the page cache where
    that can be had; removed at the end. Smaller if the disk has little room, or if it is
    not written after ``seconds``.

    Raises:
        ResourceError: it cannot be written.
    """
    try:
        nbytes = min(nbytes, shutil.disk_usage(folder).free // 4) // WRITE_BYTES * WRITE_BYTES
        if nbytes < LEAST_BYTES:
            raise ResourceError(f"{folder} has too little room for a probe")
        file, name = tempfile.mkstemp(prefix=".headgate-probe-", dir=folder)
    except OSError as error:
        raise ResourceError(f"cannot probe {folder}: {error.strerror}") from None
    path = Path(name)
    try:
        os.close(file)
        _fill(path, nbytes, time.monotonic() + seconds)
        yield path
    except OSError as error:
        raise ResourceError(f"cannot probe {folder}: {error.strerror}") from None
    finally:
        path.unlink(missing_ok=True)


def _fill(path: Path, nbytes: int, until: float) -> None:
    block = AlignedBuffer(WRITE_BYTES).array()
    rng = np.random.Generator(np.random.SFC64(0))
    block.view(np.uint64)[:] = rng.integers(0, 1 << 64, WRITE_BYTES // 8, np.uint64)
    try:
        file = os.open(path, os.O_WRONLY | getattr(os, "O_DIRECT", 0))
    except OSError:
        file = os.open(path, os.O_WRONLY)
    try:
        for at in range(0, nbytes, WRITE_BYTES):
            if at >= LEAST_BYTES and time.monotonic() > until:
                break
            block.view(np.uint64)[::512] += np.uint64(1)  # every page differs from the last one
            done = 0
            while done < WRITE_BYTES:
                done += os.write(file, block[done:].data)
        os.fsync(file)
    finally:
        os.close(file)


def drop_cache(path: Path) -> None:
    """Ask the system to forget a file's pages."""
    if hasattr(os, "posix_fadvise"):
        file = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)


def cached_share(path: Path, samples: int = 256) -> float | None:
    """Share of a file that is in the page cache, from a sample of its pages; None where
    the system does not tell."""
    if not hasattr(os, "RWF_NOWAIT"):
        return None
    pages = path.stat().st_size // ALIGNMENT
    places = np.random.default_rng(0).integers(0, pages, samples).tolist()
    file = os.open(path, os.O_RDONLY)
    try:
        return sum(_is_cached(file, place * ALIGNMENT) for place in places) / samples
    except OSError:
        return None
    finally:
        os.close(file)


def _is_cached(file: int, offset: int) -> bool:
    try:
        return os.preadv(file, [bytearray(ALIGNMENT)], offset, os.RWF_NOWAIT) > 0
    except BlockingIOError:  # it would have to be read from the drive
        return False


class DriveProbe:
    """Measures reads from one scratch file.

    Attributes:
        direct: whether reads in mode ``direct`` bypass the page cache.
        backend: of the read queue.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = path.stat().st_size
        self._buffer = AlignedBuffer(min(BUFFER_BYTES, self._size), True)
        self._buffer.array()[::ALIGNMENT] = 0
        self._rng = np.random.default_rng(0)
        queue = ReadQueue()
        self.backend = queue.backend
        self.direct = queue.file_is_direct(queue.add_file(str(path)))
        queue.close()

    def measure(self, rate: ReadRate) -> None:
        """Add a sample to ``rate``, unless it would take too long."""
        if rate.mode != "direct":
            drop_cache(self._path)
        if rate.samples:
            expected = rate.seconds
        else:
            expected = self._seconds(rate, 1)
            if expected * rate.depth > LONGEST_S:
                return
            expected = self._seconds(rate, rate.depth)
        reads = max(2 * rate.depth, round(TARGET_S / expected))
        if reads * expected > LONGEST_S:
            reads = rate.depth
        rate.samples.append(self._seconds(rate, reads))

    def _seconds(self, rate: ReadRate, reads: int) -> float:
        """Per read, of ``reads`` reads in a row."""
        offsets = self._offsets(rate.nbytes, reads)
        if rate.mode == "mmap":
            return self._through_mmap(rate.nbytes, offsets)
        return self._through_queue(rate, offsets)

    def _offsets(self, nbytes: int, count: int) -> list[int]:
        """Random places, none twice before all have been."""
        places = self._size // nbytes
        rounds = [self._rng.permutation(places) for _ in range(-(-count // places))]
        offsets: list[int] = (np.concatenate(rounds)[:count] * nbytes).tolist()
        return offsets

    def _through_queue(self, rate: ReadRate, offsets: list[int]) -> float:
        queue = ReadQueue(depth=rate.depth, chunk_bytes=rate.nbytes)
        try:
            file = queue.add_file(
                str(self._path), "buffered" if rate.mode == "buffered" else "auto"
            )
            target = queue.add_buffer(self._buffer)
            slots = self._buffer.nbytes // rate.nbytes
            reads = [
                (i, file, offset, rate.nbytes, target, i % slots * rate.nbytes, 0)
                for i, offset in enumerate(offsets)
            ]
            begin = time.perf_counter()
            queue.submit(reads)
            done = queue.wait(len(reads))
            seconds = time.perf_counter() - begin
            if error := next((error for _, error, _, _ in done if error), 0):
                reason = "it ends early" if error < 0 else os.strerror(error)
                raise ResourceError(f"cannot read the scratch file of the probe: {reason}")
        finally:
            queue.close()
        return seconds / len(offsets)

    def _through_mmap(self, nbytes: int, offsets: list[int]) -> float:
        target = self._buffer.array(0, nbytes)
        with self._path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        source = np.frombuffer(mapped, np.uint8)
        begin = time.perf_counter()
        for offset in offsets:
            target[:] = source[offset : offset + nbytes]
        seconds = time.perf_counter() - begin
        del source  # a view keeps the mapping from being closed
        mapped.close()
        return seconds / len(offsets)
