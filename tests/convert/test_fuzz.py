"""Files of other people's making raise typed errors and take little memory, whatever
they hold. ``HEADGATE_FUZZ_EXAMPLES`` sets the number of examples."""

from __future__ import annotations

import copy
import io
import json
import os
import random
import re
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headgate._native import crc32c
from headgate.convert import convert
from headgate.errors import HeadgateError
from headgate.models import parse_config
from headgate.store import Manifest
from headgate.store.safetensors import HeaderError, parse_header
from tests.checkpoints import (
    hf_tensors,
    multimodal,
    random_weights,
    safetensors_bytes,
    tiny_checkpoint,
    tiny_config,
)

fuzz = settings(
    max_examples=int(os.environ.get("HEADGATE_FUZZ_EXAMPLES", "300")),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

#: Far above what parsing takes, far below what the numbers in a file could ask for.
MOST_MEMORY = 16 << 20

CONFIG = tiny_config(num_hidden_layers=1, layer_types=["full_attention"], num_experts=2)
FILE = safetensors_bytes(hf_tensors(CONFIG, random_weights(CONFIG)))
HEADER_BYTES = int.from_bytes(FILE[:8], "little")

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 100),
    st.sampled_from([2**31, 2**53, 2**62, 2**64, -(2**63), 10**400]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["F32", "BF16", "U8", "bf16", "f16", "../x", "store.json"]),
)
documents = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
edits = st.lists(
    st.tuples(
        st.sampled_from(["replace", "retype", "delete", "rename", "copy"]), st.randoms(), documents
    ),
    min_size=1,
    max_size=4,
)


def edited(document: Any, changes: list[tuple[str, random.Random, Any]]) -> Any:
    """A copy of a JSON document with values replaced, deleted, renamed or doubled."""
    document = copy.deepcopy(document)
    for how, rng, value in changes:
        holder, key = rng.choice(list(places(document)) or [(None, None)])
        if holder is None:
            return value
        if how == "replace":
            holder[key] = value
        elif how == "retype":
            holder[key] = retyped(holder[key])
        elif isinstance(holder, list):
            if how == "copy":
                holder.append(copy.deepcopy(holder[key]))
            else:
                del holder[key]
        else:
            old = holder[key] if how == "copy" else holder.pop(key)
            if how != "delete":
                holder[str(value)[:100]] = copy.deepcopy(old)
    return document


def retyped(value: Any) -> Any:
    """The nearest value of another type."""
    if isinstance(value, (bool, int, float, str)):
        try:
            return float(value) if type(value) is int else int(value)
        except (ValueError, OverflowError):
            return [value]
    return list(value) if isinstance(value, dict) else {"": value}


def places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a JSON document."""
    if isinstance(document, (dict, list)):
        keys = list(document) if isinstance(document, dict) else range(len(document))
        for key in keys:
            yield document, key
            yield from places(document[key])


def mangled(data: bytes, cuts: list[tuple[random.Random, bytes]]) -> bytes:
    """Bytes with short stretches replaced by others."""
    for rng, patch in cuts:
        at = rng.randrange(len(data) + 1)
        data = data[:at] + patch + data[at + rng.choice([0, 1, len(patch), 40]) :]
    return data


patches = st.lists(st.tuples(st.randoms(), st.binary(max_size=12)), min_size=1, max_size=4)


@contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()


def only(kind: type[Exception], call: Callable[[], object]) -> bool:
    """Whether ``call`` succeeds; it may raise ``kind`` and nothing else."""
    with little_memory():
        try:
            call()
        except kind:
            return False
    return True


# safetensors ---------------------------------------------------------------------------


def parse(data: bytes) -> object:
    return parse_header(io.BytesIO(data), len(data))


@fuzz
@given(patches)
def test_fuzzed_bytes_of_a_header_raise_only_header_errors(
    cuts: list[tuple[random.Random, bytes]],
) -> None:
    head = mangled(FILE[: 8 + HEADER_BYTES], cuts)
    only(HeaderError, lambda: parse(head + FILE[8 + HEADER_BYTES :]))


@fuzz
@given(edits)
def test_fuzzed_values_of_a_header_raise_only_header_errors(
    changes: list[tuple[str, random.Random, Any]],
) -> None:
    header = edited(json.loads(FILE[8 : 8 + HEADER_BYTES]), changes)
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + FILE[8 + HEADER_BYTES :]
    only(HeaderError, lambda: parse(data))


@fuzz
@given(documents, st.binary(max_size=64))
def test_fuzzed_documents_as_headers_raise_only_header_errors(document: Any, tail: bytes) -> None:
    text = json.dumps(document).encode()
    only(HeaderError, lambda: parse(len(text).to_bytes(8, "little") + text + tail))
    only(HeaderError, lambda: parse(tail))


# store.json ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("fuzz")
    changes: dict[str, Any] = {
        "num_hidden_layers": 1,
        "layer_types": ["full_attention"],
        "num_experts": 2,
    }
    convert(tiny_checkpoint(folder / "src", **changes), folder / "out")
    return (folder / "out" / "store.json").read_bytes()


def signed(document: Any) -> bytes:
    """A manifest whose checksum is right, so that its contents are looked at."""
    text = (json.dumps(document, indent=1) + "\n").encode()
    field = rb'"checksum": "crc32c:%s"'
    zeroed = re.sub(field % b"[0-9a-f]{8}", field % b"00000000", text, count=1)
    return zeroed.replace(b"crc32c:00000000", b"crc32c:%08x" % crc32c(zeroed), 1)


def test_signed_manifest_is_as_written(manifest: bytes) -> None:
    assert signed(json.loads(manifest)) == manifest
    assert Manifest.parse(manifest).to_bytes() == manifest


@fuzz
@given(edits)
def test_fuzzed_values_of_a_manifest_raise_only_our_errors(
    manifest: bytes, changes: list[tuple[str, random.Random, Any]]
) -> None:
    data = signed(edited(json.loads(manifest), changes))
    if only(HeadgateError, lambda: Manifest.parse(data)):
        parsed = Manifest.parse(data)
        assert type(parsed.expert_file_bytes) is int and parsed.expert_file_bytes > 0
        assert Manifest.parse(parsed.to_bytes()).to_bytes() == parsed.to_bytes()


@fuzz
@given(patches)
def test_fuzzed_bytes_of_a_manifest_are_damage(
    manifest: bytes, cuts: list[tuple[random.Random, bytes]]
) -> None:
    data = mangled(manifest, cuts)
    assert only(HeadgateError, lambda: Manifest.parse(data)) == (data == manifest)


@fuzz
@given(documents)
def test_fuzzed_documents_as_manifests_raise_only_our_errors(document: Any) -> None:
    only(HeadgateError, lambda: Manifest.parse(signed(document)))
    whole = {"format": "headgate expert store", "version": 1, "checksum": "crc32c:00000000"}
    only(HeadgateError, lambda: Manifest.parse(signed({**whole, "experts": document})))


# config.json ---------------------------------------------------------------------------


@fuzz
@given(edits, st.booleans())
def test_fuzzed_configurations_raise_only_our_errors(
    changes: list[tuple[str, random.Random, Any]], nested: bool
) -> None:
    config = tiny_config()
    document = edited(multimodal(config) if nested else config, changes)
    if isinstance(document, dict):
        only(HeadgateError, lambda: parse_config(document))


@settings(fuzz, max_examples=min(fuzz.max_examples, 500))
@given(edits)
def test_fuzzed_configurations_convert_or_raise_only_our_errors(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, random.Random, Any]]
) -> None:
    folder = checkpoint_folder(tmp_path_factory)
    document = edited(multimodal(CONFIG), changes)
    (folder / "config.json").write_text(json.dumps(document))
    out = folder.with_name("out")
    if only(HeadgateError, lambda: convert(folder, out)):
        for path in sorted(out.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        out.rmdir()


_made: list[Path] = []


def checkpoint_folder(factory: pytest.TempPathFactory) -> Path:
    if not _made:
        folder = factory.mktemp("fuzz") / "src"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(FILE)
        _made.append(folder)
    return _made[0]
