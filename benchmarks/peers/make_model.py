"""A GGUF file of a Qwen3.5 MoE shape with random weights, for llama.cpp.

Quantised blocks are drawn directly, so that neither a bf16 checkpoint (20 GB for 12 layers of
qwen3.5-35b-a3b) nor a conversion is needed. As in ``headgate synth``, weights have mean zero and
standard deviation 1 / sqrt(columns), which keeps activations of order one and routing close to
uniform. Tensor names, types and metadata are those that llama.cpp's own conversion script writes.

    pip install gguf==0.19.0
    python benchmarks/peers/make_model.py OUT.gguf --layers 12 --vocab 32768
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type

from headgate.measure.synth import shape_config

BLOCK = 32  # weights of a block of Q4_0 and of Q8_0
#: type -> bytes of codes in a block, mean square of a uniform code
QUANTISED = {Type.Q4_0: (16, 21.5), Type.Q8_0: (32, 5461.5)}
#: of multi-dimensional rotary embeddings: time, height, width, none; as in all Qwen3.5 models
MROPE_SECTIONS = [11, 11, 10, 0]


@dataclass(frozen=True)
class Tensor:
    """``shape`` has rows before columns; the last dimension is contiguous."""

    name: str
    shape: tuple[int, ...]
    type: Type

    @property
    def nbytes(self) -> int:
        count = int(np.prod(self.shape))
        if self.type == Type.F32:
            return 4 * count
        return count // BLOCK * (2 + QUANTISED[self.type][0])


def tensors(config: dict[str, Any], experts: Type, dense: Type) -> Iterator[Tensor]:
    """Every tensor, in the order of the file."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    yield Tensor("token_embd.weight", (vocab, hidden), dense)
    for layer in range(config["num_hidden_layers"]):
        yield from _layer(config, f"blk.{layer}.", layer, experts, dense)
    yield Tensor("output_norm.weight", (hidden,), Type.F32)
    yield Tensor("output.weight", (vocab, hidden), dense)


def _layer(
    config: dict[str, Any], prefix: str, layer: int, experts: Type, dense: Type
) -> Iterator[Tensor]:
    hidden, count = config["hidden_size"], config["num_experts"]
    inner, shared = config["moe_intermediate_size"], config["shared_expert_intermediate_size"]
    attention = (layer + 1) % config["full_attention_interval"] == 0
    parts = {
        "attn_norm.weight": ((hidden,), Type.F32),
        **(_attention(config, dense) if attention else _linear_attention(config, dense)),
        "post_attention_norm.weight": ((hidden,), Type.F32),
        "ffn_gate_inp.weight": ((count, hidden), Type.F32),
        "ffn_gate_exps.weight": ((count, inner, hidden), experts),
        "ffn_up_exps.weight": ((count, inner, hidden), experts),
        "ffn_down_exps.weight": ((count, hidden, inner), experts),
        "ffn_gate_inp_shexp.weight": ((hidden,), Type.F32),
        "ffn_gate_shexp.weight": ((shared, hidden), dense),
        "ffn_up_shexp.weight": ((shared, hidden), dense),
        "ffn_down_shexp.weight": ((hidden, shared), dense),
    }
    for name, (shape, kind) in parts.items():
        yield Tensor(prefix + name, shape, kind)


def _attention(config: dict[str, Any], dense: Type) -> dict[str, tuple[tuple[int, ...], Type]]:
    hidden, head = config["hidden_size"], config["head_dim"]
    queries = config["num_attention_heads"] * head
    keys = config["num_key_value_heads"] * head
    return {
        "attn_q.weight": ((2 * queries, hidden), dense),  # and the output gate
        "attn_k.weight": ((keys, hidden), dense),
        "attn_v.weight": ((keys, hidden), dense),
        "attn_output.weight": ((hidden, queries), dense),
        "attn_q_norm.weight": ((head,), Type.F32),
        "attn_k_norm.weight": ((head,), Type.F32),
    }


def _linear_attention(
    config: dict[str, Any], dense: Type
) -> dict[str, tuple[tuple[int, ...], Type]]:
    hidden, heads = config["hidden_size"], config["linear_num_value_heads"]
    keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    values = heads * config["linear_value_head_dim"]
    mixed = 2 * keys + values
    return {
        "attn_qkv.weight": ((mixed, hidden), dense),
        "attn_gate.weight": ((values, hidden), dense),
        "ssm_conv1d.weight": ((mixed, config["linear_conv_kernel_dim"]), Type.F32),
        "ssm_dt.bias": ((heads,), Type.F32),
        "ssm_a": ((heads,), Type.F32),
        "ssm_alpha.weight": ((heads, hidden), dense),
        "ssm_beta.weight": ((heads, hidden), dense),
        "ssm_norm.weight": ((config["linear_value_head_dim"],), Type.F32),
        "ssm_out.weight": ((hidden, values), dense),
    }


def random_values(tensor: Tensor, rng: np.random.Generator) -> npt.NDArray[Any]:
    """Contents of ``tensor``: float32, or blocks of a float16 scale and codes."""
    std = tensor.shape[-1] ** -0.5
    if tensor.type == Type.F32:
        return _plain(tensor, std, rng).astype(np.float32)
    nbytes, square = QUANTISED[tensor.type]
    blocks = np.empty(int(np.prod(tensor.shape)) // BLOCK, [("d", "<f2"), ("q", "u1", nbytes)])
    # Codes are not symmetric about zero; scales of either sign take their mean away.
    sign = 2 * rng.integers(0, 2, len(blocks), np.int8) - 1
    unit = np.float32(std * square**-0.5)
    blocks["d"] = sign * unit * (rng.random(len(blocks), np.float32) * 0.5 + np.float32(0.75))
    codes = rng.integers(0, 1 << 64, blocks["q"].size // 8, np.uint64)
    blocks["q"] = codes.view(np.uint8).reshape(-1, nbytes)
    return blocks


def _plain(tensor: Tensor, std: float, rng: np.random.Generator) -> npt.NDArray[Any]:
    name, shape = tensor.name, tensor.shape
    if name.endswith("ssm_a"):
        return -rng.uniform(1, 16, shape)
    if name.endswith("ssm_dt.bias"):  # softplus of it is 0.001..0.1, as Mamba 2 starts
        step = np.exp(rng.uniform(np.log(1e-3), np.log(0.1), shape))
        return np.asarray(step + np.log(-np.expm1(-step)))
    if name.endswith("norm.weight"):
        return 1 + 0.1 * rng.standard_normal(shape)
    return rng.standard_normal(shape) * std


def add_metadata(writer: gguf.GGUFWriter, config: dict[str, Any], dense: Type) -> None:
    """What llama.cpp needs to know of the model; there is no vocabulary but its size."""
    rope = config["rope_parameters"]
    writer.add_name("random weights, for measuring speed")
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(config["head_dim"] * rope["partial_rotary_factor"]))
    writer.add_rope_dimension_sections(MROPE_SECTIONS)
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
    writer.add_ssm_state_size(config["linear_key_head_dim"])
    writer.add_ssm_group_count(config["linear_num_key_heads"])
    writer.add_ssm_time_step_rank(config["linear_num_value_heads"])
    writer.add_ssm_inner_size(config["linear_value_head_dim"] * config["linear_num_value_heads"])
    writer.add_full_attention_interval(config["full_attention_interval"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)


def write(out: Path, config: dict[str, Any], dense: Type, seed: int) -> None:
    """Write the model; a part file stays behind if that fails."""
    rng = np.random.Generator(np.random.SFC64(seed))
    listed = list(tensors(config, Type.Q4_0, dense))
    part = out.with_name(out.name + ".part")
    writer = gguf.GGUFWriter(part, "qwen35moe")
    add_metadata(writer, config, dense)
    for tensor in listed:
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=tensor.type
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in listed:
        writer.write_tensor_data(random_values(tensor, rng))
    writer.close()
    part.rename(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--like", default="qwen3.5-35b-a3b", help="shape (%(default)s)")
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument("--vocab", type=int, help="fewer than the shape has")
    parser.add_argument(
        "--dense", choices=["q8_0", "q4_0"], default="q8_0", help="all but experts (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    begin = time.monotonic()
    config = shape_config(args.like, args.layers, args.vocab)
    write(args.out, config, Type[args.dense.upper()], args.seed)
    size, seconds = args.out.stat().st_size, time.monotonic() - begin
    print(f"{args.out}: {size / 2**30:.2f} GiB in {seconds:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
