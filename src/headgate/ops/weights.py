"""From the tensors of a store to the weights that operations take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from headgate.ops.interface import PlainWeight, QuantWeight, Weight
from headgate.quant import AffineMatrix, dequantize, planes_of, unpack
from headgate.quant.halves import to_float
from headgate.store.manifest import DenseMatrix


def quant_weight(
    name: str, matrix: DenseMatrix, tensors: Mapping[str, npt.NDArray[Any]]
) -> QuantWeight:
    """The quantised matrix ``name`` of a store's dense tensors."""
    return QuantWeight(
        matrix.shape,
        matrix.bits,
        matrix.group_size,
        matrix.half,
        tensors[f"{name}.scales"],
        tensors[f"{name}.biases"],
        {plane: tensors[f"{name}.{plane}"] for plane in planes_of(matrix.bits)},
    )


def plain_weight(data: npt.NDArray[Any], dtype: str) -> PlainWeight:
    """A tensor of safetensors type ``dtype``: F32, BF16 or F16."""
    kinds = {"F32": "f32", "BF16": "bf16", "F16": "f16"}
    return PlainWeight(data, kinds[dtype])  # type: ignore[arg-type]


def as_float(weight: Weight, rows: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.float32]:
    """The values as float32, all or some rows."""
    if isinstance(weight, PlainWeight):
        data = weight.data if rows is None else weight.data[rows]
        if weight.dtype == "f32":
            return np.ascontiguousarray(data, np.float32)
        return to_float(np.ascontiguousarray(data), weight.dtype)
    planes, scales, biases = weight.planes, weight.scales, weight.biases
    if rows is not None:
        planes = {plane: data[rows] for plane, data in planes.items()}
        scales, biases = scales[rows], biases[rows]
    codes = unpack(planes, weight.bits)
    columns = weight.shape[1]
    return dequantize(
        AffineMatrix(codes, scales, biases, columns, weight.bits, weight.group_size, weight.half)
    )
