"""Tiny random Qwen3.5-MoE checkpoints in every layout that the converter reads.

Written without the converter's code: the safetensors container, MLX's quantisation and
its packing are done here once more, from their definitions.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from headgate.models import parse_config
from headgate.quant.halves import from_float, round_bf16, to_float

Floats = npt.NDArray[np.float32]
Tensor = tuple[str, npt.NDArray[Any]]  # dtype, storage
Weights = dict[str, Floats]

HF_PREFIX = "model.language_model."
MATRICES = ("gate", "up", "down")


def tiny_config(**changes: Any) -> dict[str, Any]:
    """A text configuration with shapes that divide by nothing convenient."""
    return {
        "model_type": "qwen3_5_moe_text",
        "architectures": ["Qwen3_5MoeForCausalLM"],
        "hidden_size": 72,
        "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 10,
        "linear_conv_kernel_dim": 4,
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 40,
        "shared_expert_intermediate_size": 24,
        "vocab_size": 50,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.5,
        },
        "tie_word_embeddings": False,
        **changes,
    }


def mlx_config(**changes: Any) -> dict[str, Any]:
    """As :func:`tiny_config`, with sizes that MLX can quantise in groups of 32."""
    sizes = {
        "hidden_size": 96,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "head_dim": 16,
        "linear_value_head_dim": 8,
    }
    return tiny_config(**{**sizes, **changes})


def multimodal(config: dict[str, Any]) -> dict[str, Any]:
    """The same model as the text part of one that also sees."""
    return {
        "model_type": "qwen3_5_moe",
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "text_config": config,
        "vision_config": {"hidden_size": 16},
        "image_token_id": 7,
    }


def expert_name(layer: int, expert: int, matrix: str) -> str:
    return f"layers.{layer}.mlp.experts.{expert}.{matrix}_proj.weight"


def random_weights(config: dict[str, Any], seed: int = 0) -> Weights:
    """Every tensor under the name without prefix, experts apart. All values are exact in
    bfloat16, float16 and float32; convolutions are [C, K], norms hold w of 1 + w."""
    rng = np.random.default_rng(seed)
    parsed = parse_config(config)
    shapes = {name: spec.shape for name, spec in parsed.dense_tensors().items()}
    inter, hidden = parsed.moe_intermediate_size, parsed.hidden_size
    for layer in parsed.moe_layers:
        for expert in range(parsed.num_experts):
            shapes[expert_name(layer, expert, "gate")] = (inter, hidden)
            shapes[expert_name(layer, expert, "up")] = (inter, hidden)
            shapes[expert_name(layer, expert, "down")] = (hidden, inter)
    weights = {}
    for name, shape in shapes.items():
        values = round_bf16(rng.standard_normal(shape, np.float32) * np.float32(0.1))
        weights[name] = np.where(np.abs(values) < 2**-16, np.float32(0), values)
    return weights


def encode(values: Floats, dtype: str) -> Tensor:
    """float32 values as a tensor of a float dtype."""
    if dtype == "F32":
        return dtype, np.ascontiguousarray(values, np.float32)
    return dtype, from_float(values, "bf16" if dtype == "BF16" else "f16")


def hf_tensors(
    config: dict[str, Any],
    weights: Weights,
    layout: Literal["fused", "separate"] = "fused",
    prefix: str = HF_PREFIX,
    dtype: str = "BF16",
) -> dict[str, Tensor]:
    """The weights as Hugging Face's checkpoints hold them."""
    tensors: dict[str, Floats] = {}
    for name, values in weights.items():
        if ".mlp.experts." in name and layout == "fused":
            continue
        if name.endswith("conv1d.weight"):
            values = values[:, None, :]
        tensors[name if name.startswith("lm_head.") else prefix + name] = values
    if layout == "fused":
        for layer in parse_config(config).moe_layers:
            block = f"{prefix}layers.{layer}.mlp.experts"
            gate, up, down = (_stack(config, weights, layer, m) for m in MATRICES)
            tensors[f"{block}.gate_up_proj"] = np.concatenate([gate, up], axis=1)
            tensors[f"{block}.down_proj"] = down
    return {name: encode(values, dtype) for name, values in tensors.items()}


def _stack(config: dict[str, Any], weights: Weights, layer: int, matrix: str) -> Floats:
    count = parse_config(config).num_experts
    return np.stack([weights[expert_name(layer, e, matrix)] for e in range(count)])


def extras(dtype: str = "BF16") -> dict[str, Tensor]:
    """Vision and MTP tensors, which are to be skipped."""
    ones = np.ones((3, 4), np.float32)
    names = ("model.visual.patch_embed.proj.weight", "model.visual.pos_embed.weight")
    return {n: encode(ones, dtype) for n in (*names, "mtp.fc.weight", "mtp.norm.weight")}


# MLX ---------------------------------------------------------------------------


@dataclass
class MlxCheckpoint:
    """An MLX checkpoint, and what its weights are.

    Attributes:
        tensors: as in the files.
        values: name without prefix, experts apart -> float32 code * scale + bias, or the
            plain value; norms hold the factor.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: Weights = field(default_factory=dict)


def mlx_checkpoint(
    config: dict[str, Any],
    weights: Weights,
    bits: int = 4,
    group_size: int = 32,
    dtype: str = "BF16",
    router_bits: int = 8,
    mode: str = "affine",
) -> MlxCheckpoint:
    """The weights as mlx-lm writes them: routers at ``router_bits``, all else at ``bits``."""
    settings: dict[str, Any] = {"group_size": group_size, "bits": bits, "mode": mode}
    made = MlxCheckpoint({**config, "quantization": settings, "quantization_config": settings})
    specs = parse_config(config).dense_tensors()
    for name, spec in specs.items():
        actual = "language_model." + ("" if name.startswith("lm_head.") else "model.") + name
        values = weights[name]
        if spec.role in ("norm", "vector"):
            values = _mlx_small(values + (1 if spec.zero_centred else 0), dtype)
            made.values[name] = values
            stored = values[:, :, None] if values.ndim == 2 else values
            made.tensors[actual] = encode(stored, dtype)
            continue
        is_router = spec.role == "router"
        if is_router:
            settings[actual.removesuffix(".weight")] = {
                "group_size": group_size,
                "bits": router_bits,
            }
        used = router_bits if is_router else bits
        made.values[name] = _mlx_module(made.tensors, actual, values, used, group_size, dtype)
    for layer in parse_config(config).moe_layers:
        for matrix in MATRICES:
            actual = f"language_model.model.layers.{layer}.mlp.switch_mlp.{matrix}_proj.weight"
            stacked = _stack(config, weights, layer, matrix)
            back = _mlx_module(made.tensors, actual, stacked, bits, group_size, dtype)
            for expert, values in enumerate(back):
                made.values[expert_name(layer, expert, matrix)] = values
    return made


def _mlx_small(values: Floats, dtype: str) -> Floats:
    """What remains of values that were cast to ``dtype``."""
    stored = encode(values, dtype)[1]
    return to_float(stored, "bf16" if dtype == "BF16" else "f16")


def _mlx_module(
    tensors: dict[str, Tensor], name: str, w: Floats, bits: int, group: int, dtype: str
) -> Floats:
    codes, scales, biases = mlx_quantize(w, bits, group)
    half: Literal["bf16", "f16"] = "bf16" if dtype == "BF16" else "f16"
    s, b = encode(scales, dtype)[1], encode(biases, dtype)[1]
    tensors[name] = ("U32", mlx_pack(codes, bits))
    tensors[name.removesuffix("weight") + "scales"] = (dtype, s)
    tensors[name.removesuffix("weight") + "biases"] = (dtype, b)
    wide = codes.reshape(*codes.shape[:-1], -1, group).astype(np.float32)
    return (wide * to_float(s, half)[..., None] + to_float(b, half)[..., None]).reshape(w.shape)


def mlx_quantize(w: Floats, bits: int, group: int) -> tuple[npt.NDArray[np.uint8], Floats, Floats]:
    """``mlx.core.quantize`` in affine mode: codes, and scales and biases in float32."""
    g = w.reshape(*w.shape[:-1], -1, group)
    low, high = g.min(-1), g.max(-1)
    n = np.float32(2**bits - 1)
    s = np.maximum((high - low) / n, np.float32(1e-7))
    negative = np.abs(low) > np.abs(high)
    s, edge = np.where(negative, s, -s), np.where(negative, low, high)
    zero = np.rint(edge / s)
    fits = zero != 0
    s = np.where(fits, edge / np.where(fits, zero, 1), s)
    b = np.where(fits, edge, np.float32(0))
    codes = np.clip(np.rint((g - b[..., None]) / s[..., None]), 0, n).astype(np.uint8)
    return codes.reshape(w.shape), s.astype(np.float32), b.astype(np.float32)


def mlx_pack(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint32]:
    """Codes [..., n] as a little-endian stream of ``bits`` bits each in uint32 words."""
    rows = []
    for row in codes.reshape(-1, codes.shape[-1]):
        stream = sum(int(code) << (bits * i) for i, code in enumerate(row))
        rows.append(np.frombuffer(stream.to_bytes(len(row) * bits // 8, "little"), "<u4"))
    return np.stack(rows).reshape(*codes.shape[:-1], -1)


# Files -------------------------------------------------------------------------

_ITEM = {"F32": 4, "U32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I32": 4}


def safetensors_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at, data = 0, []
    for name, (dtype, array) in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        assert len(raw) == array.size * _ITEM[dtype]
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [at, at + len(raw)],
        }
        at += len(raw)
        data.append(raw)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(data)


def write_checkpoint(
    path: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    shards: int = 1,
    tokenizer: bool = True,
) -> Path:
    """Write a folder as the Hub has it; with several shards there is an index."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    if tokenizer:
        (path / "tokenizer.json").write_text('{"model": {}}')
        (path / "generation_config.json").write_text('{"eos_token_id": [1]}')
    if shards == 1:
        (path / "model.safetensors").write_bytes(safetensors_bytes(tensors))
        return path
    weight_map = {}
    for number, names in enumerate(_deal(tensors, shards), 1):
        file = f"model-{number:05d}-of-{shards:05d}.safetensors"
        (path / file).write_bytes(safetensors_bytes({n: tensors[n] for n in names}))
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def _deal(names: Iterable[str], hands: int) -> list[list[str]]:
    every = list(names)
    return [every[i::hands] for i in range(hands)]


def tiny_checkpoint(path: Path, seed: int = 0, **changes: Any) -> Path:
    """A fused bf16 checkpoint with a configuration of :func:`tiny_config`."""
    config = tiny_config(**changes)
    return write_checkpoint(path, config, hf_tensors(config, random_weights(config, seed)))
