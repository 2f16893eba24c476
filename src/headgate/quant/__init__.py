"""Weights to codes and back: the quantised format's arithmetic.

``affine`` and ``planes`` are the NumPy reference, ``native`` the fast search.
"""

from headgate.quant.affine import AffineMatrix, dequantize, quantize
from headgate.quant.halves import Half
from headgate.quant.native import Quantizer
from headgate.quant.planes import PLANES, Planes, pack, padded_columns, planes_of, unpack

__all__ = [
    "PLANES",
    "AffineMatrix",
    "Half",
    "Planes",
    "Quantizer",
    "dequantize",
    "pack",
    "padded_columns",
    "planes_of",
    "quantize",
    "unpack",
]
