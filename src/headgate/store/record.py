"""An expert's matrices to the bytes of its record, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from headgate.quant import AffineMatrix, Planes, Quantizer, dequantize, planes_of, unpack
from headgate.quant.halves import to_float
from headgate.store.layout import MATRICES, Matrix, RecordLayout

Bytes = npt.NDArray[np.uint8]

#: an expert's matrices: quantised, or at 16 bits plain bit patterns [rows, columns]
Expert = dict[Matrix, AffineMatrix | npt.NDArray[np.uint16]]


def build_record(layout: RecordLayout, expert: Expert, quantizer: Quantizer) -> Bytes:
    """The record uint8 [stride] of an expert whose matrices are in the layout's format;
    the gaps that alignment leaves are zero."""
    record = np.zeros(layout.stride, np.uint8)
    for matrix, weights in expert.items():
        if isinstance(weights, AffineMatrix):
            parts: dict[str, npt.NDArray[Any]] = {
                "scales": weights.scales,
                "biases": weights.biases,
            }
            parts.update(quantizer.pack(weights.codes, weights.bits).items())
        else:
            parts = {"weights": weights}
        for piece, data in parts.items():
            offset, nbytes = layout.pieces[matrix, piece]
            flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
            assert flat.nbytes == nbytes, (matrix, piece, flat.nbytes, nbytes)
            record[offset : offset + nbytes] = flat
    return record


def read_record(layout: RecordLayout, record: Bytes, bits: int) -> Expert:
    """The matrices in the first ``layout.prefix_bytes(bits)`` bytes of a record.

    Returns:
        codes of the stored precision whose bits beyond ``bits`` are zero, to be
        dequantised at ``bits``; uint16 [rows, columns] at 16 bits.
    """
    if bits == 16:
        return {
            m: _piece(layout, record, m, "weights").view(np.uint16).reshape(layout.format.shape(m))
            for m in MATRICES
        }
    return {m: _coded(layout, record, m, bits) for m in MATRICES}


def record_matrices(
    layout: RecordLayout, record: Bytes, bits: int
) -> dict[Matrix, npt.NDArray[np.float32]]:
    """As :func:`read_record`, dequantised: gate, up [intermediate, hidden] and down
    [hidden, intermediate], float32."""
    return {
        matrix: dequantize(found, bits)
        if isinstance(found, AffineMatrix)
        else to_float(found, layout.format.half)
        for matrix, found in read_record(layout, record, bits).items()
    }


def _coded(layout: RecordLayout, record: Bytes, matrix: Matrix, bits: int) -> AffineMatrix:
    f = layout.format
    rows, columns = f.shape(matrix)
    planes: Planes = {
        plane: _piece(layout, record, matrix, plane).reshape(rows, -1) for plane in planes_of(bits)
    }
    scales, biases = (
        _piece(layout, record, matrix, part).view(np.uint16).reshape(rows, -1)
        for part in ("scales", "biases")
    )
    codes = unpack(planes, bits) << np.uint8(f.bits - bits)
    return AffineMatrix(codes, scales, biases, columns, f.bits, f.group_size, f.half)


def _piece(layout: RecordLayout, record: Bytes, matrix: Matrix, piece: str) -> Bytes:
    offset, nbytes = layout.pieces[matrix, piece]
    return record[offset : offset + nbytes]
