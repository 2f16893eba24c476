"""Weights to codes and back: the quantised format's arithmetic.

``affine`` and ``planes`` are the NumPy reference, ``native`` the fast search;
``calibrated`` quantises for known inputs, whose second moments are ``moments``.
"""

from headgate.quant.affine import AffineMatrix, dequantize, quantize
from headgate.quant.calibrated import quantize_calibrated
from headgate.quant.halves import Half
from headgate.quant.moments import Moments
from headgate.quant.native import Quantizer
from headgate.quant.planes import PLANES, Planes, pack, padded_columns, planes_of, unpack

__all__ = [
    "PLANES",
    "AffineMatrix",
    "Half",
    "Moments",
    "Planes",
    "Quantizer",
    "dequantize",
    "pack",
    "padded_columns",
    "planes_of",
    "quantize",
    "quantize_calibrated",
    "unpack",
]
