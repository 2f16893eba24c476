"""What memory and kernels give: bytes read per second, and weights multiplied."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from headgate import _native
from headgate.measure.machine import last_level_cache_bytes
from headgate.quant import PLANES, planes_of

MIB = 1 << 20
COLUMNS, GROUP = 4096, 64
#: 16 stands for bfloat16 weights.
KERNEL_BITS = (2, 3, 4, 8, 16)
#: Fits the second-level cache of one core.
CACHED_BYTES = MIB
CACHED_CALLS = 40


@dataclass
class MemoryRate:
    """Bytes per second that a number of threads read; median over rounds."""

    threads: int
    samples: list[float] = field(default_factory=list)

    @property
    def bytes_per_s(self) -> float:
        return statistics.median(self.samples)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "bytes_per_s": self.bytes_per_s}


@dataclass
class KernelRate:
    """Matrix-vector products with weights of ``bits`` bits; median over rounds.

    Attributes:
        nbytes: of the matrix.
        cached: the matrix fits the cache of one core, and stays there.
        samples: weights per second.
    """

    bits: int
    threads: int
    cached: bool
    nbytes: int
    weights: int
    samples: list[float] = field(default_factory=list)

    @property
    def weights_per_s(self) -> float:
        return statistics.median(self.samples)

    @property
    def bytes_per_s(self) -> float:
        return self.weights_per_s * self.nbytes / self.weights

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **asdict(self),
            "weights_per_s": self.weights_per_s,
            "bytes_per_s": self.bytes_per_s,
        }


class MemoryProbe:
    """Measures reads and products on one buffer larger than the caches.

    Attributes:
        nbytes: of the buffer.
        too_small: memory was too short for twice the last-level cache.
    """

    def __init__(self, threads: int, available: int) -> None:
        wanted = max(256 * MIB, 2 * (last_level_cache_bytes() or 32 * MIB))
        self.nbytes = min(wanted, available // 4) // MIB * MIB
        self.too_small = self.nbytes < wanted
        self._data = _native.AlignedBuffer(max(self.nbytes, MIB), True).array()
        # As pairs of bytes these are ordinary bfloat16 numbers; codes may be anything.
        self._data[:] = 0x3C
        counts = sorted({1, threads, *(2**i for i in range(1, 10) if 2**i < threads)})
        self._pools = {count: _native.ThreadPool(count) for count in counts}
        self._kernels = _native.Kernels()
        self.memory = [MemoryRate(count) for count in counts]
        self.kernels: list[KernelRate] = []
        self._products: list[Callable[[], float]] = []
        for bits in KERNEL_BITS:
            self._add_product(bits, 1, CACHED_BYTES, CACHED_CALLS)
            self._add_product(bits, threads, len(self._data), 1)

    def measure(self) -> None:
        """One round over everything."""
        for rate in self.memory:
            begin = time.perf_counter()
            _native.read_memory(self._pools[rate.threads], self._data)
            rate.samples.append(self._data.nbytes / (time.perf_counter() - begin))
        for kernel, product in zip(self.kernels, self._products, strict=True):
            kernel.samples.append(kernel.weights / product())

    def _add_product(self, bits: int, threads: int, nbytes: int, calls: int) -> None:
        matrix, rows = _matrix(self._data, bits, nbytes)
        self.kernels.append(KernelRate(bits, threads, calls > 1, matrix.nbytes, rows * COLUMNS))
        pool, x = self._pools[threads], np.ones((1, COLUMNS), np.float32)

        def seconds() -> float:
            if calls > 1:
                _native.linear(pool, self._kernels, x, [matrix])  # into the cache
            begin = time.perf_counter()
            for _ in range(calls):
                _native.linear(pool, self._kernels, x, [matrix])
            return (time.perf_counter() - begin) / calls

        self._products.append(seconds)


def _matrix(data: npt.NDArray[np.uint8], bits: int, nbytes: int) -> tuple[_native.Matrix, int]:
    """A matrix of about ``nbytes`` bytes of ``data``, and its rows."""
    if bits == 16:
        rows = max(1, nbytes // (2 * COLUMNS))
        weights = data[: 2 * rows * COLUMNS].view(np.uint16)
        return _native.Matrix.dense(rows, COLUMNS, weights, "bf16"), rows
    blocks, groups = COLUMNS // 64, COLUMNS // GROUP
    widths = [blocks * PLANES[plane][1] for plane in planes_of(bits)]
    rows = max(1, nbytes // (sum(widths) + 4 * groups))
    parts, at = [], 0
    for width in (2 * groups, 2 * groups, *widths):
        parts.append(data[at : at + rows * width])
        at += rows * width
    scales, biases, *planes = parts
    return (
        _native.Matrix.quantized(
            rows,
            COLUMNS,
            GROUP,
            bits,
            bits,
            "bf16",
            scales.view(np.uint16),
            biases.view(np.uint16),
            *planes,
        ),
        rows,
    )
