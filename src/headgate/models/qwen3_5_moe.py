"""Qwen3.5-MoE: gated attention, gated delta rule, and experts in every layer.

A layer is ``x += mixer(norm(x)); x += moe(norm(x))``; three of four mixers are
gated delta rules with a fixed-size state, the fourth is gated full attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headgate.models.qwen3_5_moe_config import LINEAR, Qwen35MoeConfig
from headgate.models.spec import ExpertSource
from headgate.ops import Array, AttentionShape, DeltaShape, Ops, Weight
from headgate.ops.weights import as_float


@dataclass
class AttentionState:
    """Keys and values of one layer, [context, kv_heads, head_dim] each."""

    keys: Array
    values: Array


@dataclass
class DeltaState:
    """conv [channels, window - 1], the raw inputs of the last tokens; rule
    [value_heads, key_dim, value_dim]."""

    conv: Array
    rule: Array


@dataclass
class State:
    """What one sequence has to remember; ``length`` tokens are in it."""

    layers: list[AttentionState | DeltaState]
    length: int = 0


class Qwen35Moe:
    """The forward pass over any backend's operations.

    Args:
        weights: every tensor of ``config.dense_tensors()``.
        experts_per_token: routed experts; the trained number or fewer.
    """

    def __init__(
        self,
        config: Qwen35MoeConfig,
        weights: Mapping[str, Weight],
        ops: Ops,
        experts_per_token: int,
    ) -> None:
        self.config, self.ops, self.experts_per_token = config, ops, experts_per_token
        self._attention_shape = AttentionShape(
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rotary_dim=config.rotary_dim,
            rope_theta=config.rope_theta,
            eps=config.rms_norm_eps,
            gated=True,
        )
        self._delta_shape = DeltaShape(
            key_heads=config.linear_num_key_heads,
            value_heads=config.linear_num_value_heads,
            key_dim=config.linear_key_head_dim,
            value_dim=config.linear_value_head_dim,
            eps=config.rms_norm_eps,
        )
        self._embedding = ops.matrix(weights["embed_tokens.weight"])
        self._norm = ops.tensor(as_float(weights["norm.weight"]))
        head = weights.get("lm_head.weight")
        self._head = self._embedding if head is None else ops.matrix(head)
        self._layers = [
            self._load_layer(weights, f"layers.{i}.") for i in range(config.num_hidden_layers)
        ]

    def _load_layer(self, weights: Mapping[str, Weight], prefix: str) -> dict[str, Any]:
        layer: dict[str, Any] = {}
        specs = self.config.dense_tensors()
        for name, weight in weights.items():
            if not name.startswith(prefix):
                continue
            part = name.removeprefix(prefix).removesuffix(".weight")
            if specs[name].role in ("norm", "vector"):
                values = as_float(weight)
                layer[part] = self.ops.tensor(-np.exp(values) if part.endswith("A_log") else values)
            else:
                layer[part] = self.ops.matrix(weight)
        return layer

    def new_state(self, context: int) -> State:
        """The state of an empty sequence of up to ``context`` tokens."""
        c, zeros = self.config, self.ops.zeros
        layers: list[AttentionState | DeltaState] = []
        for kind in c.layer_types:
            if kind == LINEAR:
                conv = zeros(c.conv_dim, c.linear_conv_kernel_dim - 1)
                heads, dk, dv = (
                    c.linear_num_value_heads,
                    c.linear_key_head_dim,
                    c.linear_value_head_dim,
                )
                layers.append(DeltaState(conv, zeros(heads, dk, dv)))
            else:
                shape = (context, c.num_key_value_heads, c.head_dim)
                layers.append(AttentionState(zeros(*shape), zeros(*shape)))
        return State(layers)

    def forward(
        self, ids: Sequence[int], state: State, experts: ExpertSource, all_logits: bool = False
    ) -> Array:
        """Append tokens to a sequence.

        Args:
            ids: T token ids.
            state: changed in place.
            experts: where the routed experts come from.
            all_logits: logits of every token instead of the last alone.

        Returns:
            logits [1, vocab], or [T, vocab].
        """
        ops, eps = self.ops, self.config.rms_norm_eps
        x = ops.embed(self._embedding, ids)
        for number, (layer, memory) in enumerate(zip(self._layers, state.layers, strict=True)):
            h = ops.rms_norm(x, layer["input_layernorm"], eps)
            x = ops.add(x, self._mix(h, layer, memory, state.length))
            h = ops.rms_norm(x, layer["post_attention_layernorm"], eps)
            x = self._moe(x, h, layer, number, experts)
        state.length += len(ids)
        if not all_logits:
            x = ops.last_row(x)
        (logits,) = ops.linear(ops.rms_norm(x, self._norm, eps), self._head)
        return logits

    def _mix(
        self, h: Array, layer: dict[str, Any], memory: AttentionState | DeltaState, start: int
    ) -> Array:
        if isinstance(memory, DeltaState):
            return self._linear_attention(h, layer, memory)
        return self._full_attention(h, layer, memory, start)

    def _full_attention(
        self, h: Array, layer: dict[str, Any], memory: AttentionState, start: int
    ) -> Array:
        q, k, v = self.ops.linear(
            h, layer["self_attn.q_proj"], layer["self_attn.k_proj"], layer["self_attn.v_proj"]
        )
        out = self.ops.attention(
            self._attention_shape,
            q,
            k,
            v,
            layer["self_attn.q_norm"],
            layer["self_attn.k_norm"],
            memory.keys,
            memory.values,
            start,
        )
        return self.ops.linear(out, layer["self_attn.o_proj"])[0]

    def _linear_attention(self, h: Array, layer: dict[str, Any], memory: DeltaState) -> Array:
        qkv, z = self.ops.linear(
            h, layer["linear_attn.in_proj_qkv"], layer["linear_attn.in_proj_z"]
        )
        b, a = self.ops.linear(
            h, layer["linear_attn.in_proj_b"], layer["linear_attn.in_proj_a"], exact=True
        )
        out = self.ops.delta_net(
            self._delta_shape,
            qkv,
            z,
            b,
            a,
            layer["linear_attn.conv1d"],
            layer["linear_attn.A_log"],
            layer["linear_attn.dt_bias"],
            layer["linear_attn.norm"],
            memory.conv,
            memory.rule,
        )
        return self.ops.linear(out, layer["linear_attn.out_proj"])[0]

    def _moe(
        self, x: Array, h: Array, layer: dict[str, Any], number: int, experts: ExpertSource
    ) -> Array:
        ops = self.ops
        logits, gate = ops.linear(h, layer["mlp.gate"], layer["mlp.shared_expert_gate"], exact=True)
        ids, weights = ops.route(logits, self.experts_per_token)
        request = experts.request(number, ids)
        if len(ids) == 1 and experts.wants_suggestions and number + 1 < len(self._layers):
            self._suggest(x, number + 1, experts)
        # The shared expert is multiplied while the routed ones are being read.
        inner = ops.silu_mul(
            *ops.linear(h, layer["mlp.shared_expert.gate_proj"], layer["mlp.shared_expert.up_proj"])
        )
        (shared,) = ops.linear(inner, layer["mlp.shared_expert.down_proj"])
        return experts.compute(request, h, weights, ops.add_gated(x, shared, gate))

    def _suggest(self, x: Array, number: int, experts: ExpertSource) -> None:
        """A guess at a later layer's routing: its router on this layer's hidden state."""
        layer, ops = self._layers[number], self.ops
        h = ops.rms_norm(x, layer["post_attention_layernorm"], self.config.rms_norm_eps)
        (logits,) = ops.linear(h, layer["mlp.gate"], exact=True)
        experts.suggest(number, ops.route(logits, self.experts_per_token)[0][0])
