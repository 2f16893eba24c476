"""Every layout of the same weights becomes the same store."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headgate.convert import ConvertOptions, convert
from headgate.models import parse_config
from headgate.quant import dequantize, quantize
from headgate.store import Store, verify
from tests.checkpoints import (
    extras,
    hf_tensors,
    multimodal,
    random_weights,
    tiny_config,
    write_checkpoint,
)
from tests.stores import dense_weights, expert_weights

EXACT = ConvertOptions(expert_bits=16, dense_bits=16)
CONFIG = tiny_config()
WEIGHTS = random_weights(CONFIG)


def expected_dense() -> dict[str, np.ndarray[Any, Any]]:
    """What the store holds of the dense weights: norms as factors."""
    specs = parse_config(CONFIG).dense_tensors()
    return {n: WEIGHTS[n] + np.float32(s.zero_centred) for n, s in specs.items()}


LAYOUTS: dict[str, dict[str, Any]] = {
    "fused": {},
    "separate": {"layout": "separate"},
    "text-only": {"prefix": "model."},
    "separate text-only": {"layout": "separate", "prefix": "model."},
    "f16": {"dtype": "F16"},
    "f32": {"dtype": "F32"},
    "sharded": {"shards": 4},
    "sharded separate f32": {"shards": 3, "layout": "separate", "dtype": "F32"},
    "multimodal with MTP": {"multimodal": True},
}


@pytest.mark.parametrize("how", LAYOUTS.values(), ids=LAYOUTS)
def test_store_holds_exactly_the_weights_of_the_source(how: dict[str, Any], tmp_path: Path) -> None:
    options = dict(how)
    shards, whole = options.pop("shards", 1), options.pop("multimodal", False)
    tensors = hf_tensors(CONFIG, WEIGHTS, **options)
    config = CONFIG
    if whole:
        config, tensors = multimodal(CONFIG), {**extras(), **tensors}
    src = write_checkpoint(tmp_path / "src", config, tensors, shards)
    report = convert(src, tmp_path / "out", EXACT)
    store = Store.open(tmp_path / "out")
    assert list(verify(store)) == []
    for name, values in expert_weights(store).items():
        np.testing.assert_array_equal(values, WEIGHTS[name], name)
    found = dense_weights(store)
    assert found.keys() == expected_dense().keys()
    for name, values in expected_dense().items():
        np.testing.assert_array_equal(found[name], values, name)
    assert parse_config(store.manifest.config) == parse_config(CONFIG)
    assert store.manifest.model_type == config["model_type"]
    if whole:
        assert {kind: s.tensors for kind, s in report.skipped.items()} == {"vision": 2, "MTP": 2}
        assert report.skipped["vision"].nbytes == 2 * 12 * 2


def test_layout_prefix_dtype_and_shards_do_not_change_quantised_experts(tmp_path: Path) -> None:
    stores = []
    for number, how in enumerate(LAYOUTS.values()):
        options = {k: v for k, v in how.items() if k not in ("shards", "multimodal")}
        tensors = hf_tensors(CONFIG, WEIGHTS, **options)
        src = write_checkpoint(tmp_path / f"src{number}", CONFIG, tensors, how.get("shards", 1))
        convert(src, tmp_path / f"out{number}")
        stores.append(Store.open(tmp_path / f"out{number}"))
    first = stores[0]
    assert first.manifest.experts.bits == 4 and first.manifest.experts.group_size == 64
    for other in stores[1:]:
        for layer in first.manifest.layers:
            ours, theirs = first.expert_path(layer), other.expert_path(layer)
            assert ours.read_bytes() == theirs.read_bytes()
        for name, values in dense_weights(first).items():
            np.testing.assert_array_equal(dense_weights(other)[name], values, name)


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_quantised_experts_are_as_good_as_the_reference(
    bits: int, group_size: int, tmp_path: Path
) -> None:
    src = write_checkpoint(tmp_path / "src", CONFIG, hf_tensors(CONFIG, WEIGHTS))
    convert(src, tmp_path / "out", ConvertOptions(bits, group_size=group_size))
    store = Store.open(tmp_path / "out")
    for p in store.manifest.experts.readable_bits:
        ours = reference = 0.0
        for name, values in list(expert_weights(store, p).items())[:6]:
            ours += float(((values - WEIGHTS[name]) ** 2).sum())
            best = dequantize(quantize(WEIGHTS[name], bits, group_size), p)
            reference += float(((best - WEIGHTS[name]) ** 2).sum())
        assert ours == pytest.approx(reference, rel=0.02)


def test_projections_are_kept_at_eight_bits_and_all_else_exactly(tmp_path: Path) -> None:
    src = write_checkpoint(tmp_path / "src", CONFIG, hf_tensors(CONFIG, WEIGHTS))
    convert(src, tmp_path / "out")
    store = Store.open(tmp_path / "out")
    specs, found = parse_config(CONFIG).dense_tensors(), dense_weights(store)
    coded = store.manifest.dense_matrices
    assert coded.keys() == {n for n, spec in specs.items() if spec.role == "projection"}
    for name, values in expected_dense().items():
        if name in coded:
            best = dequantize(quantize(WEIGHTS[name], 8, 64, nested=False))
            np.testing.assert_allclose(found[name], best, atol=2e-3)
        else:
            np.testing.assert_array_equal(found[name], values, name)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_dense_tensors_at_16_bits_keep_their_dtype(dtype: str, tmp_path: Path) -> None:
    tensors = hf_tensors(CONFIG, WEIGHTS, dtype=dtype)
    src = write_checkpoint(tmp_path / "src", CONFIG, tensors)
    report = convert(src, tmp_path / "out", EXACT)
    store = Store.open(tmp_path / "out")
    header, specs = store.dense_header().tensors, parse_config(CONFIG).dense_tensors()
    for name, spec in specs.items():
        assert header[name].dtype == ("F32" if spec.role in ("norm", "vector") else dtype)
        assert header[name].shape == spec.shape
    assert store.manifest.experts.half == ("f16" if dtype == "F16" else "bf16")
    assert any("rounded" in note for note in report.notes) == (dtype == "F32")


def test_block_size_of_dense_rows_does_not_change_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    src = write_checkpoint(tmp_path / "src", CONFIG, hf_tensors(CONFIG, WEIGHTS))
    convert(src, tmp_path / "whole")
    # The function of the same name hides the module from an ordinary import.
    module = importlib.import_module("headgate.convert.convert")
    monkeypatch.setattr(module, "BLOCK_WEIGHTS", 300)
    convert(src, tmp_path / "blocks")
    whole, blocks = tmp_path / "whole", tmp_path / "blocks"
    assert (whole / "store.json").read_bytes() == (blocks / "store.json").read_bytes()
    assert Store.open(blocks).load_dense()


def test_threads_do_not_change_the_store(tmp_path: Path) -> None:
    src = write_checkpoint(tmp_path / "src", CONFIG, hf_tensors(CONFIG, WEIGHTS))
    for threads in (1, 3):
        convert(src, tmp_path / str(threads), ConvertOptions(threads=threads))
    one, three = ((tmp_path / t / "store.json").read_bytes() for t in ("1", "3"))
    assert one == three


def test_head_that_is_tied_to_the_embedding_is_left_out(tmp_path: Path) -> None:
    config = tiny_config(tie_word_embeddings=True)
    src = write_checkpoint(tmp_path / "src", config, hf_tensors(CONFIG, WEIGHTS))
    report = convert(src, tmp_path / "out", EXACT)
    assert "lm_head.weight" not in Store.open(tmp_path / "out").load_dense()
    assert report.skipped["tied head"].tensors == 1


def test_tokenizer_files_travel_with_the_store(tmp_path: Path) -> None:
    src = write_checkpoint(tmp_path / "src", CONFIG, hf_tensors(CONFIG, WEIGHTS))
    (src / "additional_chat_templates").mkdir()
    (src / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    (src / "chat_template.jinja").write_text("{{ messages }}")
    (src / "README.md").write_text("not copied")
    report = convert(src, tmp_path / "out")
    store = Store.open(tmp_path / "out")
    assert report.notes == []
    assert store.read_file("tokenizer.json") == (src / "tokenizer.json").read_bytes()
    assert store.read_file("chat_template.jinja") == b"{{ messages }}"
    assert store.read_file("additional_chat_templates.tool_use.jinja") == b"{{ tools }}"
    assert "README.md" not in store.manifest.files


def test_missing_tokenizer_is_reported(tmp_path: Path) -> None:
    tensors = hf_tensors(CONFIG, WEIGHTS)
    src = write_checkpoint(tmp_path / "src", CONFIG, tensors, tokenizer=False)
    report = convert(src, tmp_path / "out")
    assert any("no tokenizer.json" in note for note in report.notes)


def test_report_counts_every_byte(tmp_path: Path) -> None:
    src = write_checkpoint(tmp_path / "src", CONFIG, hf_tensors(CONFIG, WEIGHTS))
    seen: list[tuple[int, int, str]] = []
    report = convert(src, tmp_path / "out", progress=lambda *step: seen.append(step))
    size = sum(p.stat().st_size for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert report.store_bytes == report.written_bytes == size
    done = [step[0] for step in seen]
    assert done == sorted(done) and done[-1] == seen[-1][1]
    assert report.to_dict()["out"] == str(tmp_path / "out")


def test_store_tells_nothing_of_the_machine(tmp_path: Path) -> None:
    config = multimodal({**CONFIG, "_name_or_path": "/home/someone/models/tiny"})
    src = write_checkpoint(tmp_path / "src", config, hf_tensors(CONFIG, WEIGHTS))
    convert(src, tmp_path / "out")
    for name in ("store.json", "conversion.json"):
        text = (tmp_path / "out" / name).read_text()
        assert "someone" not in text and str(tmp_path) not in text
