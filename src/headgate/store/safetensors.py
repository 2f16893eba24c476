"""The safetensors container, read with limits and written with alignment.

The `safetensors` library has no NumPy type for bfloat16 and does not tell where
a tensor lies in the file, which direct reads need; the container is small enough
to read here. Layout: an 8-byte little-endian header length, a JSON header
``{name: {dtype, shape, data_offsets}}``, and the tensors without holes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np
import numpy.typing as npt

MAX_HEADER = 100_000_000
MAX_RANK = 8

#: dtype name -> bytes per element
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip

#: dtype name -> NumPy type that holds the same bytes
STORAGE: dict[str, npt.DTypeLike] = {
    "U8": np.uint8, "U16": np.uint16, "F16": np.uint16, "BF16": np.uint16,
    "U32": np.uint32, "I32": np.int32, "F32": np.float32,
}  # fmt: skip


class HeaderError(ValueError):
    """The file is not a well-formed safetensors file; the message says why."""


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: bytes [start, end) after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    """The tensors of a file in file order; data begins at byte ``data_start``."""

    tensors: dict[str, TensorInfo]
    data_start: int


def read_header(path: Path) -> Header:
    """Read and check the header of ``path``.

    Raises:
        HeaderError: lengths, types, shapes or offsets do not fit each other or
            the size of the file.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return parse_header(file, size)


def parse_header(file: BinaryIO, size: int) -> Header:
    """As :func:`read_header`, from the beginning of a file of ``size`` bytes."""
    prefix = file.read(8)
    if len(prefix) < 8:
        raise HeaderError("the file is shorter than the 8-byte header length")
    length = int.from_bytes(prefix, "little")
    if length > min(MAX_HEADER, size - 8):
        raise HeaderError(f"the header claims {length} bytes of a file of {size}")
    try:
        raw = json.loads(file.read(length).decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise HeaderError("the header is not valid JSON") from None
    if not isinstance(raw, dict):
        raise HeaderError("the header is not a JSON object")
    raw.pop("__metadata__", None)
    tensors = {str(name): _tensor(name, entry) for name, entry in raw.items()}
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)))
    at = 0
    for name, info in ordered.items():
        if info.start != at:
            raise HeaderError(f"tensor {name} starts at byte {info.start}, expected {at}")
        at = info.end
    if at != size - 8 - length:
        raise HeaderError(f"tensors take {at} bytes, the file has {size - 8 - length} for them")
    return Header(ordered, 8 + length)


def _tensor(name: str, entry: Any) -> TensorInfo:
    if not isinstance(entry, dict):
        raise HeaderError(f"the entry of tensor {name} is not an object")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise HeaderError(f"tensor {name} has unknown dtype {dtype!r}")
    if not _naturals(shape) or len(shape) > MAX_RANK:
        raise HeaderError(f"tensor {name} has no valid shape")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise HeaderError(f"tensor {name} has no valid data_offsets")
    nbytes = math.prod(shape) * ITEM_BYTES[dtype]
    if nbytes != offsets[1] - offsets[0]:
        raise HeaderError(
            f"tensor {name} of shape {shape} and dtype {dtype} needs {nbytes} bytes, "
            f"its offsets give {offsets[1] - offsets[0]}"
        )
    return TensorInfo(dtype, tuple(shape), *offsets)


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(x) is int and 0 <= x < 1 << 62 for x in value)


def build_header(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], alignment: int = 4096
) -> tuple[bytes, Header]:
    """Header bytes for tensors to be written in this order.

    The header is padded with spaces so that the data begin on a multiple of
    ``alignment``.
    """
    entries: dict[str, Any] = {}
    infos: dict[str, TensorInfo] = {}
    at = 0
    for name, (dtype, shape) in tensors.items():
        end = at + math.prod(shape) * ITEM_BYTES[dtype]
        infos[name] = TensorInfo(dtype, shape, at, end)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % alignment)
    return len(text).to_bytes(8, "little") + text, Header(infos, 8 + len(text))


def view(info: TensorInfo, data: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """The bytes [start, end) of ``data`` as the tensor's storage type and shape."""
    raw = data[info.start : info.end]
    return raw.view(STORAGE[info.dtype]).reshape(info.shape)


def file_order(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]],
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Tensors ordered so that each one starts on a multiple of its element size,
    and large ones on a cache line: sizes that are multiples of 64 come first."""

    def key(item: tuple[str, str, tuple[int, ...]]) -> int:
        nbytes = math.prod(item[2]) * ITEM_BYTES[item[1]]
        return -math.gcd(nbytes, 64)

    return {name: (dtype, shape) for name, dtype, shape in sorted(tensors, key=key)}
