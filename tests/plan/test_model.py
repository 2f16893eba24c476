"""Sizes before a download are those after it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from headgate.convert import ConvertOptions, convert
from headgate.demo import CHECKPOINT
from headgate.errors import CheckpointError, StoreError, UsageError
from headgate.measure.synth import SynthOptions, shape_config, synth
from headgate.plan.find import catalogue, find
from headgate.plan.model import Model
from headgate.store import Store
from headgate.store.reader import CHECKSUM_FILE, DENSE_FILE
from tests.checkpoints import (
    mlx_checkpoint,
    mlx_config,
    multimodal,
    random_weights,
    tiny_checkpoint,
    tiny_config,
    write_checkpoint,
)

BITS = [2, 3, 4, 8]


def assert_exact(model: Model, store: Store, bits: int) -> None:
    """The plan for ``bits`` against a store that was converted at so many."""
    layout = model.layout(bits)
    stored = store.manifest.experts.bits
    assert model.dense.nbytes == store.dense_bytes
    assert layout.prefix_bytes(bits) == store.layout.prefix_bytes(bits)
    assert model.state_bytes(77) == find(str(store.path)).state_bytes(77)
    if model.stored_bits(bits) == stored:
        assert layout.stride == store.layout.stride
        files = [store.expert_path(layer) for layer in store.manifest.layers]
        files += [store.path / DENSE_FILE, store.path / CHECKSUM_FILE]
        assert model.disk_bytes(bits) == sum(path.stat().st_size for path in files)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("what", ["checkpoint", "config", "store"])
def test_sizes_are_those_of_a_conversion(tmp_path: Path, bits: int, what: str) -> None:
    src = tiny_checkpoint(tmp_path / "src")
    out = convert(src, tmp_path / "s.headgate", ConvertOptions(expert_bits=bits)).out
    named = {"checkpoint": src, "config": src / "config.json", "store": out}[what]
    model = find(str(named))
    assert model.runs and model.origin == what
    assert_exact(model, Store.open(out), bits)


@pytest.mark.parametrize("named", [CHECKPOINT, CHECKPOINT / "config.json"])
def test_sizes_of_the_demo(tmp_path: Path, named: Path) -> None:
    out = convert(CHECKPOINT, tmp_path / "demo.headgate").out
    assert_exact(find(str(named)), Store.open(out), 4)


def test_sizes_of_a_multimodal_checkpoint_and_a_tied_one(tmp_path: Path) -> None:
    for name, config in (
        ("seeing", multimodal(tiny_config())),
        ("tied", tiny_config(tie_word_embeddings=True)),
    ):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps(config))
        out = synth(tmp_path / f"{name}.headgate", shape_config(str(path)), SynthOptions()).out
        assert_exact(find(str(path)), Store.open(out), 4)


def test_sizes_of_an_mlx_checkpoint(tmp_path: Path) -> None:
    config = mlx_config()
    made = mlx_checkpoint(config, random_weights(config))
    src = write_checkpoint(tmp_path / "src", made.config, made.tensors)
    out = convert(src, tmp_path / "s.headgate").out
    model = find(str(src))
    assert model.bits == Store.open(out).manifest.experts.bits == 4
    assert_exact(model, Store.open(out), model.bits)
    with pytest.raises(StoreError, match="can be read at"):
        model.layout(16)


def test_what_a_token_reads_leaves_out_the_table_but_one_row(tmp_path: Path) -> None:
    out = synth(tmp_path / "s", tiny_config(vocab_size=4096), SynthOptions()).out
    model = find(str(out))
    table = 2 * 4096 * 72
    assert model.dense.token_bytes == pytest.approx(model.dense.nbytes - table * 4095 / 4096, 0.03)
    assert model.uniform and model.store is not None


# Names ------------------------------------------------------------------------


def test_catalogue_has_some_twenty_models_each_with_its_evidence() -> None:
    models = catalogue()["models"]
    assert len(models) >= 20
    for name, entry in models.items():
        assert entry["evidence"] in catalogue()["evidence"]
        model = find(name.lower())
        assert model.name == name
        sizes = [model.disk_bytes(bits) for bits in BITS]
        assert sizes[0] <= sizes[1] <= sizes[2] < sizes[3]
        assert 0 < model.dense.token_bytes < model.dense.nbytes


def test_catalogue_adds_up_to_the_published_parameters() -> None:
    for name, entry in catalogue()["models"].items():
        model = find(name)
        pool = model.moe_layers * model.experts * 3 * model.hidden_size * model.intermediate_size
        if model.config is not None:
            tensors = model.config.dense_tensors().values()
            dense = float(sum(math.prod(spec.shape) for spec in tensors))
        else:
            d = model.dense
            dense = d.coded + d.plain + d.head  # embedding and head are of a size
        assert dense + pool == pytest.approx(entry["parameters"], rel=2e-4), name


def test_repository_name_is_understood() -> None:
    assert find("Qwen/Qwen3.5-35B-A3B").name == "Qwen3.5-35B-A3B"


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("qwen3.5-35b", "Qwen3.5-35B-A3B"),
        ("mixtral-8x7", "Mixtral-8x7B"),
        ("gptoss-120b", "gpt-oss-120b"),
    ],
)
def test_unknown_name_gets_the_nearest(word: str, nearest: str) -> None:
    with pytest.raises(UsageError, match="did you mean") as raised:
        find(word)
    assert nearest in str(raised.value)


def test_nonsense_gets_the_list() -> None:
    with pytest.raises(UsageError, match=r"known: Qwen3\.5-397B"):
        find("zzzzzzzzz")


# Configurations of families that the engine does not have ---------------------------

QWEN3 = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "vocab_size": 151936,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
}
DEEPSEEK = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "vocab_size": 129280,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}


@pytest.mark.parametrize(
    ("raw", "name"), [(QWEN3, "Qwen3-30B-A3B"), (DEEPSEEK, "DeepSeek-V3")], ids=["gqa", "mla"]
)
def test_unsupported_family_is_estimated_and_marked(
    tmp_path: Path, raw: dict[str, Any], name: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(raw))
    model, known = find(str(path)), find(name)
    assert not model.runs and model.origin == "estimate"
    assert any("does not have" in note for note in model.notes)
    for bits in BITS:
        assert model.layout(bits).stride == known.layout(bits).stride
        assert model.disk_bytes(bits) == pytest.approx(known.disk_bytes(bits), rel=0.01)
    assert model.dense.nbytes == pytest.approx(known.dense.nbytes, rel=0.03)
    assert model.state_per_token == known.state_per_token


def test_too_little_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    without = {k: v for k, v in QWEN3.items() if k not in ("vocab_size", "num_experts_per_tok")}
    path.write_text(json.dumps(without))
    with pytest.raises(CheckpointError, match=r"experts per token .*; vocabulary") as raised:
        find(str(path))
    assert "expert size" not in str(raised.value)


def test_dense_model_is_refused_as_one(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "llama", "hidden_size": 4096}))
    with pytest.raises(CheckpointError, match="not to be a Mixture-of-Experts"):
        find(str(path))


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"text_config": 3}', '{"model_type": []}'])
def test_bad_config_gets_a_typed_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(CheckpointError):
        find(str(path))


def test_bad_checkpoint_and_store_get_typed_errors(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        find(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError):
        find(str(tmp_path))
