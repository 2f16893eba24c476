"""How codes lie in memory: planes of rising precision.

A code of B bits is cut, most significant bits first, into planes, so that the
first planes alone are a coarser code. Per block of 64 weights of a row:

======  =====  ==========================================================  =========
plane   bytes  contents                                                    code bits
======  =====  ==========================================================  =========
``q2``  16     byte i: weights i, i+16, i+32, i+48 in bits 0-1 .. 6-7      top two
``q3``  8      bit j of the little-endian 64-bit word: weight j            next one
``q4``  8      likewise                                                    next one
``q8``  32     byte i: weight i in the low nibble, i+32 in the high one    last four
======  =====  ==========================================================  =========

A plane is named after the precision reached with it. The layout lets a vector
unit expand a block with one broadcast, shift and mask.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Plane = Literal["q2", "q3", "q4", "q8"]
Codes = npt.NDArray[np.uint8]
Planes = dict[Plane, npt.NDArray[np.uint8]]

BLOCK = 64
#: plane -> (bits of precision reached, bytes per block of 64 weights)
PLANES: dict[Plane, tuple[int, int]] = {"q2": (2, 16), "q3": (3, 8), "q4": (4, 8), "q8": (8, 32)}
GROUP_SIZES = (32, 64, 128)
CODE_BITS = (2, 3, 4, 8)


def padded_columns(columns: int, group_size: int) -> int:
    """Columns after padding with zero codes to whole blocks and whole groups."""
    unit = max(BLOCK, group_size)
    return -(-columns // unit) * unit


def planes_of(bits: int) -> tuple[Plane, ...]:
    """The planes that codes of ``bits`` bits consist of."""
    return tuple(plane for plane, (reached, _) in PLANES.items() if reached <= bits)


def pack(codes: Codes, bits: int) -> Planes:
    """Codes to planes.

    Args:
        codes: uint8 [rows, columns], columns a multiple of 64, values below 2**bits.
        bits: 2, 3, 4 or 8.

    Returns:
        plane name -> uint8 [rows, columns / 64 * bytes per block].
    """
    rows, columns = codes.shape
    block = codes.reshape(rows, columns // BLOCK, BLOCK)
    out: Planes = {}
    top = (block >> (bits - 2)).reshape(rows, -1, 4, 16)
    packed = top[:, :, 0] | top[:, :, 1] << 2 | top[:, :, 2] << 4 | top[:, :, 3] << 6
    out["q2"] = packed.astype(np.uint8)
    for plane, reached in (("q3", 3), ("q4", 4)):
        if bits >= reached:
            bit = (block >> (bits - reached)) & 1
            out[plane] = np.packbits(bit, axis=-1, bitorder="little")  # type: ignore[index]
    if bits >= 8:
        low = block & 15
        out["q8"] = (low[:, :, :32] | low[:, :, 32:] << 4).astype(np.uint8)
    return {plane: np.ascontiguousarray(data.reshape(rows, -1)) for plane, data in out.items()}


def unpack(planes: Planes, bits: int) -> Codes:
    """Planes to codes of ``bits`` bits; finer planes than that are not looked at.

    Returns:
        uint8 [rows, padded columns]; the inverse of :func:`pack` when ``bits`` is
        the stored precision, its leading bits when it is less.
    """
    rows = planes["q2"].shape[0]
    one = np.uint8(1)
    packed = planes["q2"].reshape(rows, -1, 16)
    codes = np.concatenate([(packed >> shift) & 3 for shift in (0, 2, 4, 6)], axis=-1)
    for plane, reached in (("q3", 3), ("q4", 4)):
        if bits >= reached:
            data = planes[plane].reshape(rows, -1, 8)  # type: ignore[index]
            codes = codes << one | np.unpackbits(data, axis=-1, bitorder="little")
    if bits >= 8:
        low = planes["q8"].reshape(rows, -1, 32)
        codes = codes << np.uint8(4) | np.concatenate([low & 15, low >> 4], axis=-1)
    return codes.reshape(rows, -1)
