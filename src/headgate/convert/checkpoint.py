"""A folder of safetensors files and a ``config.json``, as the Hub and mlx-lm write it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headgate._native import crc32c
from headgate.errors import CheckpointError
from headgate.quant.halves import to_float
from headgate.store import safetensors
from headgate.store.safetensors import Header, HeaderError, TensorInfo

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

MAX_CONFIG = 16 << 20
MAX_INDEX = 256 << 20
#: Reads from here on are dropped from the page cache: they are not needed again.
LARGE_READ = 1 << 20
#: Bytes of tensor data at each end of a file that identify it.
SAMPLE = 64 << 10

FLOAT_DTYPES = ("BF16", "F16", "F32")
Raw = npt.NDArray[Any]


class Checkpoint:
    """An opened checkpoint: its headers are read, its tensors are read on request.

    Attributes:
        path: the folder.
        config: ``config.json``.
        headers: file name -> its header, in the order of names.
        tensors: tensor name -> (file name, where it lies).
    """

    def __init__(self, path: Path, config: dict[str, Any], headers: Mapping[str, Header]) -> None:
        self.path = path
        self.config = config
        self.headers = dict(headers)
        self.tensors: dict[str, tuple[str, TensorInfo]] = {}
        for file, header in headers.items():
            for name, info in header.tensors.items():
                if name in self.tensors:
                    raise CheckpointError(
                        f"tensor {name} is in two files, {self.tensors[name][0]} and {file}"
                    )
                self.tensors[name] = (file, info)

    @classmethod
    def open(cls, path: Path | str) -> Checkpoint:
        """Read the configuration, the index and the header of every file.

        Raises:
            CheckpointError: something is missing, malformed or contradictory; the
                message names the file.
        """
        path = Path(path)
        try:
            if not path.is_dir():
                what = "is not a folder" if path.exists() else "does not exist"
                raise CheckpointError(f"checkpoint {path} {what}")
            if not (path / CONFIG_FILE).exists():
                raise CheckpointError(f"{path} is not a checkpoint: it has no {CONFIG_FILE}")
            config = _read_object(path / CONFIG_FILE, MAX_CONFIG)
            index = _read_index(path)
            headers = {file: _read_header(path / file) for file in _files(path, index)}
        except OSError as error:
            raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from None
        checkpoint = cls(path, config, headers)
        for name, file in index.items():
            if name not in headers[file].tensors:
                raise CheckpointError(f"{INDEX_FILE} names tensor {name}, {file} lacks it")
        return checkpoint

    def read(self, name: str, start_row: int = 0, rows: int | None = None) -> Raw:
        """Read rows [start_row, start_row + rows) of the first axis (default: all).

        The memory is fresh, not a mapping of the file: mapped pages would count as
        memory of this process.

        Returns:
            array [rows, ...] of the storage type of the tensor's dtype (bit patterns
            of 16-bit floats as uint16).

        Raises:
            CheckpointError: the file cannot be read, ends early, or the dtype is one
                that no supported checkpoint holds.
        """
        file, info = self.tensors[name]
        if info.dtype not in safetensors.STORAGE:
            raise unsupported_dtype(name, info.dtype)
        shape = info.shape or (1,)
        rows = shape[0] - start_row if rows is None else rows
        if not 0 <= start_row <= start_row + rows <= shape[0]:
            raise IndexError(f"rows {start_row}..{start_row + rows} of {shape[0]} of {name}")
        row_bytes = math.prod(shape[1:]) * safetensors.ITEM_BYTES[info.dtype]
        offset = self.headers[file].data_start + info.start + start_row * row_bytes
        raw = self._read_bytes(file, offset, rows * row_bytes)
        return raw.view(safetensors.STORAGE[info.dtype]).reshape(
            (rows, *shape[1:]) if info.shape else ()
        )

    def _read_bytes(self, file: str, offset: int, nbytes: int) -> npt.NDArray[np.uint8]:
        data = np.empty(nbytes, np.uint8)
        target, got = data.data, 0
        try:
            with (self.path / file).open("rb", buffering=0) as handle:
                handle.seek(offset)
                while got < nbytes:
                    count = handle.readinto(target[got:])
                    if not count:
                        raise CheckpointError(
                            f"{file} ends early: {got} of {nbytes} bytes at byte {offset}"
                        )
                    got += count
                if nbytes >= LARGE_READ and hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(handle.fileno(), offset, nbytes, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path / file}: {error.strerror}") from None
        return data

    def fingerprint(self) -> dict[str, dict[str, int]]:
        """What identifies each file: its size, the CRC-32C of its header (names, dtypes,
        shapes and offsets), and that of the first and last 64 KiB of its data (two
        checkpoints of one architecture have equal headers)."""
        return {file: self._fingerprint(file, header) for file, header in self.headers.items()}

    def _fingerprint(self, file: str, header: Header) -> dict[str, int]:
        size = header.data_start + sum(info.nbytes for info in header.tensors.values())
        first = self._read_bytes(file, 0, min(size, header.data_start + SAMPLE))
        last = self._read_bytes(
            file, max(header.data_start, size - SAMPLE), min(SAMPLE, size - header.data_start)
        )
        return {
            "nbytes": size,
            "header_crc32c": crc32c(first[: header.data_start]),
            "sample_crc32c": crc32c(last, crc32c(first[header.data_start :])),
        }


def to_float32(raw: Raw, dtype: str) -> npt.NDArray[np.float32]:
    """Stored values of ``dtype`` BF16, F16 or F32 as float32, exactly."""
    if dtype == "F32":
        return raw.astype(np.float32, copy=False)
    return to_float(raw, "bf16" if dtype == "BF16" else "f16")


def require_float(name: str, dtype: str) -> None:
    """Raise :class:`CheckpointError` unless tensor ``name`` is of a plain float type."""
    if dtype not in FLOAT_DTYPES:
        raise unsupported_dtype(name, dtype)


def unsupported_dtype(name: str, dtype: str) -> CheckpointError:
    """The error for a tensor of a type that cannot be converted."""
    return CheckpointError(
        f"tensor {name} has dtype {dtype}, which is not supported yet; "
        f"supported: {', '.join(FLOAT_DTYPES)} and MLX affine"
    )


def _read_object(path: Path, limit: int) -> dict[str, Any]:
    try:
        if path.stat().st_size > limit:
            raise CheckpointError(f"{path.name} has more than {limit} bytes")
        raw = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is not valid JSON") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return raw


def _read_index(path: Path) -> dict[str, str]:
    if not (path / INDEX_FILE).exists():
        return {}
    index = _read_object(path / INDEX_FILE, MAX_INDEX).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise CheckpointError(f"{INDEX_FILE} has no weight_map")
    for name, file in index.items():
        if not isinstance(file, str) or not file or Path(file).name != file or "\0" in file:
            raise CheckpointError(f"{INDEX_FILE} gives no file name for tensor {name}")
    return index


def _files(path: Path, index: Mapping[str, str]) -> list[str]:
    if index:
        for name, file in index.items():
            if not (path / file).is_file():
                raise CheckpointError(f"{file} is missing; {INDEX_FILE} has tensor {name} in it")
        return sorted(set(index.values()))
    if (path / SINGLE_FILE).is_file():
        return [SINGLE_FILE]
    found = sorted(p.name for p in path.glob("*.safetensors") if not p.name.startswith("."))
    if not found:
        raise CheckpointError(f"{path} has a {CONFIG_FILE} but no *.safetensors files")
    return found


def _read_header(path: Path) -> Header:
    try:
        return safetensors.read_header(path)
    except HeaderError as error:
        raise CheckpointError(f"{path.name} is not a whole safetensors file: {error}") from None
