"""16-bit floats without a 16-bit float type: bfloat16 and float16 bit patterns."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Half = Literal["bf16", "f16"]


def to_float(bits: npt.NDArray[np.uint16], half: Half) -> npt.NDArray[np.float32]:
    """Bit patterns to float32, exactly."""
    if half == "f16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def from_float(values: npt.NDArray[np.float32], half: Half) -> npt.NDArray[np.uint16]:
    """float32 to bit patterns, rounded to nearest even."""
    values = np.ascontiguousarray(values, np.float32)
    if half == "f16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    word = values.view(np.uint32)
    rounded = (word + (((word >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    # The carry of rounding must not turn a NaN into an infinity.
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def round_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The nearest bfloat16 values, as float32."""
    return to_float(from_float(values, "bf16"), "bf16")
