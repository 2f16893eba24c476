"""MLX checkpoints are repacked bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headgate.convert import ConvertOptions, convert
from headgate.convert.mlx import unpack_codes
from headgate.errors import CheckpointError
from headgate.store import Store, verify
from tests.checkpoints import (
    MlxCheckpoint,
    encode,
    mlx_checkpoint,
    mlx_config,
    mlx_pack,
    random_weights,
    write_checkpoint,
)
from tests.stores import dense_weights, expert_weights

CONFIG = mlx_config()
WEIGHTS = random_weights(CONFIG)


def written(folder: Path, made: MlxCheckpoint, shards: int = 1) -> Path:
    return write_checkpoint(folder / "src", made.config, made.tensors, shards)


def converted(folder: Path, made: MlxCheckpoint, **options: Any) -> Store:
    convert(written(folder, made), folder / "out", ConvertOptions(**options))
    return Store.open(folder / "out")


def refused(folder: Path, made: MlxCheckpoint, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        converted(folder, made, **options)
    assert not (folder / "out.partial").exists()
    return str(caught.value)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_store_dequantises_to_exactly_the_weights_of_the_source(
    bits: int, group_size: int, dtype: str, tmp_path: Path
) -> None:
    sizes: dict[str, Any] = {}
    if group_size > 32:
        sizes = dict.fromkeys(
            ("hidden_size", "moe_intermediate_size", "shared_expert_intermediate_size"), 128
        )
        sizes |= {"head_dim": 32, "linear_value_head_dim": 32}
    config = mlx_config(**sizes, num_hidden_layers=2, layer_types=CONFIG["layer_types"][:2])
    made = mlx_checkpoint(config, random_weights(config), bits, group_size, dtype)
    store = converted(tmp_path, made)
    assert list(verify(store)) == []
    assert store.manifest.experts.bits == (bits if bits in (2, 3, 4) else 8)
    assert store.manifest.experts.group_size == group_size
    assert store.manifest.experts.half == dtype.lower()
    found = {**expert_weights(store), **dense_weights(store)}
    assert found.keys() == made.values.keys()
    for name, values in made.values.items():
        np.testing.assert_array_equal(found[name], values, name)


def test_embedding_router_and_head_stay_quantised(tmp_path: Path) -> None:
    store = converted(tmp_path, mlx_checkpoint(CONFIG, WEIGHTS))
    matrices = store.manifest.dense_matrices
    assert matrices["embed_tokens.weight"].bits == matrices["lm_head.weight"].bits == 4
    assert matrices["layers.0.mlp.gate.weight"].bits == 8
    assert matrices["layers.0.mlp.shared_expert_gate.weight"].shape == (1, 96)


def test_module_that_is_not_quantised_is_kept_as_it_is(tmp_path: Path) -> None:
    made = mlx_checkpoint(CONFIG, WEIGHTS)
    for module in ("model.embed_tokens", "lm_head"):
        actual = f"language_model.{module}"
        made.config["quantization"][actual] = False
        name = f"{module.removeprefix('model.')}.weight"
        made.tensors[f"{actual}.weight"] = encode(WEIGHTS[name], "BF16")
        for part in ("scales", "biases"):
            del made.tensors[f"{actual}.{part}"]
    store = converted(tmp_path, made)
    for name in ("embed_tokens.weight", "lm_head.weight"):
        assert name not in store.manifest.dense_matrices
        np.testing.assert_array_equal(dense_weights(store)[name], WEIGHTS[name])


def test_unquantised_mlx_checkpoint_is_converted_without_shifting_norms(tmp_path: Path) -> None:
    made = mlx_checkpoint(CONFIG, WEIGHTS)
    plain = {n: t for n, t in made.tensors.items() if not n.endswith((".scales", ".biases"))}
    for name, (dtype, _) in plain.items():
        if dtype == "U32":
            plain[name] = encode(unquantised(name), "BF16")
    src = write_checkpoint(tmp_path / "src", CONFIG, plain)
    convert(src, tmp_path / "out", ConvertOptions(expert_bits=16, dense_bits=16))
    store = Store.open(tmp_path / "out")
    found = dense_weights(store)
    norm = "layers.1.self_attn.q_norm.weight"
    np.testing.assert_array_equal(found[norm], made.values[norm])
    for name, values in expert_weights(store).items():
        np.testing.assert_array_equal(values, WEIGHTS[name], name)


def unquantised(actual: str) -> np.ndarray[Any, Any]:
    name = actual.removeprefix("language_model.").removeprefix("model.")
    if ".switch_mlp." not in name:
        return WEIGHTS[name]
    names = [name.replace(".switch_mlp.", f".experts.{e}.") for e in range(5)]
    return np.stack([WEIGHTS[n] for n in names])


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_codes_survive_packing(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 2**bits, (7, 96), dtype=np.uint8)
    np.testing.assert_array_equal(unpack_codes(mlx_pack(codes, bits), bits), codes)


def test_same_options_as_the_source_are_accepted(tmp_path: Path) -> None:
    store = converted(
        tmp_path,
        mlx_checkpoint(CONFIG, WEIGHTS, bits=8),
        expert_bits=8,
        dense_bits=8,
        group_size=32,
    )
    assert store.manifest.experts.bits == 8


@pytest.mark.parametrize(
    ("option", "value"),
    [("expert_bits", 8), ("expert_bits", 16), ("group_size", 64), ("dense_bits", 16)],
)
def test_other_options_than_the_source_are_refused(option: str, value: int, tmp_path: Path) -> None:
    message = refused(tmp_path, mlx_checkpoint(CONFIG, WEIGHTS), **{option: value})
    assert "already quantised" in message and str(value) in message


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8", "nvfp4"])
def test_other_modes_are_refused_by_name(mode: str, tmp_path: Path) -> None:
    assert mode in refused(tmp_path, mlx_checkpoint(CONFIG, WEIGHTS, mode=mode))


def test_experts_of_mixed_precision_are_refused(tmp_path: Path) -> None:
    made, other = (mlx_checkpoint(CONFIG, WEIGHTS, bits) for bits in (4, 8))
    module = "language_model.model.layers.1.mlp.switch_mlp.down_proj"
    made.config["quantization"][module] = {"group_size": 32, "bits": 8}
    for part in ("weight", "scales", "biases"):
        made.tensors[f"{module}.{part}"] = other.tensors[f"{module}.{part}"]
    message = refused(tmp_path, made)
    assert "layers.1.mlp.switch_mlp.down_proj has 8 bits" in message and "4 bits" in message


def test_config_that_contradicts_the_shapes_is_refused(tmp_path: Path) -> None:
    made = mlx_checkpoint(CONFIG, WEIGHTS, bits=4)
    made.config["quantization"]["bits"] = 3
    assert "4 bits a weight; config.json says 3 bits" in refused(tmp_path, made)
    made.config["quantization"] |= {"bits": 4, "group_size": 64}
    assert "groups of 64 as config.json says" in refused(tmp_path, made)


def test_scales_of_a_module_said_to_be_unquantised_are_refused(tmp_path: Path) -> None:
    made = mlx_checkpoint(CONFIG, WEIGHTS)
    made.config["quantization"]["language_model.lm_head"] = False
    assert "lm_head is not quantised, but it has scales" in refused(tmp_path, made)


def test_missing_settings_biases_and_odd_scales_are_refused(tmp_path: Path) -> None:
    made = mlx_checkpoint(CONFIG, WEIGHTS)
    bare = MlxCheckpoint(CONFIG, made.tensors)
    assert "no quantization settings" in refused(tmp_path, bare)
    name = "language_model.model.embed_tokens.biases"
    biases = made.tensors.pop(name)
    assert f"lacks tensor {name}" in refused(tmp_path, made)
    made.tensors[name] = ("F32", biases[1].astype(np.float32))
    assert "are BF16, F32" in refused(tmp_path, made)


def test_scale_too_small_for_eight_bits_is_refused_not_rounded(tmp_path: Path) -> None:
    made = mlx_checkpoint(CONFIG, WEIGHTS, bits=5, dtype="F16")
    scales = made.tensors["language_model.lm_head.scales"][1]
    scales[0, 0] = 3  # three times the smallest float16
    with pytest.raises(CheckpointError, match="scales too small"):
        converted(tmp_path, made)


def test_bad_value_in_scales_is_named_with_its_place(tmp_path: Path) -> None:
    made = mlx_checkpoint(CONFIG, WEIGHTS)
    name = "language_model.model.layers.2.mlp.switch_mlp.up_proj.scales"
    made.tensors[name][1][3, 0, 0] = 0x7FC0
    with pytest.raises(CheckpointError, match=rf"layer 2, expert 3: tensor {name} holds NaN"):
        converted(tmp_path, made)
