"""Checking every byte of a store against its checksums."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from headgate._native import crc32c
from headgate.errors import StoreError
from headgate.store.layout import ALIGNMENT
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
    return files + experts + store.dense_bytes // ALIGNMENT * ALIGNMENT


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
    except StoreError as error:
        yield Damage(DENSE_FILE, str(error))
        progress(store.dense_bytes)
        return
    with (store.path / DENSE_FILE).open("rb") as file:
        file.seek(header.data_start)
        progress(header.data_start)
        for name, info in header.tensors.items():
            left, check = info.nbytes, 0
            while left:
                data = file.read(min(left, READ))
                if not data:
                    break
                check = crc32c(data, check)
                left -= len(data)
                progress(len(data))
            if left or check != store.manifest.dense_crc32c[name]:
                yield Damage(DENSE_FILE, f"dense tensor {name}")


def _layer(store: Store, index: int, progress: Progress) -> Iterator[Damage]:
    layer = store.manifest.layers[index]
    path = store.expert_path(layer)
    name = f"{EXPERT_FOLDER}/{path.name}"
    with path.open("rb") as file:
        for expert in range(store.manifest.num_experts):
            for number, segment in enumerate(store.layout.segments):
                data = file.read(segment.nbytes)
                if crc32c(data) != store.checksums[index, expert, number]:
                    yield Damage(name, store.describe(index, expert, number), layer, expert)
                progress(segment.nbytes)
