"""The native operations against the NumPy reference, on shapes that fit nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate import _native
from headgate.ops import AttentionShape, DeltaShape, ExpertBatch, PlainWeight, QuantWeight, Weight
from headgate.ops.cpu import CpuOps
from headgate.ops.reference import ReferenceOps, delta_rule_chunk
from headgate.quant import pack, quantize
from headgate.quant.halves import from_float
from headgate.store.layout import ExpertFormat, RecordLayout
from headgate.store.record import record_matrices
from tests.records import random_record

Floats = npt.NDArray[np.float32]

REFERENCE = ReferenceOps()
ISAS = _native.isa_names()
isas = pytest.mark.parametrize("isa", ISAS)


def normal(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def quant_weight(seed: int, rows: int, columns: int, bits: int, group: int) -> QuantWeight:
    m = quantize(normal(seed, rows, columns), bits, group)
    shape, planes = (rows, columns), pack(m.codes, bits)
    return QuantWeight(shape, bits, group, m.half, m.scales, m.biases, planes)


def plain_weight(seed: int, rows: int, columns: int, dtype: str) -> PlainWeight:
    values = normal(seed, rows, columns)
    if dtype == "f32":
        return PlainWeight(values, "f32")
    half = "f16" if dtype == "f16" else "bf16"
    return PlainWeight(from_float(values, half), half)  # type: ignore[arg-type]


def close(actual: Floats, expected: Floats, tolerance: float, terms: Floats | None = None) -> None:
    """Equal up to ``tolerance`` of the largest value, or of the largest sum of absolute
    ``terms``, which few outputs may cancel to almost nothing."""
    scale = float(np.abs(expected if terms is None else terms).max()) or 1.0
    assert actual.shape == expected.shape
    assert float(np.abs(actual - expected).max()) <= tolerance * scale


@isas
@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 9),
    rows=st.integers(1, 70),
    columns=st.integers(1, 300),
    kind=st.sampled_from([2, 3, 4, 8, "f32", "bf16", "f16"]),
    group=st.sampled_from([32, 64, 128]),
    seed=st.integers(0, 1000),
)
def test_linear_with_float_activations_is_the_matrix_product(
    isa: str, tokens: int, rows: int, columns: int, kind: int | str, group: int, seed: int
) -> None:
    weight: Weight = (
        quant_weight(seed, rows, columns, kind, group)
        if isinstance(kind, int)
        else plain_weight(seed, rows, columns, kind)
    )
    x = normal(seed + 1, tokens, columns)
    ops = CpuOps(2, isa=isa)
    (y,) = ops.linear(x, ops.matrix(weight), exact=True)
    (expected,) = REFERENCE.linear(x, REFERENCE.matrix(weight))
    terms = np.abs(x) @ np.abs(REFERENCE.matrix(weight)).T
    close(y, expected, 2e-6, terms)


@isas
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_int8_activations_cost_under_one_percent(isa: str, bits: int) -> None:
    weight, x = quant_weight(3, 65, 517, bits, 64), normal(4, 3, 517)
    ops = CpuOps(2, isa=isa)
    (y,) = ops.linear(x, ops.matrix(weight))
    (expected,) = REFERENCE.linear(x, REFERENCE.matrix(weight))
    error = np.sqrt(np.mean((y - expected) ** 2) / np.mean(expected**2))
    assert 0 < error < 0.01


@isas
def test_several_matrices_share_one_call(isa: str) -> None:
    weights: list[Weight] = [quant_weight(1, 9, 100, 4, 32), quant_weight(2, 5, 100, 8, 128)]
    weights.append(plain_weight(3, 7, 100, "bf16"))
    x, ops = normal(5, 2, 100), CpuOps(2, isa=isa)
    matrices = [ops.matrix(w) for w in weights]
    together = ops.linear(x, *matrices)
    alone = [ops.linear(x, m)[0] for m in matrices]
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))


@isas
def test_embedding_rows_are_exact(isa: str) -> None:
    for weight in (quant_weight(1, 11, 70, 4, 64), plain_weight(2, 11, 70, "bf16")):
        ops = CpuOps(1, isa=isa)
        rows = ops.embed(ops.matrix(weight), [3, 3, 10])
        assert np.array_equal(rows, REFERENCE.matrix(weight)[[3, 3, 10]])


@isas
@settings(max_examples=20, deadline=None)
@given(tokens=st.integers(1, 7), width=st.integers(1, 130), seed=st.integers(0, 1000))
def test_elementwise_operations(isa: str, tokens: int, width: int, seed: int) -> None:
    ops = CpuOps(2, isa=isa)
    x, y, w = normal(seed, tokens, width), normal(seed + 1, tokens, width), normal(seed, width)
    gate = normal(seed + 2, tokens, 1)
    close(ops.rms_norm(x, w, 1e-6), REFERENCE.rms_norm(x, w, 1e-6), 4e-6)
    close(ops.silu_mul(x, y), REFERENCE.silu_mul(x, y), 4e-6)
    close(ops.add_gated(x, y, gate), REFERENCE.add_gated(x, y, gate), 4e-6)


@isas
@settings(max_examples=20, deadline=None)
@given(tokens=st.integers(1, 5), experts=st.integers(1, 70), data=st.data())
def test_routing_chooses_the_largest(
    isa: str, tokens: int, experts: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, experts))
    # Few distinct values, so that ties are common.
    values = data.draw(st.lists(st.integers(-3, 3), min_size=experts, max_size=experts))
    logits = np.array(values, np.float32) + np.zeros((tokens, 1), np.float32)
    ids, weights = CpuOps(2, isa=isa).route(logits, k)
    expected_ids, expected = REFERENCE.route(logits, k)
    assert np.array_equal(ids, expected_ids)
    close(weights, expected, 1e-6)


@isas
@settings(max_examples=25, deadline=None)
@given(
    kv=st.integers(1, 3),
    per=st.integers(1, 4),
    half_rotary=st.integers(1, 5),
    rest=st.integers(0, 9),
    gated=st.booleans(),
    parts=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
def test_attention_in_pieces(
    isa: str,
    kv: int,
    per: int,
    half_rotary: int,
    rest: int,
    gated: bool,
    parts: list[int],
    seed: int,
) -> None:
    hd, heads = 2 * half_rotary + rest, kv * per
    shape = AttentionShape(heads, kv, hd, 2 * half_rotary, 1e4, 1e-6, gated)
    total = sum(parts)
    q = normal(seed, total, heads * hd * (2 if gated else 1))
    k, v = normal(seed + 1, total, kv * hd), normal(seed + 2, total, kv * hd)
    memory: list[Any] = [normal(seed + 3, hd), normal(seed + 4, hd)]
    memory += [np.zeros((total + 2, kv, hd), np.float32) for _ in range(2)]
    expected = REFERENCE.attention(shape, *[q, k, v, *[m.copy() for m in memory], 0])
    ops, outputs, start = CpuOps(2, isa=isa), [], 0
    for n in parts:
        rows = slice(start, start + n)
        outputs.append(ops.attention(shape, *[q[rows], k[rows], v[rows], *memory, start]))
        start += n
    close(np.concatenate(outputs), expected, 1e-5)


@isas
@settings(max_examples=25, deadline=None)
@given(
    nk=st.integers(1, 3),
    per=st.integers(1, 3),
    dk=st.integers(1, 20),
    dv=st.integers(1, 20),
    width=st.integers(2, 5),
    parts=st.lists(st.integers(1, 150), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
def test_delta_net_in_pieces(
    isa: str, nk: int, per: int, dk: int, dv: int, width: int, parts: list[int], seed: int
) -> None:
    nv, total = nk * per, sum(parts)
    # A tiny eps would magnify rounding wherever a head's few outputs happen to cancel.
    channels, shape = 2 * nk * dk + nk * per * dv, DeltaShape(nk, nk * per, dk, dv, eps=0.01)
    inputs = [normal(seed + i, total, n) for i, n in enumerate([channels, nv * dv, nv, nv])]
    constants = [
        normal(seed + 9, channels, width),
        -np.exp(normal(seed + 10, nv)),
        normal(seed + 11, nv),
        normal(seed + 12, dv),
    ]
    conv, state = normal(seed + 13, channels, width - 1), normal(seed + 14, nv, dk, dv)
    conv_expected, state_expected = conv.copy(), state.copy()
    memory = [*constants, conv_expected, state_expected]
    expected = REFERENCE.delta_net(shape, *[*inputs, *memory])
    ops, outputs, start = CpuOps(2, isa=isa), [], 0
    for n in parts:
        rows = [x[start : start + n] for x in inputs]
        outputs.append(ops.delta_net(shape, *[*rows, *constants, conv, state]))
        start += n
    close(np.concatenate(outputs), expected, 3e-5)
    close(state, state_expected, 3e-5)
    assert np.array_equal(conv, conv_expected)


def test_chunked_delta_rule_is_the_recurrence() -> None:
    n, dk, dv = 37, 12, 9
    q, k, v = normal(1, n, dk), normal(2, n, dk) / np.float32(5), normal(3, n, dv)
    g, beta = -np.abs(normal(4, n)), (1 / (1 + np.exp(normal(5, n)))).astype(np.float32)
    state = normal(6, dk, dv)
    chunked = state.copy()
    out = delta_rule_chunk(q, k, v, g, beta, chunked)
    for t in range(n):
        state = np.exp(g[t]) * state
        state = state + np.outer(k[t], (v[t] - k[t] @ state) * beta[t])
        close(out[t], q[t] @ state, 1e-5)
    close(chunked, state, 1e-5)


@isas
@settings(max_examples=20, deadline=None)
@given(
    hidden=st.integers(1, 150),
    inter=st.integers(1, 150),
    bits=st.sampled_from([2, 3, 4, 8, 16]),
    group=st.sampled_from([32, 64, 128]),
    experts=st.integers(1, 4),
    tokens=st.integers(1, 6),
    data=st.data(),
)
def test_experts_from_their_records(
    isa: str,
    hidden: int,
    inter: int,
    bits: int,
    group: int,
    experts: int,
    tokens: int,
    data: st.DataObject,
) -> None:
    layout = RecordLayout(ExpertFormat(hidden, inter, bits, 0 if bits == 16 else group))
    used = data.draw(st.sampled_from(layout.format.readable_bits))
    size = layout.prefix_bytes(used)
    records = [random_record(layout, seed)[:size] for seed in range(experts)]
    arena = np.concatenate(records)
    # Every token goes through every expert; output rows in a scrambled order.
    pairs = experts * tokens
    batch = ExpertBatch(
        [i * size for i in range(experts)],
        np.arange(0, pairs + 1, tokens, dtype=np.int32),
        np.tile(np.arange(tokens, dtype=np.int32), experts),
        np.random.default_rng(0).permutation(pairs).astype(np.int32),
    )
    x = normal(7, tokens, hidden)
    y, expected = np.zeros((pairs, hidden), np.float32), np.zeros((pairs, hidden), np.float32)
    CpuOps(2, exact=True, isa=isa).expert_kernel(layout, used)(arena, batch, x, y)
    REFERENCE.expert_kernel(layout, used)(arena, batch, x, expected)
    terms = []
    for record in records:
        w = record_matrices(layout, record, used)
        inner = REFERENCE.silu_mul(x @ w["gate"].T, x @ w["up"].T)
        terms.append(np.abs(inner) @ np.abs(w["down"]).T)
    close(y, expected, 2e-5, np.concatenate(terms))


@isas
def test_threads_do_not_change_a_bit(isa: str) -> None:
    weight, x = quant_weight(1, 333, 500, 4, 64), normal(2, 5, 500)
    results = []
    for threads in (1, 2, 3):
        ops = CpuOps(threads, isa=isa)
        results.append(ops.linear(x, ops.matrix(weight))[0])
    assert all(np.array_equal(results[0], r) for r in results[1:])
