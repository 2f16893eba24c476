"""Opening a store: the manifest, the dense tensors, and where the experts are."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headgate._native import AlignedBuffer, ReadQueue, crc32c
from headgate.errors import DamagedStore, StoreError
from headgate.store import safetensors
from headgate.store.layout import ALIGNMENT, align
from headgate.store.manifest import Manifest

MANIFEST_FILE = "store.json"
DENSE_FILE = "dense.safetensors"
CHECKSUM_FILE = "checksums.bin"
EXPERT_FOLDER = "experts"
PARTIAL_SUFFIX = ".partial"
PLAN_FILE = "conversion.json"

DENSE_READ = 1 << 20


def expert_file_name(layer: int) -> str:
    """File name of a layer's records inside ``experts/``."""
    return f"{layer:02d}.bin"


class Store:
    """A complete store, opened for reading. Nothing is kept open or in memory but
    the manifest and the records' checksums.

    Attributes:
        path: the store's directory.
        manifest: the contents of ``store.json``.
        layout: offsets inside a record.
        checksums: uint32 [layers, experts, segments], CRC-32C of each segment.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.layout = manifest.layout
        self._check_sizes()
        shape = (len(manifest.layers), manifest.num_experts, len(self.layout.segments))
        raw = self.read_file(CHECKSUM_FILE)
        if len(raw) != 4 * shape[0] * shape[1] * shape[2]:
            raise StoreError(f"{CHECKSUM_FILE} has {len(raw)} bytes, not 4 for each of {shape}")
        self.checksums: npt.NDArray[np.uint32] = np.frombuffer(raw, "<u4").reshape(shape)

    @classmethod
    def open(cls, path: Path | str) -> Store:
        """Open the store at ``path``.

        Raises:
            StoreError: there is no complete, well-formed store there.
        """
        path = Path(path)
        try:
            if not (path / MANIFEST_FILE).is_file():
                raise StoreError(_why_no_store(path))
        except OSError as error:
            raise StoreError(f"cannot open {path}: {error.strerror}") from None
        return cls(path, Manifest.read(path / MANIFEST_FILE))

    def expert_path(self, layer: int) -> Path:
        """The file with the records of decoder layer ``layer``."""
        return self.path / EXPERT_FOLDER / expert_file_name(layer)

    def read_file(self, name: str) -> bytes:
        """A small file of the store, checked against its checksum."""
        entry = self.manifest.files.get(name)
        if entry is None:
            raise StoreError(f"the store has no file {name}")
        try:
            data = (self.path / name).read_bytes()
        except OSError as error:
            raise StoreError(f"cannot read {name} of the store: {error.strerror}") from None
        if len(data) != entry.nbytes or crc32c(data) != entry.crc32c:
            raise DamagedStore(f"{name} of the store is damaged: its checksum does not match")
        return data

    def read_json(self, name: str) -> Any:
        """A JSON file of the store, parsed."""
        try:
            return json.loads(self.read_file(name))
        except ValueError:
            raise StoreError(f"{name} of the store is not valid JSON") from None

    @property
    def dense_bytes(self) -> int:
        """Bytes of memory that :meth:`load_dense` takes."""
        return align(self._dense_file_bytes(), ALIGNMENT)

    def _dense_file_bytes(self) -> int:
        return (self.path / DENSE_FILE).stat().st_size

    def dense_header(self) -> safetensors.Header:
        """The header of the dense tensors, checked."""
        try:
            header = safetensors.read_header(self.path / DENSE_FILE)
            with (self.path / DENSE_FILE).open("rb") as file:
                raw = file.read(header.data_start)
        except safetensors.HeaderError as error:
            raise DamagedStore(f"{DENSE_FILE} is damaged: {error}") from None
        expected = self.manifest.dense_crc32c
        if crc32c(raw) != expected.get(""):
            raise DamagedStore(f"the header of {DENSE_FILE} is damaged")
        if set(header.tensors) != set(expected) - {""}:
            raise StoreError(f"the tensors of {DENSE_FILE} are not those of {MANIFEST_FILE}")
        return header

    def load_dense(self) -> dict[str, npt.NDArray[Any]]:
        """Read and check all dense tensors.

        Returns:
            name -> array of the tensor's storage type (16-bit floats as uint16),
            views of one buffer.

        Raises:
            DamagedStore: names the tensor whose bytes do not match.
        """
        header = self.dense_header()
        order = sorted(header.tensors.items(), key=lambda item: item[1].start)
        waiting = deque((name, info.start, info.end) for name, info in order)
        start = header.data_start
        buffer = AlignedBuffer(align(max(self._dense_file_bytes(), 1), ALIGNMENT), True)
        data = buffer.array(start, self._dense_file_bytes() - start)
        for complete in self._read_dense(buffer):
            # Checked while the rest is on its way.
            while waiting and start + waiting[0][2] <= complete:
                name, begin, end = waiting.popleft()
                if crc32c(data[begin:end]) != self.manifest.dense_crc32c[name]:
                    raise DamagedStore(
                        f"dense tensor {name} is damaged: its checksum does not match"
                    )
        return {name: safetensors.view(info, data) for name, info in header.tensors.items()}

    def _read_dense(self, buffer: AlignedBuffer) -> Iterator[int]:
        """Read the file of dense tensors; yields how many bytes from its start are there."""
        size, path = self._dense_file_bytes(), self.path / DENSE_FILE
        whole = size // ALIGNMENT * ALIGNMENT
        with path.open("rb") as tail:  # direct reads end on whole pages
            tail.seek(whole)
            rest = tail.read(size - whole)
        buffer.array()[whole : whole + len(rest)] = np.frombuffer(rest, np.uint8)
        # Pinning the whole buffer pays for one that is read into again and again.
        queue = ReadQueue(register_buffers=False)
        file, target = queue.add_file(str(path)), queue.add_buffer(buffer)
        starts = range(0, whole, DENSE_READ)
        queue.submit([(at, file, at, min(DENSE_READ, whole - at), target, at, 0) for at in starts])
        missing, done = deque(starts), set[int]()
        while queue.outstanding:
            for at, error, _, _ in queue.wait():
                if error:
                    raise StoreError(f"cannot read {DENSE_FILE}: {_reason(error)}")
                done.add(at)
            while missing and missing[0] in done:
                missing.popleft()
            if missing:
                yield missing[0]
        yield size

    def _check_sizes(self) -> None:
        for layer in self.manifest.layers:
            path = self.expert_path(layer)
            try:
                size = path.stat().st_size
            except OSError:
                raise StoreError(f"the store lacks {path.parent.name}/{path.name}") from None
            if size != self.manifest.expert_file_bytes:
                raise DamagedStore(
                    f"{path.parent.name}/{path.name} has {size} bytes, "
                    f"expected {self.manifest.expert_file_bytes}"
                )
        if not (self.path / DENSE_FILE).is_file():
            raise StoreError(f"the store lacks {DENSE_FILE}")

    def describe(self, layer_index: int, expert: int, segment: int) -> str:
        """A record's segment in words, for messages."""
        bits = self.layout.segments[segment].bits
        layer = self.manifest.layers[layer_index]
        return f"layer {layer}, expert {expert}, segment {segment} (to {bits} bits)"


def _reason(error: int) -> str:
    return "the file ends early" if error < 0 else os.strerror(error)


def _why_no_store(path: Path) -> str:
    if path.name.endswith(PARTIAL_SUFFIX) or (path / PLAN_FILE).exists():
        return f"{path} is an unfinished conversion: run the same `headgate convert` to resume it"
    if path.with_name(path.name + PARTIAL_SUFFIX).exists():
        return (
            f"{path} is not there yet, its conversion is unfinished: "
            "run the same `headgate convert` to resume it"
        )
    if (path / "config.json").exists():
        return (
            f"{path} is a checkpoint, not a store: "
            f"run `headgate convert {path.name} {path.name}.headgate` first"
        )
    if not path.exists():
        return f"{path} does not exist"
    return f"{path} is not an expert store: it has no {MANIFEST_FILE}"
