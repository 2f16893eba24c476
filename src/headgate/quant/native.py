"""The same search as :mod:`headgate.quant.affine`, in C++ on all cores."""

from __future__ import annotations

from headgate import _native
from headgate.quant.affine import AffineMatrix, Floats, assemble, grouped
from headgate.quant.planes import Codes, Planes, planes_of


class Quantizer:
    """Quantises and packs matrices on ``threads`` threads."""

    def __init__(self, threads: int) -> None:
        self._pool = _native.ThreadPool(threads)

    def quantize(
        self, weights: Floats, bits: int, group_size: int, nested: bool = True
    ) -> AffineMatrix:
        """As :func:`headgate.quant.affine.quantize`, to the last bit."""
        groups, columns = grouped(weights, group_size)
        codes, scales, biases = _native.quantize_groups(self._pool, groups, bits, nested)
        return assemble(codes, scales, biases, len(weights), columns, bits, group_size)

    def pack(self, codes: Codes, bits: int) -> Planes:
        """As :func:`headgate.quant.planes.pack`."""
        packed = _native.pack_planes(self._pool, codes, bits)
        return dict(zip(planes_of(bits), packed, strict=True))
