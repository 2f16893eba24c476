"""The operations that models and the expert stream are written in.

Arrays are opaque: what one operation returns, only operations of the same backend
take. All activations are float32 with one row per token, written [T, ...] below.
States are changed in place; everything else is a new array.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from headgate.quant import Half, Planes
from headgate.store.layout import RecordLayout

Array = Any
Ints = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class QuantWeight:
    """A matrix [rows, columns] as affine codes; see :mod:`headgate.quant`."""

    shape: tuple[int, int]
    bits: int
    group_size: int
    half: Half
    scales: npt.NDArray[np.uint16]
    biases: npt.NDArray[np.uint16]
    planes: Planes


@dataclass(frozen=True)
class PlainWeight:
    """A tensor of floats; 16-bit ones are bit patterns in uint16."""

    data: npt.NDArray[Any]
    dtype: Literal["f32", "bf16", "f16"]


Weight = QuantWeight | PlainWeight


@dataclass(frozen=True)
class AttentionShape:
    """Grouped-query attention with normalised, partly rotated queries and keys.

    Attributes:
        gated: each query head comes with head_dim gate values behind its
            head_dim query values; the output is multiplied by their sigmoid.
        rotary_dim: leading dimensions of a head that are rotated.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    rope_theta: float
    eps: float
    gated: bool


@dataclass(frozen=True)
class DeltaShape:
    """Gated delta rule (Yang et al., *Gated Delta Networks*, 2024)."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    eps: float


@dataclass(frozen=True)
class ExpertBatch:
    """Which rows go through which expert.

    Attributes:
        offsets: [n], where each expert's record starts in the arena.
        splits: int32 [n + 1]; expert i has the pairs splits[i] .. splits[i+1].
        token_of: int32 [pairs], row of x that a pair reads.
        out_row: int32 [pairs], row of y that a pair writes.
    """

    offsets: list[int]
    splits: Ints
    token_of: Ints
    out_row: Ints


class ExpertKernel(Protocol):
    """The feed-forward networks of experts whose records lie in memory."""

    def __call__(self, arena: Bytes, batch: ExpertBatch, x: Array, y: Array) -> None:
        """y[out_row] = down(silu(gate x) * up x) for every pair of ``batch``.

        Args:
            arena: uint8, holds the records' prefixes.
            x: [T, hidden]; y: [T * K, hidden], changed in place.
        """


class Ops(Protocol):
    """One backend."""

    name: str

    def tensor(self, values: npt.NDArray[np.float32]) -> Array:
        """A constant: norm weights, decay rates."""

    def matrix(self, weight: Weight) -> Array:
        """Weights [rows, columns] for :meth:`linear` and :meth:`embed`."""

    def zeros(self, *shape: int) -> Array:
        """A float32 state, all zeros; memory is taken only when it is written."""

    def empty(self, *shape: int) -> Array:
        """A float32 array to be overwritten."""

    def embed(self, table: Array, ids: Sequence[int]) -> Array:
        """Rows of a matrix as float32 [T, columns]."""

    def linear(self, x: Array, *matrices: Array, exact: bool = False) -> tuple[Array, ...]:
        """x @ W.T for each W [rows, columns]; x [T, columns].

        ``exact`` keeps activations in float32 even against quantised weights; for
        products that decide, such as routers.
        """

    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array:
        """x * rsqrt(mean(x**2) + eps) * weight over the last axis."""

    def silu_mul(self, gate: Array, up: Array) -> Array:
        """silu(gate) * up."""

    def add(self, x: Array, y: Array) -> Array:
        """x + y."""

    def add_gated(self, base: Array, y: Array, gate: Array) -> Array:
        """base + y * sigmoid(gate); base, y [T, H], gate [T, 1]."""

    def route(self, logits: Array, k: int) -> tuple[Ints, Array]:
        """Softmax over all experts, the k largest, divided by their sum.

        Args:
            logits: [T, E].

        Returns:
            ids int32 [T, k], best first, ties to the lower id; weights [T, k].
        """

    def attention(
        self,
        shape: AttentionShape,
        q: Array,
        k: Array,
        v: Array,
        q_norm: Array,
        k_norm: Array,
        k_cache: Array,
        v_cache: Array,
        start: int,
    ) -> Array:
        """Causal attention of T new tokens at positions start .. start + T.

        Args:
            q: [T, heads * head_dim], or twice that if gated; k, v: [T, kv_heads * head_dim].
            k_cache, v_cache: [capacity, kv_heads, head_dim]; the new rows are written.

        Returns:
            [T, heads * head_dim].
        """

    def delta_net(
        self,
        shape: DeltaShape,
        qkv: Array,
        z: Array,
        b: Array,
        a: Array,
        conv_weight: Array,
        decay: Array,
        dt_bias: Array,
        norm: Array,
        conv_state: Array,
        state: Array,
    ) -> Array:
        """Causal convolution, gated delta rule, gated norm.

        Args:
            qkv: [T, C] with C = 2 * key_heads * key_dim + value_heads * value_dim.
            z: [T, value_heads * value_dim]; b, a: [T, value_heads].
            conv_weight: [C, W], oldest first; decay: [value_heads], -exp(A_log).
            conv_state: [C, W - 1]; state: [value_heads, key_dim, value_dim].

        Returns:
            [T, value_heads * value_dim].
        """

    def expert_kernel(self, layout: RecordLayout, bits: int) -> ExpertKernel:
        """Experts whose records are of ``layout``, read at ``bits`` bits."""

    def combine(self, y: Array, weights: Array, base: Array) -> Array:
        """base + sum over k, in order, of weights[t, k] * y[t * K + k]; [T, H]."""

    def last_row(self, x: Array) -> Array:
        """The last token's row, [1, ...]."""

    def to_numpy(self, x: Array) -> npt.NDArray[np.float32]:
        """The values as NumPy float32."""
