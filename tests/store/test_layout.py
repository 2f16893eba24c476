"""The record of an expert."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.errors import StoreError
from headgate.quant import dequantize
from headgate.quant.affine import AffineMatrix
from headgate.store import ExpertFormat, RecordLayout
from headgate.store.record import read_record, record_matrices
from tests.records import random_record

formats = st.builds(
    lambda h, i, bits, g: ExpertFormat(h, i, bits, 0 if bits == 16 else g),
    st.integers(1, 700),
    st.integers(1, 700),
    st.sampled_from([2, 3, 4, 8, 16]),
    st.sampled_from([32, 64, 128]),
)


@given(formats)
def test_segments_are_pages_and_pieces_do_not_overlap(fmt: ExpertFormat) -> None:
    layout = RecordLayout(fmt)
    at = 0
    for segment in layout.segments:
        assert segment.offset == at and segment.nbytes > 0 and segment.nbytes % 4096 == 0
        at = segment.end
    assert layout.stride == at
    spans = sorted(layout.pieces.values())
    assert all(offset % 64 == 0 for offset, _ in spans)
    ends = [offset + nbytes for offset, nbytes in spans]
    assert all(end <= start for end, (start, _) in zip(ends, spans[1:], strict=False))
    assert ends[-1] <= layout.stride


@given(formats)
def test_pieces_of_a_precision_lie_in_its_prefix(fmt: ExpertFormat) -> None:
    layout = RecordLayout(fmt)
    reached = {"scales": 2, "biases": 2, "q2": 2, "q3": 3, "q4": 4, "q8": 8, "weights": 16}
    for (_, piece), (offset, nbytes) in layout.pieces.items():
        assert offset + nbytes <= layout.prefix_bytes(reached[piece])


@pytest.mark.parametrize(
    ("shape", "bits", "nbytes"),
    [
        ((4096, 1024), 4, 7_077_888),
        ((4096, 1024), 2, 3_932_160),
        ((4096, 1024), 8, 13_369_344),
        ((4096, 1024), 16, 25_165_824),
        ((2048, 512), 3, 1_376_256),
        ((3072, 1024), 4, 5_308_416),
    ],
)
def test_real_models_need_no_padding(shape: tuple[int, int], bits: int, nbytes: int) -> None:
    """Weights times bits, and four bytes of scale and bias for each group of 64."""
    fmt = ExpertFormat(*shape, bits, 0 if bits == 16 else 64)
    assert RecordLayout(fmt).stride == nbytes
    assert nbytes == fmt.parameters * bits // 8 + (0 if bits == 16 else fmt.parameters // 16)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_prefix_of_record_decodes_at_lower_bits(bits: int) -> None:
    layout = RecordLayout(ExpertFormat(100, 72, 8, 32))
    record = random_record(layout, 1)
    whole = read_record(layout, record, 8)
    prefix = record_matrices(layout, record[: layout.prefix_bytes(bits)], bits)
    for matrix, found in prefix.items():
        stored = whole[matrix]
        assert isinstance(stored, AffineMatrix)
        assert (dequantize(stored, bits) == found).all()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"bits": 5}, "expert bits 5"),
        ({"group_size": 48}, "group size 48"),
        ({"bits": 16}, "group size 64"),
        ({"hidden_size": 0}, "hidden size 0"),
        ({"intermediate_size": 1 << 21}, "intermediate size"),
        ({"half": "f8"}, "f8"),
    ],
)
def test_formats_outside_the_limits_are_refused(changes: dict[str, object], match: str) -> None:
    good = {"hidden_size": 64, "intermediate_size": 64, "bits": 4, "group_size": 64}
    with pytest.raises(StoreError, match=match):
        ExpertFormat(**{**good, **changes})  # type: ignore[arg-type]


def test_bits_that_a_store_lacks_are_refused() -> None:
    layout = RecordLayout(ExpertFormat(64, 64, 3, 64))
    with pytest.raises(StoreError, match="no 4-bit experts; it can be read at 2, 3 bits"):
        layout.prefix_bytes(4)
