"""store.json."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headgate._native import crc32c
from headgate.errors import DamagedStore, NewerStore, StoreError
from headgate.store import DenseMatrix, ExpertFormat, FileEntry, Manifest

MANIFEST = Manifest(
    model_type="qwen3_5_moe_text",
    config={"hidden_size": 64, "name": "é"},
    experts=ExpertFormat(64, 32, 4, 64),
    num_experts=3,
    layers=(0, 2),
    dense_matrices={"lm_head.weight": DenseMatrix((10, 64), 8, 64, "bf16")},
    dense_crc32c={"": 1, "norm.weight": 2},
    files={"checksums.bin": FileEntry(72, 9)},
    provenance={"source": "bf16"},
)


def rewritten(**changes: Any) -> bytes:
    """The manifest with other fields and a checksum that fits."""
    body = {**json.loads(MANIFEST.to_bytes()), **changes, "checksum": "crc32c:00000000"}
    text = json.dumps(body, indent=1).encode()
    return text.replace(b"crc32c:00000000", b"crc32c:%08x" % crc32c(text), 1)


def test_what_is_written_is_read() -> None:
    assert Manifest.parse(MANIFEST.to_bytes()) == MANIFEST
    assert Manifest.parse(rewritten()) == MANIFEST


def test_any_flipped_byte_is_noticed() -> None:
    data = MANIFEST.to_bytes()
    for position in range(len(data)):
        for bit in (1, 32):
            damaged = bytearray(data)
            damaged[position] ^= bit
            with pytest.raises(StoreError):
                Manifest.parse(bytes(damaged))


def test_damage_is_told_from_other_errors() -> None:
    data = MANIFEST.to_bytes().replace(b'"num_experts": 3', b'"num_experts": 4')
    with pytest.raises(DamagedStore, match="checksum"):
        Manifest.parse(data)
    with pytest.raises(DamagedStore, match="not valid JSON"):
        Manifest.parse(data[:-10])


def test_newer_version_asks_for_a_newer_program() -> None:
    with pytest.raises(NewerStore, match="version 2, this program reads up to 1"):
        Manifest.parse(rewritten(version=2))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": "zip"}, "not the manifest"),
        ({"num_experts": 0}, "num_experts"),
        ({"num_experts": 1 << 40}, "num_experts"),
        ({"layers": []}, "layers"),
        ({"layers": [2, 0]}, "ascending"),
        ({"layers": [0, 0]}, "ascending"),
        ({"layers": [10**9]}, "layer numbers"),
        ({"record": {"stride": 1, "segments": []}}, "record layout"),
        ({"files": {"../../etc/passwd": {"nbytes": 1, "crc32c": 1}}}, "not allowed"),
        ({"files": {".hidden": {"nbytes": 1, "crc32c": 1}}}, "not allowed"),
        ({"files": {"a": {"nbytes": -1, "crc32c": 1}}}, "nbytes"),
        ({"model_type": 5}, "model_type"),
        ({"config": []}, "config"),
        ({"experts": {}}, "malformed"),
        ({"dense_crc32c": {"a": 2**32}}, "a is"),
    ],
)
def test_fields_outside_the_limits_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(StoreError, match=match):
        Manifest.parse(rewritten(**changes))
