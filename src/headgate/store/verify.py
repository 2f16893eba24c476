"""Checking every byte of a store against its checksums."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from headgate._native import crc32c
from headgate.errors import StoreError
from headgate.store.reader import CHECKSUM_FILE, DENSE_FILE, EXPERT_FOLDER, Store

READ = 8 << 20

#: called with the number of bytes just checked
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Damage:
    """One damaged place: the file, and what in it."""

    file: str
    what: str
    layer: int | None = None
    expert: int | None = None


def total_bytes(store: Store) -> int:
    """Bytes that :func:`verify` reads."""
    files = sum(entry.nbytes for entry in store.manifest.files.values())
    experts = len(store.manifest.layers) * store.manifest.expert_file_bytes
    return files + experts + (store.path / DENSE_FILE).stat().st_size


def verify(store: Store, progress: Progress = lambda _: None) -> Iterator[Damage]:
    """Yield every damaged place of ``store``, whose manifest has been checked."""
    for name, entry in store.manifest.files.items():
        if name != CHECKSUM_FILE:  # opening the store has checked it
            try:
                store.read_file(name)
            except StoreError as error:
                yield Damage(name, str(error))
        progress(entry.nbytes)
    yield from _dense(store, progress)
    for index in range(len(store.manifest.layers)):
        yield from _layer(store, index, progress)


def _dense(store: Store, progress: Progress) -> Iterator[Damage]:
    try:
        header = store.dense_header()
        file = (store.path / DENSE_FILE).open("rb")
    except StoreError as error:
        yield Damage(DENSE_FILE, str(error))
        progress(store.dense_bytes)
        return
    except OSError as error:
        yield Damage(DENSE_FILE, f"cannot be read: {error.strerror}")
        return
    with file:
        progress(header.data_start)
        for name, info in header.tensors.items():
            check = 0
            for at in range(info.start, info.end, READ):
                data = _read(file, header.data_start + at, min(READ, info.end - at))
                check = crc32c(data, check)
                progress(len(data))
            if check != store.manifest.dense_crc32c[name]:
                yield Damage(DENSE_FILE, f"dense tensor {name}")


def _layer(store: Store, index: int, progress: Progress) -> Iterator[Damage]:
    layer = store.manifest.layers[index]
    path = store.expert_path(layer)
    name = f"{EXPERT_FOLDER}/{path.name}"
    try:
        file = path.open("rb")
    except OSError as error:
        yield Damage(name, f"layer {layer} cannot be read: {error.strerror}", layer)
        return
    with file:
        for expert in range(store.manifest.num_experts):
            for number, segment in enumerate(store.layout.segments):
                at = expert * store.layout.stride + segment.offset
                data = _read(file, at, segment.nbytes)
                if crc32c(data) != store.checksums[index, expert, number]:
                    yield Damage(name, store.describe(index, expert, number), layer, expert)
                progress(segment.nbytes)


def _read(file: BinaryIO, offset: int, nbytes: int) -> bytes:
    """Nothing where the drive cannot read, which then counts as damage of that place."""
    try:
        file.seek(offset)
        return file.read(nbytes)
    except OSError:
        return b""
