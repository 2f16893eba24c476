"""Qwen3.5-MoE: gated attention, gated delta rule, and experts in every layer.

A layer is ``x += mixer(norm(x)); x += moe(norm(x))``; three of four mixers are
gated delta rules with a fixed-size state, the fourth is gated full attention.

A pass takes tokens of several sequences. Their rows go through products, router and
experts together; only the mixers see one sequence at a time. Row i of an operation
depends on row i alone, so a sequence gets the same bits in any company. A mixer's
arithmetic depends on how many tokens it is given; it is given them in pieces that end at
multiples of :data:`GRID` and behind the ends of turns, so that where a prompt is cut, if
cut there, changes no bit.

Arrays belong to the operations; of their rows, ``x[a:b]`` is taken and assigned here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from headgate.errors import HeadgateError
from headgate.models.qwen3_5_moe_config import LINEAR, Qwen35MoeConfig
from headgate.models.qwen3_5_moe_state import AttentionState, DeltaState, State
from headgate.models.routing import NONE, Choice, Routing
from headgate.models.spec import ExpertSource, Part
from headgate.ops import Array, AttentionShape, DeltaShape, Ops, Weight
from headgate.ops.weights import as_float

#: Multiples of this are positions at which a prompt may be cut, and its state kept, without
#: changing a bit: the chunked delta rule works on so many tokens at a time. The ends of
#: turns are others.
GRID = 64


class Qwen35Moe:
    """The forward pass over any backend's operations.

    Args:
        weights: every tensor of ``config.dense_tensors()``.
        experts_per_token: routed experts; the trained number or fewer.
        routing: what else is done to the router's choice; None for nothing.
        turn_ends: tokens that end a turn of a conversation.
    """

    def __init__(
        self,
        config: Qwen35MoeConfig,
        weights: Mapping[str, Weight],
        ops: Ops,
        experts_per_token: int,
        routing: Routing | None = None,
        turn_ends: frozenset[int] = frozenset(),
    ) -> None:
        self._turn_ends = turn_ends
        self.config, self.ops, self.experts_per_token = config, ops, experts_per_token
        self.routing = routing
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
        self,
        ids: Sequence[int],
        state: State,
        experts: ExpertSource,
        all_logits: bool = False,
        drawn: bool = False,
    ) -> Array:
        """Append tokens to a sequence.

        Args:
            ids: T token ids.
            state: changed in place.
            experts: where the routed experts come from.
            all_logits: logits of every token instead of the last alone.
            drawn: the tokens are of an answer; see :class:`Part`.

        Returns:
            logits [1, vocab], or [T, vocab].
        """
        part = Part(ids, state, drawn=drawn)
        (logits,) = self.forward_many([part], experts, all_logits)
        if part.error is not None:
            raise part.error
        return logits

    def forward_many(
        self, parts: Sequence[Part], experts: ExpertSource, all_logits: bool = False
    ) -> list[Array]:
        """Append tokens to several sequences, each with the bits that it would get alone.

        Returns:
            for each part logits [1, vocab], or [T, vocab]; of no meaning where the part's
            ``error`` has been set.
        """
        found = self.hidden(parts, experts)
        return self.logits(found if all_logits else [x[-1:] for x in found])

    def logits(self, rows: Sequence[Array]) -> list[Array]:
        """Logits [T, vocab] for each of several [T, hidden] of :meth:`hidden`."""
        x = self.ops.rms_norm(_joined(self.ops, rows), self._norm, self.config.rms_norm_eps)
        return self._split(self.ops.linear(x, self._head)[0], [len(x) for x in rows])

    def hidden(self, parts: Sequence[Part], experts: ExpertSource) -> list[Array]:
        """Append tokens to several sequences, up to the last layer's output.

        A part whose experts cannot be read gets its ``error`` set, and its state is of no
        use any more; the other parts go on.

        Returns:
            for each part [T, hidden], for :meth:`logits`.
        """
        ops, eps = self.ops, self.config.rms_norm_eps
        x = ops.embed(self._embedding, [token for part in parts for token in part.ids])
        pieces = [_Pieces.of(part, self._turn_ends) for part in parts]
        for number, layer in enumerate(self._layers):
            h = ops.rms_norm(x, layer["input_layernorm"], eps)
            x = ops.add(x, self._mix(h, layer, number, pieces))
            h = ops.rms_norm(x, layer["post_attention_layernorm"], eps)
            x = self._moe(x, h, layer, number, experts, parts)
            if all(part.error for part in parts):
                break
        for part in parts:
            part.state.length += len(part.ids)
        return self._split(x, [len(part.ids) for part in parts])

    def _split(self, x: Array, sizes: Sequence[int]) -> list[Array]:
        ends = np.cumsum(sizes).tolist()
        return [x[end - size : end] for size, end in zip(sizes, ends, strict=True)]

    def _mix(
        self, h: Array, layer: dict[str, Any], number: int, pieces: Sequence[_Pieces]
    ) -> Array:
        if self.config.layer_types[number] == LINEAR:
            return self._linear_attention(h, layer, number, pieces)
        return self._full_attention(h, layer, number, pieces)

    def _each(self, work: Sequence[tuple[Part, list[int]]], call: _Mixer) -> Array:
        """``call`` for the pieces between the positions of each part; their rows in one
        array."""
        out, row = [], 0
        for part, positions in work:
            for a, b in pairwise(positions):
                out.append(call(part, a, row, row + b - a))
                row += b - a
        return _joined(self.ops, out)

    def _full_attention(
        self, h: Array, layer: dict[str, Any], number: int, pieces: Sequence[_Pieces]
    ) -> Array:
        q, k, v = self.ops.linear(
            h, layer["self_attn.q_proj"], layer["self_attn.k_proj"], layer["self_attn.v_proj"]
        )

        def attend(part: Part, start: int, a: int, b: int) -> Array:
            memory = part.state.layers[number]
            return self.ops.attention(
                self._attention_shape,
                q[a:b],
                k[a:b],
                v[a:b],
                layer["self_attn.q_norm"],
                layer["self_attn.k_norm"],
                memory.keys,
                memory.values,
                start,
            )

        out = self._each([(p.part, p.attention) for p in pieces], attend)
        return self.ops.linear(out, layer["self_attn.o_proj"])[0]

    def _linear_attention(
        self, h: Array, layer: dict[str, Any], number: int, pieces: Sequence[_Pieces]
    ) -> Array:
        qkv, z = self.ops.linear(
            h, layer["linear_attn.in_proj_qkv"], layer["linear_attn.in_proj_z"]
        )
        b_, a_ = self.ops.linear(
            h, layer["linear_attn.in_proj_b"], layer["linear_attn.in_proj_a"], exact=True
        )

        def advance(part: Part, start: int, a: int, b: int) -> Array:
            memory = part.state.layers[number]
            out = self.ops.delta_net(
                self._delta_shape,
                qkv[a:b],
                z[a:b],
                b_[a:b],
                a_[a:b],
                layer["linear_attn.conv1d"],
                layer["linear_attn.A_log"],
                layer["linear_attn.dt_bias"],
                layer["linear_attn.norm"],
                memory.conv,
                memory.rule,
            )
            if start + b - a in part.marks:
                copies = (memory.conv.copy(), memory.rule.copy())
                part.marked.setdefault(start + b - a, {})[number] = copies
            return out

        out = self._each([(p.part, p.delta) for p in pieces], advance)
        return self.ops.linear(out, layer["linear_attn.out_proj"])[0]

    def _moe(
        self,
        x: Array,
        h: Array,
        layer: dict[str, Any],
        number: int,
        experts: ExpertSource,
        parts: Sequence[Part],
    ) -> Array:
        ops = self.ops
        logits, gate = ops.linear(h, layer["mlp.gate"], layer["mlp.shared_expert_gate"], exact=True)
        if self.routing is None:
            ids, weights = ops.route(logits, self.experts_per_token)
            wanted: tuple[Any, ...] = (ids,)
        else:
            choice = self._choose(self.routing, logits, number, experts, parts)
            ids, weights = choice.ids, choice.weights
            wanted = (ids,) if choice.fine is None else (ids, choice.fine)
        request = experts.request(number, *wanted)
        single = len(ids) == len(parts)  # one token of each sequence
        if single and experts.wants_suggestions and number + 1 < len(self._layers):
            self._suggest(x, number + 1, experts)
        # The shared expert is multiplied while the routed ones are being read.
        inner = ops.silu_mul(
            *ops.linear(h, layer["mlp.shared_expert.gate_proj"], layer["mlp.shared_expert.up_proj"])
        )
        (shared,) = ops.linear(inner, layer["mlp.shared_expert.down_proj"])
        base = ops.add_gated(x, shared, gate)
        try:
            return experts.compute(request, h, weights, base)
        except HeadgateError as error:
            if len(parts) == 1:
                parts[0].error = error
                return base
        return self._apart(number, experts, parts, (h, weights, base, *wanted))

    def _choose(
        self,
        routing: Routing,
        logits: Array,
        number: int,
        experts: ExpertSource,
        parts: Sequence[Part],
    ) -> Choice:
        # Forced tokens of an answer come several at a time, as those of a prompt do.
        drawn = [part.drawn and len(part.ids) == 1 for part in parts for _ in part.ids]
        return routing.choose(
            self.ops, logits, np.array(drawn), lambda ids: experts.holds(number, ids)
        )

    def _apart(
        self,
        number: int,
        experts: ExpertSource,
        parts: Sequence[Part],
        arrays: tuple[Any, Array, Array, Array],
    ) -> Array:
        """The experts' outputs, part by part, because one of them has failed: it is left
        behind, with rows of no meaning."""
        sizes, out = [len(part.ids) for part in parts], []
        pieces = zip(*(self._split(array, sizes) for array in arrays), strict=True)
        for part, (h, weights, base, *wanted) in zip(parts, pieces, strict=True):
            if part.error is None:
                try:
                    request = experts.request(number, *wanted)
                    out.append(experts.compute(request, h, weights, base))
                    continue
                except HeadgateError as error:
                    part.error = error
            out.append(base)
        return _joined(self.ops, out)

    def _suggest(self, x: Array, number: int, experts: ExpertSource) -> None:
        """A guess at a later layer's routing: its router on this layer's hidden state."""
        layer, ops = self._layers[number], self.ops
        h = ops.rms_norm(x, layer["post_attention_layernorm"], self.config.rms_norm_eps)
        (logits,) = ops.linear(h, layer["mlp.gate"], exact=True)
        if self.routing is None:
            ids = ops.route(logits, self.experts_per_token)[0]
        else:
            ids = self.routing.guess(ops, logits)
        # Every sequence's likeliest first, each expert once.
        ranked = list(dict.fromkeys(ids.T.ravel().tolist()))
        experts.suggest(number, np.array([e for e in ranked if e != NONE], np.int32))


#: (part, position of its first token, its first row, the row behind its last) -> rows
_Mixer = Callable[[Part, int, int, int], Array]


@dataclass
class _Pieces:
    """Where the pieces of a part begin and end, from its first position to its end.

    Attributes:
        attention: at every multiple of the grid and end of a turn.
        delta: fewer, because the chunked delta rule counts the grid from where a piece
            begins: only where that is not at a multiple of it.
    """

    part: Part
    attention: list[int]
    delta: list[int]

    @classmethod
    def of(cls, part: Part, turn_ends: frozenset[int]) -> _Pieces:
        start = part.state.length
        end = start + len(part.ids)
        if end - start == 1:
            return cls(part, [start, end], [start, end])
        turns = [start + i for i, token in enumerate(part.ids, 1) if token in turn_ends]
        grid = range(start // GRID * GRID + GRID, end, GRID)
        aligned = [-(-at // GRID) * GRID for at in (start, *turns)]
        return cls(
            part,
            sorted({start, *turns, *grid, end}),
            sorted({start, *turns, *(at for at in aligned if at < end), *part.marks, end}),
        )


def _joined(ops: Ops, rows: Sequence[Array]) -> Array:
    """Arrays [T, n] one below the other."""
    if len(rows) == 1:
        return rows[0]
    out = ops.empty(sum(len(x) for x in rows), rows[0].shape[1])
    row = 0
    for x in rows:
        out[row : row + len(x)] = x
        row += len(x)
    return out
