"""What a checkpoint becomes: the interface between its formats and the store."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from headgate.convert.calibration import Calibration
from headgate.convert.checkpoint import Checkpoint, Raw, to_float32
from headgate.convert.names import Names
from headgate.errors import CheckpointError, UsageError
from headgate.models import TensorSpec
from headgate.quant import AffineMatrix, padded_columns, planes_of
from headgate.quant.affine import Floats
from headgate.quant.planes import GROUP_SIZES, PLANES
from headgate.store.layout import STORED_BITS, ExpertFormat
from headgate.store.manifest import DenseMatrix
from headgate.store.record import Expert
from headgate.store.safetensors import TensorInfo

DENSE_BITS = (8, 16)
#: bits of an exponent of all ones: NaN or infinity
_EXPONENT = {"BF16": 0x7F80, "F16": 0x7C00}


@dataclass(frozen=True)
class ConvertOptions:
    """How to convert; None is the default, or whatever a quantised source has.

    Attributes:
        expert_bits: 2, 3, 4 (default), 8, or 16 for unquantised experts.
        dense_bits: 8 (default), or 16 to keep projections as they are.
        group_size: weights that share a scale: 32, 64 (default) or 128.
        threads: for quantising; 0 for all processors. Does not change the result.
        calibration: file of ``headgate calibrate``: experts are quantised for the inputs
            that they get.
    """

    expert_bits: int | None = None
    dense_bits: int | None = None
    group_size: int | None = None
    threads: int = 0
    calibration: Path | None = None

    def __post_init__(self) -> None:
        for what, value, allowed in (
            ("expert bits", self.expert_bits, STORED_BITS),
            ("dense bits", self.dense_bits, DENSE_BITS),
            ("group size", self.group_size, GROUP_SIZES),
        ):
            if value is not None and value not in allowed:
                raise UsageError(f"{what} {value} is none of {', '.join(map(str, allowed))}")
        if not 0 <= self.threads <= 1024:
            raise UsageError(f"{self.threads} threads is outside 0..1024")

    @property
    def thread_count(self) -> int:
        if self.threads:
            return self.threads
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1


@dataclass(frozen=True)
class PlainTensor:
    """A dense tensor that is kept unquantised."""

    dtype: str
    shape: tuple[int, ...]

    def parts(self, name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name -> (dtype, shape) of what ``dense.safetensors`` holds of it."""
        return {name: (self.dtype, self.shape)}


@dataclass(frozen=True)
class CodedTensor:
    """A dense matrix that is kept as affine codes."""

    entry: DenseMatrix

    @property
    def shape(self) -> tuple[int, int]:
        return self.entry.shape

    def parts(self, name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name -> (dtype, shape) of what ``dense.safetensors`` holds of it."""
        e, (rows, columns) = self.entry, self.entry.shape
        padded = padded_columns(columns, e.group_size)
        groups = (e.half.upper(), (rows, padded // e.group_size))
        planes = {
            f"{name}.{plane}": ("U8", (rows, padded // 64 * PLANES[plane][1]))
            for plane in planes_of(e.bits)
        }
        return {**planes, f"{name}.scales": groups, f"{name}.biases": groups}


class Source(Protocol):
    """A checkpoint, as the store will hold it.

    Attributes:
        kind: the source's format, for people and the manifest.
        experts: shape and precision of the experts.
        dense: dense tensor -> how it is kept.
        notes: what the user should know about the result.
        calibration: what experts are quantised for, if they are.
    """

    kind: str
    experts: ExpertFormat
    dense: dict[str, PlainTensor | CodedTensor]
    notes: list[str]
    calibration: Calibration | None

    def expert(self, layer: int, expert: int) -> Expert:
        """The three matrices of one expert.

        Raises:
            CheckpointError: NaN, infinity or unreadable bytes; names the place.
        """

    def dense_rows(self, name: str, start: int, rows: int) -> AffineMatrix | npt.NDArray[Any]:
        """Rows [start, start + rows) of a dense tensor, of the kind that :attr:`dense`
        announces. Raises as :meth:`expert`."""


@dataclass(frozen=True)
class Tensors:
    """A checkpoint's tensors under their names here, checked for NaN and infinity."""

    checkpoint: Checkpoint
    names: Names

    def info(self, name: str) -> TensorInfo:
        return self.checkpoint.tensors[self.names.actual[name]][1]

    def raw(self, name: str, start: int = 0, rows: int | None = None, where: str = "") -> Raw:
        """As :meth:`Checkpoint.read`; ``where`` leads the message about bad values."""
        actual = self.names.actual[name]
        values = self.checkpoint.read(actual, start, rows)
        require_finite(values, self.info(name).dtype, f"{where}tensor {actual}")
        return values

    def plain_rows(
        self, name: str, spec: TensorSpec, start: int, rows: int, add: float = 0
    ) -> npt.NDArray[Any]:
        """Rows of a tensor kept unquantised: [rows, ...] in its own dtype, or in float32
        with ``add`` added when it is a norm or vector."""
        values = self.raw(name, start, rows)
        if spec.role in ("norm", "vector"):
            values = to_float32(values, self.info(name).dtype) + np.float32(add)
        return values.reshape(rows, *spec.shape[1:])

    def float_rows(self, name: str, start: int, rows: int) -> Floats:
        """Rows of a matrix in float32."""
        return to_float32(self.raw(name, start, rows), self.info(name).dtype)

    def plain_format(self, name: str, spec: TensorSpec) -> PlainTensor:
        """How a tensor is kept that is not quantised."""
        small = spec.role in ("norm", "vector")
        return PlainTensor("F32" if small else self.info(name).dtype, spec.shape)


def require_finite(values: Raw, dtype: str, what: str) -> None:
    """Raise :class:`CheckpointError` if stored values of a float dtype hold NaN or infinity."""
    if dtype in _EXPONENT:
        mask = np.uint16(_EXPONENT[dtype])
        bad = bool(((values & mask) == mask).any())
    else:
        bad = dtype == "F32" and not bool(np.isfinite(values).all())
    if bad:
        raise CheckpointError(f"{what} holds NaN or infinity")
