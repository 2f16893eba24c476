"""Checkpoints that cannot be converted are refused with one line that names the fault."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headgate.convert import Checkpoint, ConvertOptions, convert
from headgate.convert.checkpoint import to_float32
from headgate.errors import CheckpointError, UnsupportedModel, UsageError
from tests.checkpoints import (
    HF_PREFIX,
    Tensor,
    encode,
    hf_tensors,
    random_weights,
    safetensors_bytes,
    tiny_checkpoint,
    tiny_config,
    write_checkpoint,
)

CONFIG = tiny_config()
WEIGHTS = random_weights(CONFIG)
INDEX = "model.safetensors.index.json"
SECOND = "model-00002-of-00003.safetensors"


def refusal(src: Path, kind: type[CheckpointError] = CheckpointError) -> str:
    """The one line that converting ``src`` fails with, before anything is written."""
    out = src.with_name("out")
    with pytest.raises(kind) as caught:
        convert(src, out)
    assert not out.exists() and not out.with_name("out.partial").exists()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


def sharded(folder: Path) -> Path:
    return write_checkpoint(folder / "src", CONFIG, hf_tensors(CONFIG, WEIGHTS), shards=3)


def edit_index(src: Path, change: Callable[[dict[str, Any]], None]) -> None:
    index = json.loads((src / INDEX).read_text())
    change(index["weight_map"])
    (src / INDEX).write_text(json.dumps(index))


# Folder and configuration ---------------------------------------------------------


def test_folder_without_a_checkpoint(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nothing")
    (tmp_path / "src").mkdir()
    assert "it has no config.json" in refusal(tmp_path / "src")
    (tmp_path / "src" / "config.json").write_text("{}")
    assert "no *.safetensors" in refusal(tmp_path / "src")
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refusal(tmp_path / "file")


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff", "[" * 100_000, '"text"'])
def test_config_that_is_no_json_object(text: str, tmp_path: Path) -> None:
    src = tiny_checkpoint(tmp_path / "src")
    (src / "config.json").write_bytes(text.encode("latin-1"))
    assert "config.json is not" in refusal(src)


def test_unknown_model_type_is_named_with_the_known_ones(tmp_path: Path) -> None:
    src = tiny_checkpoint(tmp_path / "src")
    (src / "config.json").write_text(json.dumps({**CONFIG, "model_type": "mixtral"}))
    message = refusal(src, UnsupportedModel)
    assert "'mixtral'" in message and "qwen3_5_moe" in message


def test_missing_field_of_the_configuration_is_named(tmp_path: Path) -> None:
    src = tiny_checkpoint(tmp_path / "src")
    config = {k: v for k, v in CONFIG.items() if k != "head_dim"}
    (src / "config.json").write_text(json.dumps(config))
    assert "head_dim" in refusal(src)


def test_more_experts_than_tensors_is_refused_before_listing_them(tmp_path: Path) -> None:
    tensors = hf_tensors(CONFIG, WEIGHTS, layout="separate")
    src = write_checkpoint(tmp_path / "src", {**CONFIG, "num_experts": 1 << 31}, tensors)
    assert "2147483648 experts" in refusal(src)


# Index and files --------------------------------------------------------------------


def test_index_that_names_a_missing_shard(tmp_path: Path) -> None:
    src = sharded(tmp_path)
    (src / SECOND).unlink()
    assert f"{SECOND} is missing" in refusal(src)


def test_index_that_names_a_tensor_the_shard_lacks(tmp_path: Path) -> None:
    src = sharded(tmp_path)
    edit_index(src, lambda index: index.update({"model.extra": SECOND}))
    assert f"names tensor model.extra, {SECOND} lacks it" in refusal(src)


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "", 3, None, "a\0b"])
def test_index_that_points_outside_the_folder(file: object, tmp_path: Path) -> None:
    src = sharded(tmp_path)
    edit_index(src, lambda index: index.update({"model.extra": file}))
    assert "gives no file name for tensor model.extra" in refusal(src)


@pytest.mark.parametrize("index", ["", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_malformed_index(index: str, tmp_path: Path) -> None:
    src = sharded(tmp_path)
    (src / INDEX).write_text(index)
    assert INDEX in refusal(src)


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    src = sharded(tmp_path)
    tensors = hf_tensors(CONFIG, WEIGHTS)
    names = Checkpoint.open(src).headers[SECOND].tensors
    twice = {n: tensors[n] for n in [*names, "lm_head.weight"]}
    (src / SECOND).write_bytes(safetensors_bytes(twice))
    assert "tensor lm_head.weight is in two files" in refusal(src)


def test_shards_without_an_index_are_found(tmp_path: Path) -> None:
    src = sharded(tmp_path)
    (src / INDEX).unlink()
    convert(src, tmp_path / "out")


def test_truncated_file_is_named(tmp_path: Path) -> None:
    src = sharded(tmp_path)
    size = (src / SECOND).stat().st_size
    for left in (0, 5, 100, size - 1):
        os.truncate(src / SECOND, left)
        message = refusal(src)
        assert message.startswith(f"{SECOND} is not a whole safetensors file")
        (src / SECOND).write_bytes(b"x" * size)
    assert SECOND in refusal(src)


def test_lying_headers_are_refused(tmp_path: Path) -> None:
    src = tiny_checkpoint(tmp_path / "src")
    good = (src / "model.safetensors").read_bytes()
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    name = "lm_head.weight"

    def written(**changes: Any) -> str:
        lying = {**header, name: {**header[name], **changes}}
        text = json.dumps(lying).encode()
        data = len(text).to_bytes(8, "little") + text + good[8 + length :]
        (src / "model.safetensors").write_bytes(data)
        return refusal(src)

    assert "needs" in written(shape=[50, 73])
    assert "needs" in written(dtype="F32")
    assert "unknown dtype" in written(dtype="F7")
    assert "unknown dtype" in written(dtype=["F32"])
    assert "valid shape" in written(shape=[-50, 72])
    assert "data_offsets" in written(data_offsets=[7200, 0])
    assert "expected" in written(data_offsets=[1 << 50, (1 << 50) + 7200])
    (src / "model.safetensors").write_bytes(b"\xff" * 8 + good[8:])
    assert "claims" in refusal(src)


def test_file_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint(tmp_path / "src"))
    name = next(reversed(checkpoint.tensors))
    path = tmp_path / "src" / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"model.safetensors ends early"):
        checkpoint.read(name)


def test_rows_are_read_alone(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint(tmp_path / "src"))
    name = f"{HF_PREFIX}layers.0.mlp.experts.down_proj"
    whole = checkpoint.read(name)
    assert whole.shape == (5, 72, 40) and whole.dtype == np.uint16
    np.testing.assert_array_equal(checkpoint.read(name, 2, 2), whole[2:4])
    np.testing.assert_array_equal(checkpoint.read(name, 4), whole[4:])
    assert checkpoint.read(name, 5).shape == (0, 72, 40)
    values = to_float32(whole[3], "BF16")
    np.testing.assert_array_equal(values, WEIGHTS["layers.0.mlp.experts.3.down_proj.weight"])
    with pytest.raises(IndexError):
        checkpoint.read(name, 3, 3)


# Tensors ------------------------------------------------------------------------------


def changed(folder: Path, name: str, tensor: Tensor | None, **config: Any) -> Path:
    """A checkpoint in which ``name`` is replaced, or left out."""
    tensors = hf_tensors(CONFIG, WEIGHTS, layout="separate")
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    return write_checkpoint(folder / "src", {**CONFIG, **config}, tensors)


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    src = changed(tmp_path, f"{HF_PREFIX}layers.1.self_attn.q_norm.weight", None)
    assert refusal(src) == "the checkpoint lacks tensor layers.1.self_attn.q_norm.weight"


def test_missing_expert_is_named(tmp_path: Path) -> None:
    src = changed(tmp_path, f"{HF_PREFIX}layers.2.mlp.experts.4.up_proj.weight", None)
    assert "lacks tensor layers.2.mlp.experts.4.up_proj.weight" in refusal(src)


def test_unknown_tensors_are_named(tmp_path: Path) -> None:
    src = changed(tmp_path, f"{HF_PREFIX}layers.0.extra", encode(np.ones(3, np.float32), "BF16"))
    assert "has tensor layers.0.extra, which" in refusal(src)


def test_many_missing_tensors_are_counted(tmp_path: Path) -> None:
    tensors = hf_tensors(CONFIG, WEIGHTS)
    few = {n: t for n, t in tensors.items() if ".experts." in n}
    src = write_checkpoint(tmp_path / "src", CONFIG, few)
    assert "and 45 more" in refusal(src)


def test_checkpoint_without_experts(tmp_path: Path) -> None:
    tensors = {n: t for n, t in hf_tensors(CONFIG, WEIGHTS).items() if ".experts." not in n}
    src = write_checkpoint(tmp_path / "src", CONFIG, tensors)
    assert "no expert tensors" in refusal(src)


def test_same_tensor_under_two_prefixes(tmp_path: Path) -> None:
    src = changed(tmp_path, "model.norm.weight", encode(np.ones(72, np.float32), "BF16"))
    assert "same tensor twice" in refusal(src)


def test_wrong_shape_says_what_was_expected(tmp_path: Path) -> None:
    name = f"{HF_PREFIX}layers.0.mlp.experts.1.gate_proj.weight"
    src = changed(tmp_path, name, encode(np.ones((72, 40), np.float32), "BF16"))
    assert refusal(src).endswith("has shape [72, 40], expected [40, 72]")


def test_configuration_of_another_size_is_refused(tmp_path: Path) -> None:
    src = write_checkpoint(
        tmp_path / "src", tiny_config(vocab_size=51), hf_tensors(CONFIG, WEIGHTS)
    )
    assert "has shape [50, 72], expected [51, 72]" in refusal(src)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "U32", "I32"])
def test_dtypes_of_other_formats_are_refused_by_name(dtype: str, tmp_path: Path) -> None:
    types = {"F8_E4M3": np.uint8, "U32": np.uint32, "I32": np.int32}
    name = f"{HF_PREFIX}layers.0.mlp.experts.1.gate_proj.weight"
    src = changed(tmp_path, name, (dtype, np.ones((40, 72), types[dtype])))
    message = refusal(src)
    assert f"dtype {dtype}" in message and "supported: BF16, F16, F32" in message


@pytest.mark.parametrize("method", ["fp8", "gptq", "awq", "compressed-tensors"])
def test_other_quantisations_are_refused_by_name(method: str, tmp_path: Path) -> None:
    config = {**CONFIG, "quantization_config": {"quant_method": method, "bits": 4}}
    src = write_checkpoint(tmp_path / "src", config, hf_tensors(CONFIG, WEIGHTS))
    assert f"quantisation '{method}' is not supported yet" in refusal(src)


# Values: found while writing, so that a partial store is left behind ------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("bits", [4, 16])
def test_bad_expert_weight_is_named(bits: int, dtype: str, bad: float, tmp_path: Path) -> None:
    weights = {name: values.copy() for name, values in WEIGHTS.items()}
    weights["layers.1.mlp.experts.3.up_proj.weight"][5, 6] = bad
    tensors = hf_tensors(CONFIG, weights, dtype=dtype)
    src = write_checkpoint(tmp_path / "src", CONFIG, tensors)
    with pytest.raises(
        CheckpointError, match=r"layer 1, expert 3: tensor .*experts.gate_up_proj holds NaN"
    ):
        convert(src, tmp_path / "out", ConvertOptions(expert_bits=bits))


@pytest.mark.parametrize("name", ["lm_head.weight", "norm.weight", "embed_tokens.weight"])
def test_bad_dense_weight_is_named(name: str, tmp_path: Path) -> None:
    weights = {**WEIGHTS, name: WEIGHTS[name].copy()}
    weights[name].reshape(-1)[-1] = np.nan
    src = write_checkpoint(tmp_path / "src", CONFIG, hf_tensors(CONFIG, weights))
    with pytest.raises(CheckpointError, match=f"tensor .*{name} holds NaN or infinity"):
        convert(src, tmp_path / "out")


def test_float32_that_overflows_bfloat16_is_refused(tmp_path: Path) -> None:
    weights = {name: values.copy() for name, values in WEIGHTS.items()}
    weights["layers.0.mlp.experts.2.down_proj.weight"][0, 0] = np.finfo(np.float32).max
    src = write_checkpoint(tmp_path / "src", CONFIG, hf_tensors(CONFIG, weights, dtype="F32"))
    with pytest.raises(CheckpointError, match=r"rounded to bf16, layer 0, expert 2"):
        convert(src, tmp_path / "out", ConvertOptions(expert_bits=16))


@pytest.mark.parametrize(
    "options",
    [{"expert_bits": 5}, {"dense_bits": 4}, {"group_size": 16}, {"threads": -1}],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ConvertOptions(**options)
