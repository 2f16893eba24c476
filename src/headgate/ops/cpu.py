"""The operations on the CPU, in C++; NumPy arrays in and out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from headgate import _native
from headgate.ops.interface import (
    AttentionShape,
    Bytes,
    DeltaShape,
    ExpertBatch,
    ExpertKernel,
    Ints,
    PlainWeight,
    QuantWeight,
    Weight,
)
from headgate.ops.reference import rotary_angles
from headgate.ops.weights import as_float
from headgate.store.layout import MATRICES, RecordLayout

Floats = npt.NDArray[np.float32]

DELTA_CHUNK = 64


@dataclass(frozen=True)
class CpuMatrix:
    """A weight and what the native products need of it."""

    weight: Weight
    native: _native.Matrix


class CpuOps:
    """See :class:`headgate.ops.interface.Ops`.

    Args:
        threads: of the pool that every operation runs on.
        exact: float32 instead of int8 activations against quantised weights.
        isa: instruction set, the best one of this CPU unless given.
    """

    name = "cpu"

    def __init__(self, threads: int, exact: bool = False, isa: str = "") -> None:
        self._pool = _native.ThreadPool(threads)
        self._products = _native.Kernels(isa)
        self._floats = _native.FloatOps(isa)
        self._exact = exact
        self.isa = self._products.name

    def tensor(self, values: Floats) -> Floats:
        return np.ascontiguousarray(values, np.float32)

    def matrix(self, weight: Weight) -> CpuMatrix:
        if isinstance(weight, PlainWeight):
            data = np.ascontiguousarray(weight.data)
            rows, columns = data.shape
            native = _native.Matrix.dense(rows, columns, data.reshape(-1), weight.dtype)
            return CpuMatrix(PlainWeight(data, weight.dtype), native)
        return CpuMatrix(weight, _quantized(weight))

    def zeros(self, *shape: int) -> Floats:
        # Whole pages, so that rows start on a cache line, and fresh from the kernel,
        # so that a long context takes memory only as it fills.
        if 0 in shape:
            return np.zeros(shape, np.float32)
        return _native.AlignedBuffer(4 * math.prod(shape)).array().view(np.float32).reshape(shape)

    def empty(self, *shape: int) -> Floats:
        return np.empty(shape, np.float32)

    def embed(self, table: CpuMatrix, ids: Sequence[int]) -> Floats:
        return as_float(table.weight, np.asarray(ids))

    def linear(self, x: Floats, *matrices: CpuMatrix, exact: bool = False) -> tuple[Floats, ...]:
        natives = [matrix.native for matrix in matrices]
        return tuple(_native.linear(self._pool, self._products, x, natives, exact or self._exact))

    def rms_norm(self, x: Floats, weight: Floats, eps: float) -> Floats:
        return self._floats.rms_norm(self._pool, x, weight, eps)

    def silu_mul(self, gate: Floats, up: Floats) -> Floats:
        return self._floats.silu_mul(self._pool, gate, up)

    def add(self, x: Floats, y: Floats) -> Floats:
        return x + y

    def add_gated(self, base: Floats, y: Floats, gate: Floats) -> Floats:
        return self._floats.add_scaled(self._pool, base, y, gate.reshape(-1))

    def route(self, logits: Floats, k: int) -> tuple[Ints, Floats]:
        return self._floats.route(self._pool, logits, k)

    def attention(
        self,
        shape: AttentionShape,
        q: Floats,
        k: Floats,
        v: Floats,
        q_norm: Floats,
        k_norm: Floats,
        k_cache: Floats,
        v_cache: Floats,
        start: int,
    ) -> Floats:
        cos, sin = _angles(start, len(q), shape.rotary_dim, shape.rope_theta)
        return self._floats.attention(
            self._pool,
            q,
            k,
            v,
            k_cache,
            v_cache,
            start,
            cos,
            sin,
            q_norm,
            k_norm,
            eps=shape.eps,
            gated=shape.gated,
        )

    def delta_net(
        self,
        shape: DeltaShape,
        qkv: Floats,
        z: Floats,
        b: Floats,
        a: Floats,
        conv_weight: Floats,
        decay: Floats,
        dt_bias: Floats,
        norm: Floats,
        conv_state: Floats,
        state: Floats,
    ) -> Floats:
        return self._floats.delta_net(
            self._pool,
            qkv,
            z,
            b,
            a,
            conv_weight,
            decay,
            dt_bias,
            norm,
            conv_state,
            state,
            eps=shape.eps,
            chunk=DELTA_CHUNK,
        )

    def expert_kernel(self, layout: RecordLayout, bits: int) -> ExpertKernel:
        native = _expert_layout(layout, bits)

        def run(arena: Bytes, batch: ExpertBatch, x: Floats, y: Floats) -> None:
            _native.expert_ffn(
                self._pool,
                self._products,
                native,
                arena,
                batch.offsets,
                batch.splits,
                batch.token_of,
                batch.out_row,
                x,
                y,
                self._exact,
            )

        return run

    def combine(self, y: Floats, weights: Floats, base: Floats) -> Floats:
        return _native.combine(self._pool, y, weights, base)

    def last_row(self, x: Floats) -> Floats:
        return x[-1:]

    def to_numpy(self, x: Floats) -> Floats:
        return x


@lru_cache(maxsize=4)
def _angles(start: int, tokens: int, rotary_dim: int, theta: float) -> tuple[Floats, Floats]:
    # Every attention layer of a step asks for the same ones.
    return rotary_angles(np.arange(start, start + tokens), rotary_dim, theta)


def _quantized(weight: QuantWeight) -> _native.Matrix:
    rows, columns = weight.shape
    planes = {plane: data.reshape(-1) for plane, data in weight.planes.items()}
    return _native.Matrix.quantized(
        rows,
        columns,
        weight.group_size,
        weight.bits,
        weight.bits,
        weight.half,
        weight.scales.reshape(-1),
        weight.biases.reshape(-1),
        planes["q2"],
        planes.get("q3"),
        planes.get("q4"),
        planes.get("q8"),
    )


def _expert_layout(layout: RecordLayout, bits: int) -> _native.ExpertLayout:
    f = layout.format
    offsets: dict[str, dict[str, int]] = {matrix: {} for matrix in MATRICES}
    for (matrix, piece), (offset, _) in layout.pieces.items():
        offsets[matrix]["data" if piece == "weights" else piece] = offset
    common: dict[str, Any] = {
        "hidden": f.hidden_size,
        "inter": f.intermediate_size,
        "prefix_bytes": layout.prefix_bytes(bits),
        **offsets,
    }
    if f.bits == 16:
        return _native.ExpertLayout(kind=f.half, **common)
    return _native.ExpertLayout(
        kind="quant",
        group=f.group_size,
        stored_bits=f.bits,
        used_bits=bits,
        half=f.half,
        **common,
    )
