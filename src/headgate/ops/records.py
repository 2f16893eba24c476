"""The matrices inside an expert's record."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headgate.quant import AffineMatrix, Planes, dequantize, planes_of, unpack
from headgate.quant.halves import to_float
from headgate.store.layout import MATRICES, Matrix, RecordLayout

Floats = npt.NDArray[np.float32]


def record_matrices(
    layout: RecordLayout, record: npt.NDArray[np.uint8], bits: int
) -> dict[Matrix, Floats]:
    """The three matrices of a record's prefix, dequantised at ``bits`` bits.

    Args:
        record: uint8 [prefix_bytes(bits)] or longer.

    Returns:
        gate, up [intermediate, hidden] and down [hidden, intermediate], float32.
    """
    return {matrix: _matrix(layout, record, matrix, bits) for matrix in MATRICES}


def _matrix(
    layout: RecordLayout, record: npt.NDArray[np.uint8], matrix: Matrix, bits: int
) -> Floats:
    f = layout.format
    rows, columns = f.shape(matrix)

    def piece(name: str) -> npt.NDArray[np.uint8]:
        offset, nbytes = layout.pieces[matrix, name]
        return record[offset : offset + nbytes].copy()

    if f.bits == 16:
        return to_float(piece("weights").view(np.uint16), f.half).reshape(rows, columns)
    planes: Planes = {plane: piece(plane).reshape(rows, -1) for plane in planes_of(bits)}
    # Codes of fewer bits are the leading bits of the stored ones.
    codes = unpack(planes, bits) << (f.bits - bits)
    scales, biases = (piece(x).view(np.uint16).reshape(rows, -1) for x in ("scales", "biases"))
    stored = AffineMatrix(codes, scales, biases, columns, f.bits, f.group_size, f.half)
    return dequantize(stored, bits)
