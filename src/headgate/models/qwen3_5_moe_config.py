"""Configuration and tensors of Qwen3.5-MoE (``qwen3_5_moe``, ``qwen3_5_moe_text``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headgate.models.spec import Fields, TensorSpec

MAX_LAYERS = 4096
LINEAR, FULL = "linear_attention", "full_attention"


@dataclass(frozen=True)
class Qwen35MoeConfig:
    """Names as in the checkpoint's ``config.json``; ``rotary_dim`` is derived."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    linear_num_key_heads: int
    linear_num_value_heads: int
    linear_key_head_dim: int
    linear_value_head_dim: int
    linear_conv_kernel_dim: int
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rotary_dim: int
    layer_types: tuple[str, ...]
    tie_word_embeddings: bool

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Qwen35MoeConfig:
        """Parse a ``config.json``, whole or its ``text_config``.

        Raises:
            ValueError: a field is missing, out of range, or asks for a variant that
                is not implemented.
        """
        text = raw.get("text_config", raw)
        if not isinstance(text, dict):
            raise ValueError("config field text_config is not an object")
        # Multimodal configurations keep this one outside text_config.
        tied = text.get("tie_word_embeddings", raw.get("tie_word_embeddings", False))
        f = Fields(text)
        f.require("hidden_act", ("silu",), "silu")
        f.require("attention_bias", (False,), False)
        f.require("attn_output_gate", (True,), True)
        rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
        if not isinstance(rope, dict):
            raise ValueError("config field rope_parameters is not an object")
        rope = {"rope_theta": text.get("rope_theta", 1e7), **rope}
        rope.setdefault("partial_rotary_factor", text.get("partial_rotary_factor", 0.25))
        Fields(rope).require("rope_type", ("default",), "default")
        layers, head_dim = f.natural("num_hidden_layers", MAX_LAYERS), f.natural("head_dim")
        config = cls(
            hidden_size=f.natural("hidden_size"),
            num_hidden_layers=layers,
            num_attention_heads=f.natural("num_attention_heads"),
            num_key_value_heads=f.natural("num_key_value_heads"),
            head_dim=head_dim,
            linear_num_key_heads=f.natural("linear_num_key_heads"),
            linear_num_value_heads=f.natural("linear_num_value_heads"),
            linear_key_head_dim=f.natural("linear_key_head_dim"),
            linear_value_head_dim=f.natural("linear_value_head_dim"),
            linear_conv_kernel_dim=f.natural("linear_conv_kernel_dim"),
            num_experts=f.natural("num_experts"),
            num_experts_per_tok=f.natural("num_experts_per_tok"),
            moe_intermediate_size=f.natural("moe_intermediate_size"),
            shared_expert_intermediate_size=f.natural("shared_expert_intermediate_size"),
            vocab_size=f.natural("vocab_size"),
            max_position_embeddings=f.natural("max_position_embeddings"),
            rms_norm_eps=f.real("rms_norm_eps", 1e-6),
            rope_theta=Fields(rope).real("rope_theta"),
            rotary_dim=int(head_dim * Fields(rope).real("partial_rotary_factor")),
            layer_types=_layer_types(text, layers),
            tie_word_embeddings=tied is True,
        )
        config._check()
        return config

    def _check(self) -> None:
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError("num_experts_per_tok is larger than num_experts")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads is no multiple of num_key_value_heads")
        if self.linear_num_value_heads % self.linear_num_key_heads:
            raise ValueError("linear_num_value_heads is no multiple of linear_num_key_heads")
        if self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim:
            raise ValueError(f"rotary dimension {self.rotary_dim} is not even or not in the head")
        if not 2 <= self.linear_conv_kernel_dim <= 8:
            raise ValueError("linear_conv_kernel_dim is outside 2..8")

    @property
    def moe_layers(self) -> tuple[int, ...]:
        return tuple(range(self.num_hidden_layers))

    @property
    def linear_key_dim(self) -> int:
        return self.linear_num_key_heads * self.linear_key_head_dim

    @property
    def linear_value_dim(self) -> int:
        return self.linear_num_value_heads * self.linear_value_head_dim

    @property
    def conv_dim(self) -> int:
        """Channels of the causal convolution: all queries, keys and values."""
        return 2 * self.linear_key_dim + self.linear_value_dim

    @property
    def activation_width(self) -> int:
        """The convolution's channels in and out, and the gate; or queries, gates,
        keys and values; or the router's logits."""
        linear = 3 * self.conv_dim + 2 * self.linear_value_dim
        heads = 4 * self.num_attention_heads + 2 * self.num_key_value_heads
        return max(linear, heads * self.head_dim) + 2 * self.num_experts

    def state_bytes(self, context: int) -> int:
        """float32: a delta-rule state and convolution window per linear layer, keys
        and values of ``context`` tokens per full-attention layer."""
        full = self.layer_types.count(FULL)
        heads, dk, dv = (
            self.linear_num_value_heads,
            self.linear_key_head_dim,
            self.linear_value_head_dim,
        )
        linear = heads * dk * dv + self.conv_dim * (self.linear_conv_kernel_dim - 1)
        kv = 2 * context * self.num_key_value_heads * self.head_dim
        return 4 * ((self.num_hidden_layers - full) * linear + full * kv)

    def dense_tensors(self) -> dict[str, TensorSpec]:
        h = self.hidden_size
        tensors = {
            "embed_tokens.weight": TensorSpec((self.vocab_size, h), "embedding"),
            "norm.weight": TensorSpec((h,), "norm", zero_centred=True),
        }
        if not self.tie_word_embeddings:
            tensors["lm_head.weight"] = TensorSpec((self.vocab_size, h), "projection")
        for number, kind in enumerate(self.layer_types):
            parts = self._linear_attention() if kind == LINEAR else self._full_attention()
            for name, spec in {**parts, **self._block()}.items():
                tensors[f"layers.{number}.{name}"] = spec
        return tensors

    def _block(self) -> dict[str, TensorSpec]:
        h, shared = self.hidden_size, self.shared_expert_intermediate_size
        return {
            "input_layernorm.weight": TensorSpec((h,), "norm", zero_centred=True),
            "post_attention_layernorm.weight": TensorSpec((h,), "norm", zero_centred=True),
            "mlp.gate.weight": TensorSpec((self.num_experts, h), "router"),
            "mlp.shared_expert_gate.weight": TensorSpec((1, h), "router"),
            "mlp.shared_expert.gate_proj.weight": TensorSpec((shared, h), "projection"),
            "mlp.shared_expert.up_proj.weight": TensorSpec((shared, h), "projection"),
            "mlp.shared_expert.down_proj.weight": TensorSpec((h, shared), "projection"),
        }

    def _full_attention(self) -> dict[str, TensorSpec]:
        h, hd = self.hidden_size, self.head_dim
        q, kv = self.num_attention_heads * hd, self.num_key_value_heads * hd
        return {
            "self_attn.q_proj.weight": TensorSpec((2 * q, h), "projection"),
            "self_attn.k_proj.weight": TensorSpec((kv, h), "projection"),
            "self_attn.v_proj.weight": TensorSpec((kv, h), "projection"),
            "self_attn.o_proj.weight": TensorSpec((h, q), "projection"),
            "self_attn.q_norm.weight": TensorSpec((hd,), "norm", zero_centred=True),
            "self_attn.k_norm.weight": TensorSpec((hd,), "norm", zero_centred=True),
        }

    def _linear_attention(self) -> dict[str, TensorSpec]:
        h, heads = self.hidden_size, self.linear_num_value_heads
        return {
            "linear_attn.in_proj_qkv.weight": TensorSpec((self.conv_dim, h), "projection"),
            "linear_attn.in_proj_z.weight": TensorSpec((self.linear_value_dim, h), "projection"),
            "linear_attn.in_proj_b.weight": TensorSpec((heads, h), "router"),
            "linear_attn.in_proj_a.weight": TensorSpec((heads, h), "router"),
            "linear_attn.conv1d.weight": TensorSpec(
                (self.conv_dim, self.linear_conv_kernel_dim), "vector"
            ),
            "linear_attn.A_log": TensorSpec((heads,), "vector"),
            "linear_attn.dt_bias": TensorSpec((heads,), "vector"),
            "linear_attn.norm.weight": TensorSpec((self.linear_value_head_dim,), "norm"),
            "linear_attn.out_proj.weight": TensorSpec((h, self.linear_value_dim), "projection"),
        }


def _layer_types(text: dict[str, Any], layers: int) -> tuple[str, ...]:
    kinds = text.get("layer_types")
    if kinds is None:
        interval = Fields({"full_attention_interval": 4, **text}).natural("full_attention_interval")
        kinds = [FULL if (i + 1) % interval == 0 else LINEAR for i in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise ValueError(f"config field layer_types does not list {layers} layers")
    if unknown := {str(k) for k in kinds} - {LINEAR, FULL}:
        raise ValueError(f"config field layer_types has unknown kinds {sorted(unknown)}")
    return tuple(kinds)
