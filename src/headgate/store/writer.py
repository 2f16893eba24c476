"""Writing a store so that nothing is lost and nothing half-written is taken for whole.

All files are written into ``NAME.partial``; the last step renames it to ``NAME``.
Each record's checksums are appended to a side file after the record itself, so a
killed conversion finds on its return how far it came: it keeps the records whose
checksums match and goes on behind them. The result is the same bytes whether or
not, and wherever, it was interrupted.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from headgate._native import crc32c
from headgate.errors import ResourceError, StoreError
from headgate.store import safetensors
from headgate.store.layout import RecordLayout
from headgate.store.manifest import FileEntry, Manifest
from headgate.store.reader import (
    CHECKSUM_FILE,
    DENSE_FILE,
    EXPERT_FOLDER,
    MANIFEST_FILE,
    PARTIAL_SUFFIX,
    PLAN_FILE,
    expert_file_name,
)

DENSE_CHECKSUMS = "dense.json"

Bytes = npt.NDArray[np.uint8]


class StoreWriter:
    """Writes one store; use as a context manager, in this order: :meth:`write_layer`
    for each layer, :meth:`write_dense`, :meth:`write_file`, :meth:`finish`.

    Attributes:
        complete: the store is at ``out``; there on entry if an earlier process was
            killed just before the last step.

    Args:
        out: path of the finished store, which must not exist.
        plan: everything that determines the result. A partial store of another
            plan is refused, one of the same plan is resumed. It stays in the store
            as ``conversion.json``.
    """

    def __init__(self, out: Path, plan: Mapping[str, Any], layout: RecordLayout) -> None:
        self.out = out
        self.layout = layout
        self.partial = out.with_name(out.name + PARTIAL_SUFFIX)
        self._plan = json.dumps(plan, indent=1, sort_keys=True).encode()
        self._files: dict[str, FileEntry] = {}
        self._lock: BinaryIO | None = None
        self.complete = False

    def __enter__(self) -> StoreWriter:
        with _disk(self.partial):
            if self.out.exists():
                raise StoreError(f"{self.out} exists already: remove it or choose another name")
            (self.partial / EXPERT_FOLDER).mkdir(parents=True, exist_ok=True)
            self._lock = (self.partial / PLAN_FILE).open("a+b")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._lock.close()
                raise StoreError(f"another process is writing {self.out}") from None
            self._lock.seek(0)
            found = self._lock.read()
            if found != self._plan:
                self._begin(found)
            if (self.partial / MANIFEST_FILE).exists():
                self._publish()
        return self

    def _begin(self, found: bytes) -> None:
        # An incomplete plan is that of a process killed before it wrote anything else.
        assert self._lock is not None
        if found and not self._plan.startswith(found):
            self._lock.close()
            raise StoreError(
                f"{self.partial} was begun from another source or with other options: "
                "repeat those to resume it, or remove it"
            )
        self._lock.truncate(0)
        self._lock.write(self._plan)
        self._lock.flush()

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    # Experts ------------------------------------------------------------------

    def written_records(self, layer: int) -> int:
        """How many records of ``layer`` are on disk and whole. Cuts off what follows
        them; every record found is read and checked, so call it once per layer."""
        data, sums = self._layer_paths(layer)
        segments = self.layout.segments
        good = 0
        with _disk(data), data.open("a+b") as file, sums.open("a+b") as side:
            file.seek(0)
            side.seek(0)
            while True:
                record, sum_ = file.read(self.layout.stride), side.read(4 * len(segments))
                if len(record) < self.layout.stride or sum_ != _record_checksums(record, segments):
                    break
                good += 1
            file.truncate(good * self.layout.stride)
            side.truncate(good * 4 * len(segments))
        return good

    def write_layer(self, layer: int, records: Iterable[Bytes], direct: bool = False) -> None:
        """Append records to those that :meth:`written_records` found.

        Args:
            records: uint8 [stride] or [n, stride], the missing experts in order.
            direct: bypass the page cache where the file system allows it; every array
                must then start on a multiple of 4096 in memory.
        """
        data, sums = self._layer_paths(layer)
        stride, segments = self.layout.stride, self.layout.segments
        with _disk(data), _append(data, direct) as file, sums.open("ab") as side:
            for batch in records:
                _write_all(file, batch.reshape(-1))
                for record in batch.reshape(-1, stride):
                    side.write(_record_checksums(record.data, segments))
                side.flush()
            os.fsync(file)
            os.fsync(side.fileno())

    def _layer_paths(self, layer: int) -> tuple[Path, Path]:
        data = self.partial / EXPERT_FOLDER / expert_file_name(layer)
        return data, data.with_suffix(".crc")

    # Dense tensors and other files ----------------------------------------------

    def write_dense(
        self,
        tensors: Mapping[str, tuple[str, tuple[int, ...]]],
        arrays: Iterable[tuple[str, npt.NDArray[Any]]],
    ) -> dict[str, int]:
        """Write ``dense.safetensors``, unless it is there already.

        Args:
            tensors: name -> (dtype, shape), in file order.
            arrays: (name, array) in any order of tensors; a large tensor may come as
                several blocks of rows, first rows first.

        Returns:
            checksums as in :attr:`Manifest.dense_crc32c`.
        """
        path, side = self.partial / DENSE_FILE, self.partial / DENSE_CHECKSUMS
        if path.exists() and side.exists():
            found: dict[str, int] = json.loads(side.read_bytes())
            return found
        head, header = safetensors.build_header(tensors)
        sums = {"": crc32c(head), **dict.fromkeys(tensors, 0)}
        written = dict.fromkeys(tensors, 0)
        scratch = path.with_suffix(".tmp")
        with _disk(path):
            with scratch.open("wb") as file:
                file.write(head)
                for name, array in arrays:
                    info = header.tensors[name]
                    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                    assert written[name] + raw.nbytes <= info.nbytes, name
                    sums[name] = crc32c(raw, sums[name])
                    file.seek(header.data_start + info.start + written[name])
                    file.write(raw.data)
                    written[name] += raw.nbytes
                file.flush()
                os.fsync(file.fileno())
            lacking = [n for n, info in header.tensors.items() if written[n] != info.nbytes]
            assert not lacking, f"dense tensors were not written: {lacking[:3]}"
            self._replace(side, json.dumps(sums).encode())
            scratch.replace(path)
        return sums

    def write_file(self, name: str, data: bytes) -> None:
        """Write a small file and note its checksum for the manifest."""
        with _disk(self.partial / name):
            self._replace(self.partial / name, data)
        self._files[name] = FileEntry(len(data), crc32c(data))

    def finish(self, manifest: Manifest) -> None:
        """Complete the manifest with the files written, and publish the store.

        Args:
            manifest: with ``files`` still empty.
        """
        with _disk(self.out):
            sides = [self._layer_paths(layer)[1] for layer in manifest.layers]
            self.write_file(CHECKSUM_FILE, b"".join(side.read_bytes() for side in sides))
            self._files[PLAN_FILE] = FileEntry(len(self._plan), crc32c(self._plan))
            files = dict(sorted(self._files.items()))
            complete = Manifest(**{**vars(manifest), "files": files})
            self._replace(self.partial / MANIFEST_FILE, complete.to_bytes())
            self._publish()

    def _publish(self) -> None:
        # With the manifest written nothing is missing; only scaffolding is removed.
        for pattern in ("*.tmp", DENSE_CHECKSUMS, f"{EXPERT_FOLDER}/*.crc"):
            for leftover in self.partial.glob(pattern):
                leftover.unlink()
        self.partial.replace(self.out)
        _sync_folder(self.out.parent)
        self.complete = True

    def _replace(self, path: Path, data: bytes) -> None:
        scratch = path.with_name(path.name + ".tmp")
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)


def check_free_space(out: Path, needed: int) -> None:
    """Raise :class:`ResourceError` unless the disk of ``out`` has ``needed`` bytes free
    beyond what an interrupted conversion has already written. Passes when ``out`` exists:
    :class:`StoreWriter` refuses that."""
    partial = out.with_name(out.name + PARTIAL_SUFFIX)
    with _disk(partial):
        if out.exists():
            return
        there = sum(p.stat().st_blocks * 512 for p in partial.rglob("*") if p.is_file())
        folder = next(p for p in [out.parent, *out.parent.parents] if p.exists())
        free = shutil.disk_usage(folder).free
    if needed - there > free:
        raise ResourceError(
            f"the store needs {(needed - there) / 1e9:.2f} GB of disk, "
            f"{folder} has {free / 1e9:.2f} GB free"
        )


@contextmanager
def _append(path: Path, direct: bool) -> Iterator[int]:
    """A descriptor that writes at the end of ``path``."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    try:
        file = os.open(path, flags | (getattr(os, "O_DIRECT", 0) if direct else 0), 0o666)
    except OSError as error:
        if not direct or error.errno != errno.EINVAL:
            raise
        file = os.open(path, flags, 0o666)
    try:
        yield file
    finally:
        os.close(file)


def _write_all(file: int, data: Bytes) -> None:
    done = 0
    while done < data.nbytes:
        done += os.write(file, data[done:].data)


def _record_checksums(record: Any, segments: Iterable[Any]) -> bytes:
    view = memoryview(record)
    sums = [crc32c(view[s.offset : s.end]) for s in segments]
    return np.array(sums, "<u4").tobytes()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Turn an operating-system error into a typed one that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"the disk is full while writing {path}: free some space and run the same "
                "command again, it resumes"
            ) from None
        raise ResourceError(f"cannot write {path}: {error.strerror}") from None
