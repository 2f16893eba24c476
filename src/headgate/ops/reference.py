"""The operations in NumPy float32, written as the formulas read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from headgate.ops.interface import (
    AttentionShape,
    Bytes,
    DeltaShape,
    ExpertBatch,
    ExpertKernel,
    Ints,
    Weight,
)
from headgate.ops.weights import as_float
from headgate.store.layout import RecordLayout
from headgate.store.record import record_matrices

Floats = npt.NDArray[np.float32]


def sigmoid(x: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(np.float32(0), -x)), np.float32)


def silu(x: Floats) -> Floats:
    return x * sigmoid(x)


def softplus(x: Floats) -> Floats:
    return np.asarray(np.logaddexp(np.float32(0), x), np.float32)


def softmax(x: Floats) -> Floats:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True), np.float32)


def rms(x: Floats, eps: float) -> Floats:
    return np.asarray(x / np.sqrt(np.mean(x * x, -1, keepdims=True) + np.float32(eps)), np.float32)


def l2(x: Floats) -> Floats:
    return np.asarray(x / np.sqrt(np.sum(x * x, -1, keepdims=True) + np.float32(1e-6)), np.float32)


def rotary_angles(
    positions: npt.NDArray[np.int64], rotary_dim: int, theta: float
) -> tuple[Floats, Floats]:
    """cos and sin [T, rotary_dim / 2] (Su et al., *RoFormer*, 2021)."""
    i = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    frequency = np.float32(1) / np.float32(theta) ** i
    angle = positions.astype(np.float32)[:, None] * frequency
    return np.cos(angle), np.sin(angle)


def rotate(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """Rotate pairs (i, i + half) of the leading dimensions; x [T, heads, head_dim]."""
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    c, s = cos[:, None], sin[:, None]
    return np.concatenate(
        [first * c - second * s, second * c + first * s, x[..., 2 * half :]], axis=-1
    )


class ReferenceOps:
    """See :class:`headgate.ops.interface.Ops`. Matrices are dequantised when loaded."""

    name = "reference"

    def tensor(self, values: Floats) -> Floats:
        return np.ascontiguousarray(values, np.float32)

    def matrix(self, weight: Weight) -> Floats:
        return as_float(weight)

    def zeros(self, *shape: int) -> Floats:
        return np.zeros(shape, np.float32)

    def empty(self, *shape: int) -> Floats:
        return np.zeros(shape, np.float32)

    def embed(self, table: Floats, ids: Sequence[int]) -> Floats:
        return np.asarray(table[np.asarray(ids)])

    def linear(self, x: Floats, *matrices: Floats, exact: bool = False) -> tuple[Floats, ...]:
        return tuple(x @ w.T for w in matrices)

    def rms_norm(self, x: Floats, weight: Floats, eps: float) -> Floats:
        return rms(x, eps) * weight

    def silu_mul(self, gate: Floats, up: Floats) -> Floats:
        return silu(gate) * up

    def add(self, x: Floats, y: Floats) -> Floats:
        return x + y

    def add_gated(self, base: Floats, y: Floats, gate: Floats) -> Floats:
        return base + y * sigmoid(gate)

    def route(self, logits: Floats, k: int) -> tuple[Ints, Floats]:
        p = softmax(logits)
        ids = np.argsort(-p, axis=-1, kind="stable")[:, :k]
        chosen = np.take_along_axis(p, ids, -1)
        return ids.astype(np.int32), chosen / chosen.sum(-1, keepdims=True)

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
        T, heads, kv, hd = len(q), shape.heads, shape.kv_heads, shape.head_dim
        q = q.reshape(T, heads, -1)
        q, gate = q[..., :hd], q[..., hd:]
        cos, sin = rotary_angles(np.arange(start, start + T), shape.rotary_dim, shape.rope_theta)
        q = rotate(rms(q, shape.eps) * q_norm, cos, sin)
        k_cache[start : start + T] = rotate(rms(k.reshape(T, kv, hd), shape.eps) * k_norm, cos, sin)
        v_cache[start : start + T] = v.reshape(T, kv, hd)
        keys, values = k_cache[: start + T], v_cache[: start + T]
        q = q.reshape(T, kv, heads // kv, hd)
        scores = np.einsum("tghd,sgd->ghts", q, keys) * np.float32(hd**-0.5)
        future = np.arange(start + T) > np.arange(start, start + T)[:, None]
        scores = np.where(future, np.float32(-np.inf), scores)
        out = np.einsum("ghts,sgd->tghd", softmax(scores), values).reshape(T, heads, hd)
        if shape.gated:
            out = out * sigmoid(gate)
        return np.ascontiguousarray(out.reshape(T, heads * hd))

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
        T, width = len(qkv), conv_weight.shape[1]
        nk, nv, dk, dv = shape.key_heads, shape.value_heads, shape.key_dim, shape.value_dim
        window = np.concatenate([conv_state.T, qkv])
        conv_state[:] = window[T:].T
        taps = [window[i : i + T] * conv_weight[:, i] for i in range(width)]
        c = silu(np.sum(taps, axis=0))
        q, k, v = np.split(c, [nk * dk, 2 * nk * dk], axis=1)
        q = l2(q.reshape(T, nk, dk)) / np.sqrt(np.float32(dk))
        q, k = (np.repeat(x, nv // nk, axis=1) for x in (q, l2(k.reshape(T, nk, dk))))
        v = v.reshape(T, nv, dv)
        beta, g = sigmoid(b), decay * softplus(a + dt_bias)
        out = np.empty((T, nv, dv), np.float32)
        for t in range(T):
            state *= np.exp(g[t])[:, None, None]
            u = (v[t] - np.einsum("hkv,hk->hv", state, k[t])) * beta[t][:, None]
            state += k[t][:, :, None] * u[:, None, :]
            out[t] = np.einsum("hkv,hk->hv", state, q[t])
        out = rms(out, shape.eps) * norm * silu(z.reshape(T, nv, dv))
        return out.reshape(T, nv * dv)

    def expert_kernel(self, layout: RecordLayout, bits: int) -> ExpertKernel:
        def run(arena: Bytes, batch: ExpertBatch, x: Floats, y: Floats) -> None:
            for i, offset in enumerate(batch.offsets):
                record = arena[offset : offset + layout.prefix_bytes(bits)]
                w = record_matrices(layout, record, bits)
                pairs = slice(batch.splits[i], batch.splits[i + 1])
                rows = x[batch.token_of[pairs]]
                hidden = silu(rows @ w["gate"].T) * (rows @ w["up"].T)
                y[batch.out_row[pairs]] = hidden @ w["down"].T

        return run

    def combine(self, y: Floats, weights: Floats, base: Floats) -> Floats:
        out = base.copy()
        pairs = y.reshape(*weights.shape, -1)
        for k in range(weights.shape[1]):
            out += weights[:, k, None] * pairs[:, k]
        return out

    def last_row(self, x: Floats) -> Floats:
        return x[-1:]

    def to_numpy(self, x: Floats) -> Floats:
        return x


def delta_rule_chunk(
    q: Floats, k: Floats, v: Floats, g: Floats, beta: Floats, state: Floats
) -> Floats:
    """The delta rule for one chunk of one head, without a loop over its tokens.

    With G the running sum of g and D[i, j] = exp(G_i - G_j) for j <= i::

        A  = strictly lower (beta k k^T * D)
        (I + A) u = beta v,   (I + A) w = beta exp(G) k
        v' = u - w S
        o  = exp(G) q S + lower(q k^T * D) v'
        S <- exp(G_n) S + (exp(G_n - G) k)^T v'

    Args:
        q, k: [n, key_dim]; v: [n, value_dim]; g, beta: [n].
        state: [key_dim, value_dim], changed in place.

    Returns:
        [n, value_dim]; the same as ``n`` steps of the recurrence.
    """
    n = len(q)
    G = np.cumsum(g)
    D = np.tril(np.exp(np.tril(G[:, None] - G[None, :])))
    A = np.tril(beta[:, None] * (k @ k.T) * D, -1)
    inverse = np.linalg.inv(np.eye(n, dtype=np.float32) + A)
    u = inverse @ (beta[:, None] * v)
    w = inverse @ ((beta * np.exp(G))[:, None] * k)
    fresh = u - w @ state
    out = (np.exp(G)[:, None] * q) @ state + np.tril(q @ k.T * D) @ fresh
    state[:] = np.exp(G[-1]) * state + (np.exp(G[-1] - G)[:, None] * k).T @ fresh
    return np.asarray(out)
