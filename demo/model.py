"""Qwen3.5-MoE's forward pass, written for fast training.

Computes what transformers' ``Qwen3_5MoeForCausalLM`` computes on each document of a
packed row, from parameters with the same names. The delta rule is chunked (Yang et
al., *Gated Delta Networks*, 2024) with two small kernels, the inverse of a unit lower
triangle and the scan over chunks; everything else is left to torch.compile, one
compiled function per kind of layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from kernels import chunk_scan, dispatch_tokens, gather_sum, grouped_product, unit_lower_inverse
from torch import Tensor

CHUNK = 32
#: Log-decay at the first token of a document: nothing of the state survives.
RESET = -40.0
#: Share of the tokens below which an expert is pulled towards those that nearly chose it.
FLOOR = 0.02


@dataclass(frozen=True)
class Sizes:
    """The configuration's fields that the forward pass needs."""

    vocab: int = 4096
    hidden: int = 256
    layers: int = 8
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    key_heads: int = 4
    value_heads: int = 8
    key_dim: int = 32
    value_dim: int = 32
    experts: int = 64
    top_k: int = 8
    inner: int = 64
    shared: int = 64
    interval: int = 2
    theta: float = 100000.0
    rotary: float = 0.25
    eps: float = 1e-6

    def is_full(self, layer: int) -> bool:
        """Whether a layer is full attention; gated delta rule otherwise."""
        return (layer + 1) % self.interval == 0

    def config(self) -> dict[str, Any]:
        """Keyword arguments of transformers' configuration class."""
        kinds = [
            "full_attention" if self.is_full(i) else "linear_attention" for i in range(self.layers)
        ]
        return {
            "vocab_size": self.vocab, "hidden_size": self.hidden, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "linear_num_key_heads": self.key_heads, "linear_num_value_heads": self.value_heads,
            "linear_key_head_dim": self.key_dim, "linear_value_head_dim": self.value_dim,
            "moe_intermediate_size": self.inner, "shared_expert_intermediate_size": self.shared,
            "num_experts": self.experts, "num_experts_per_tok": self.top_k, "layer_types": kinds,
            "max_position_embeddings": 4096, "tie_word_embeddings": False, "rms_norm_eps": self.eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.theta, "partial_rotary_factor": self.rotary},
            "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
        }  # fmt: skip


def shapes(s: Sizes) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter, as transformers names them."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (s.vocab, s.hidden)}
    conv = 2 * s.key_heads * s.key_dim + s.value_heads * s.value_dim
    wide = s.value_heads * s.value_dim
    for i in range(s.layers):
        layer: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (s.hidden,)}
        if s.is_full(i):
            layer |= {
                "self_attn.q_proj.weight": (2 * s.heads * s.head_dim, s.hidden),
                "self_attn.k_proj.weight": (s.kv_heads * s.head_dim, s.hidden),
                "self_attn.v_proj.weight": (s.kv_heads * s.head_dim, s.hidden),
                "self_attn.o_proj.weight": (s.hidden, s.heads * s.head_dim),
                "self_attn.q_norm.weight": (s.head_dim,),
                "self_attn.k_norm.weight": (s.head_dim,),
            }
        else:
            layer |= {
                "linear_attn.in_proj_qkv.weight": (conv, s.hidden),
                "linear_attn.in_proj_z.weight": (wide, s.hidden),
                "linear_attn.in_proj_b.weight": (s.value_heads, s.hidden),
                "linear_attn.in_proj_a.weight": (s.value_heads, s.hidden),
                "linear_attn.conv1d.weight": (conv, 1, 4),
                "linear_attn.A_log": (s.value_heads,),
                "linear_attn.dt_bias": (s.value_heads,),
                "linear_attn.norm.weight": (s.value_dim,),
                "linear_attn.out_proj.weight": (s.hidden, wide),
            }
        layer |= {
            "post_attention_layernorm.weight": (s.hidden,),
            "mlp.gate.weight": (s.experts, s.hidden),
            "mlp.experts.gate_up_proj": (s.experts, 2 * s.inner, s.hidden),
            "mlp.experts.down_proj": (s.experts, s.hidden, s.inner),
            "mlp.shared_expert.gate_proj.weight": (s.shared, s.hidden),
            "mlp.shared_expert.up_proj.weight": (s.shared, s.hidden),
            "mlp.shared_expert.down_proj.weight": (s.hidden, s.shared),
            "mlp.shared_expert_gate.weight": (1, s.hidden),
        }
        found |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return found | {"model.norm.weight": (s.hidden,), "lm_head.weight": (s.vocab, s.hidden)}


def initial(s: Sizes, seed: int = 0) -> dict[str, Tensor]:
    """Fresh float32 parameters."""
    g = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes(s).items():
        last = name.split(".layers.")[-1]
        if last.endswith("linear_attn.norm.weight"):
            p = torch.ones(shape)
        elif "norm" in last:
            p = torch.zeros(shape)
        elif last.endswith("A_log"):
            p = torch.empty(shape).uniform_(1, 8, generator=g).log()
        elif last.endswith("dt_bias"):  # softplus of it spreads over 0.001 .. 0.1
            dt = (torch.empty(shape).uniform_(math.log(1e-3), math.log(1e-1), generator=g)).exp()
            p = dt + torch.log(-torch.expm1(-dt))
        else:
            std = {"embed_tokens": 0.1, "conv1d": 0.3, "lm_head": 0.02, "mlp.gate.": 0.02}
            small = any(part in last for part in ("o_proj", "out_proj", "down_proj"))
            scale = next((v for k, v in std.items() if k in name), 0.01 if small else 0.04)
            p = torch.randn(shape, generator=g) * scale
        found[name] = p
    return found


@dataclass
class Packing:
    """Where documents begin in a batch of rows.

    Attributes:
        position: int64 [B, T], of a token in its document.
        cu: int32 [docs + 1], offsets of documents in the flattened batch, padded with
            its length.
    """

    position: Tensor
    cu: Tensor


def rms(x: Tensor, weight: Tensor, eps: float, plus: float = 1.0) -> Tensor:
    """RMSNorm in float32, cast back."""
    h = x.float()
    h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    return (h * (plus + weight)).to(x.dtype)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T in x's type."""
    return F.linear(x, weight.to(x.dtype))


def delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """Chunked gated delta rule in float32.

    Args:
        q, k: [B, T, key heads, dk], normalised, q scaled; v: [B, T, value heads, dv];
        g, beta: [B, T, value heads]. T is a multiple of CHUNK.

    Returns:
        [B, T, value heads, dv].
    """
    b, t, nk, dk = k.shape
    nv, dv = v.shape[2:]
    n, r = t // CHUNK, nv // nk
    q, k = (x.view(b, n, CHUNK, nk, dk).permute(0, 3, 1, 2, 4) for x in (q, k))  # b nk n c d
    v = v.view(b, n, CHUNK, nk, r, dv).permute(0, 3, 4, 1, 2, 5)  # b nk r n c d
    g, beta = (x.view(b, n, CHUNK, nk, r).permute(0, 3, 4, 1, 2) for x in (g, beta))
    big = g.cumsum(-1)
    lower = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=q.device).tril()
    decay = (big[..., :, None] - big[..., None, :]).masked_fill(~lower, -torch.inf).exp()
    both = torch.cat((k, q), -2) @ k.transpose(-1, -2)  # b nk n 2c c
    kk, qk = both[:, :, None, :, :CHUNK], both[:, :, None, :, CHUNK:]
    a = (kk * beta[..., None] * decay).tril(-1)
    p = qk * decay  # b nk r n c c
    grown = big.exp()[..., None]
    kr, qr = k[:, :, None], q[:, :, None]
    inverse = unit_lower_inverse(a)
    u, w = (inverse @ torch.cat((v * beta[..., None], kr * (beta[..., None] * grown)), -1)).split(
        (dv, dk), -1
    )
    last = big[..., -1:]
    kt = (kr * (last - big).exp()[..., None]).transpose(-1, -2)
    new, old = (kt @ torch.cat((u, w), -1)).split((dv, dk), -1)
    eye = torch.eye(dk, device=q.device)
    state = chunk_scan(last.exp()[..., None] * eye - old, new)
    values = u - w @ state
    out = (qr * grown) @ state + p @ values  # b nk r n c dv
    return out.permute(0, 3, 4, 1, 2, 5).reshape(b, t, nv, dv)


def delta_mixer(s: Sizes, p: Mapping[str, Tensor], h: Tensor, position: Tensor) -> Tensor:
    """Gated DeltaNet; h [B, T, hidden]."""
    b, t, _ = h.shape
    mixed = linear(h, p["linear_attn.in_proj_qkv.weight"])
    kernel = p["linear_attn.conv1d.weight"].squeeze(1)
    x = F.pad(mixed, (0, 0, 3, 0)).float()
    conv = torch.zeros_like(mixed, dtype=torch.float32)
    for back in range(4):
        tap = x[:, 3 - back : 3 - back + t] * kernel[:, 3 - back]
        conv = conv + tap * (position >= back)[..., None]
    conv = F.silu(conv)
    wide = s.key_heads * s.key_dim
    q, k, v = conv.split((wide, wide, s.value_heads * s.value_dim), -1)
    q, k = (x.view(b, t, s.key_heads, s.key_dim) for x in (q, k))
    q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (q, k))
    ba = linear(
        h, torch.cat((p["linear_attn.in_proj_b.weight"], p["linear_attn.in_proj_a.weight"]))
    )
    beta, a = ba.float().split(s.value_heads, -1)
    g = -p["linear_attn.A_log"].exp() * F.softplus(a + p["linear_attn.dt_bias"])
    g = torch.where((position == 0)[..., None], g.new_full((), RESET), g)
    v = v.view(b, t, s.value_heads, s.value_dim)
    out = delta_rule(q * s.key_dim**-0.5, k, v, g, beta.sigmoid())
    z = linear(h, p["linear_attn.in_proj_z.weight"]).view(out.shape)
    out = rms(out, p["linear_attn.norm.weight"], s.eps, 0.0) * F.silu(z.float())
    return linear(out.to(h.dtype).reshape(b, t, -1), p["linear_attn.out_proj.weight"])


def _rotate(s: Sizes, x: Tensor) -> Tensor:
    """RoPE on the first dimensions of x [B, T, heads, d]."""
    d = int(s.head_dim * s.rotary)
    freq = s.theta ** (-torch.arange(0, d, 2, device=x.device, dtype=torch.float32) / d)
    angle = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)[:, None] * freq
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x[..., : d // 2].float(), x[..., d // 2 : d].float()
    turned = torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)
    return torch.cat((turned, x[..., d:]), -1)


def attention_mixer(s: Sizes, p: Mapping[str, Tensor], h: Tensor, pack: Packing) -> Tensor:
    """Gated attention within documents."""
    b, t, _ = h.shape
    q, gate = (
        linear(h, p["self_attn.q_proj.weight"]).view(b, t, s.heads, 2 * s.head_dim).chunk(2, -1)
    )
    k = linear(h, p["self_attn.k_proj.weight"]).view(b, t, s.kv_heads, s.head_dim)
    v = linear(h, p["self_attn.v_proj.weight"]).view(b, t, s.kv_heads, s.head_dim)
    q = _rotate(s, rms(q, p["self_attn.q_norm.weight"], s.eps))
    k = _rotate(s, rms(k, p["self_attn.k_norm.weight"], s.eps))
    k, v = (x.repeat_interleave(s.heads // s.kv_heads, 2) for x in (k, v))
    if h.is_cuda:
        flat = (x.reshape(b * t, s.heads, s.head_dim) for x in (q, k, v))
        out = torch.ops.aten._flash_attention_forward(
            *flat, pack.cu, pack.cu, t, t, 0.0, True, False, scale=s.head_dim**-0.5
        )[0].view(b, t, s.heads, s.head_dim)
    else:
        start = torch.arange(t, device=h.device) - pack.position  # [B, T]
        mask = (start[:, :, None] == start[:, None, :]).tril()[:, None]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)
    out = out * torch.sigmoid(gate)
    return linear(out.reshape(b, t, -1), p["self_attn.o_proj.weight"])


def routing_losses(s: Sizes, logits: Tensor, top: Tensor, share: Tensor, position: Tensor) -> Tensor:  # fmt: skip
    """What training may ask of a router: [3], balance, floor and locality.

    Balance is the usual loss over the whole batch (Fedus et al., *Switch Transformers*,
    2021), 1 when even. Floor is 0 unless an expert has less than FLOOR of the tokens, and
    then raises its probability where it is highest. Locality is 1 less the cosine of the
    smoothed choices of adjacent tokens, whose limit is the share of experts in common.

    Args:
        logits: [N, experts]; top: [N, top_k + 1], the highest; share: [experts];
        position: [N], of a token in its document.
    """
    p = logits.softmax(-1).mean(0)
    balance = s.experts * (share / s.top_k * p).sum()
    under = (1 - share / FLOOR).clamp(min=0)
    floor = -(under * (p + 1e-9).log()).mean()
    threshold = top[:, -2:].mean(-1, keepdim=True)
    width = 0.3 * logits.std().detach() + 1e-6
    chosen = F.normalize(torch.sigmoid((logits - threshold) / width), dim=-1)
    cosine = (chosen[1:] * chosen[:-1]).sum(-1)
    inside = (position[1:] > 0).float()
    return torch.stack((balance, floor, 1 - (cosine * inside).sum() / inside.sum()))


def moe(s: Sizes, p: Mapping[str, Tensor], h: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Routed and shared experts of h [N, hidden].

    Returns:
        output [N, hidden]; :func:`routing_losses`; share of tokens per expert; experts
        chosen, uint8 [N, top_k].
    """
    logits = linear(h, p["mlp.gate.weight"]).float()
    top, index = logits.topk(s.top_k + 1, -1)
    index = index[:, : s.top_k].contiguous()
    weight = top[:, : s.top_k].softmax(-1)
    order, inverse, ends = dispatch_tokens(index, s.experts)
    x = gather_sum(h, order // s.top_k, inverse, s.top_k)
    gate, up = grouped_product(x, p["mlp.experts.gate_up_proj"], ends).chunk(2, -1)
    inner = F.silu(gate) * up * weight.flatten()[order][:, None].to(h.dtype)
    y = grouped_product(inner, p["mlp.experts.down_proj"], ends)
    routed = gather_sum(y, inverse, order // s.top_k, s.top_k, add=True)
    share = torch.diff(ends, prepend=ends.new_zeros(1)).float() / h.shape[0]
    losses = routing_losses(s, logits, top, share, position)
    inner = F.silu(linear(h, p["mlp.shared_expert.gate_proj.weight"])) * linear(
        h, p["mlp.shared_expert.up_proj.weight"]
    )
    shared = linear(inner, p["mlp.shared_expert.down_proj.weight"])
    shared = shared * torch.sigmoid(linear(h, p["mlp.shared_expert_gate.weight"]))
    return routed + shared, losses, share, index.to(torch.uint8)


def layer(s: Sizes, full: bool, p: Mapping[str, Tensor], x: Tensor, position: Tensor, cu: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """One decoder layer; x [B, T, hidden]."""
    h = rms(x, p["input_layernorm.weight"], s.eps)
    if full:
        x = x + attention_mixer(s, p, h, Packing(position, cu))
    else:
        x = x + delta_mixer(s, p, h, position)
    h = rms(x, p["post_attention_layernorm.weight"], s.eps)
    y, losses, share, index = moe(s, p, h.flatten(0, 1), position.flatten())
    return x + y.view_as(x), losses, share, index


def head_loss(s: Sizes, norm: Tensor, head: Tensor, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(cross-entropy, whether the target is the likeliest) of every token, [N]; x [N, hidden]."""
    logits = linear(rms(x, norm, s.eps), head).float()
    ce = F.cross_entropy(logits, targets, reduction="none")
    found = logits.detach()
    return ce, found.gather(-1, targets[:, None])[:, 0] >= found.max(-1).values


class Losses(NamedTuple):
    """What one forward pass says.

    Attributes:
        ce: [N], cross-entropy of every target; right: bool [N], it is the greedy choice.
        routing: [3], :func:`routing_losses`, mean of the layers.
        shares: [layers, experts], of the tokens that use an expert.
        index: uint8 [layers, N, top_k], the experts chosen.
    """

    ce: Tensor
    right: Tensor
    routing: Tensor
    shares: Tensor
    index: Tensor


class Model:
    """Parameters and their forward pass.

    Args:
        dtype: of activations.
        compiled: through torch.compile.
    """

    def __init__(
        self, s: Sizes, params: dict[str, Tensor], dtype: torch.dtype, compiled: bool
    ) -> None:
        self.s, self.params, self.dtype = s, params, dtype
        wrap = (lambda f: torch.compile(f, dynamic=False)) if compiled else (lambda f: f)
        self._layer, self._head = wrap(layer), wrap(head_loss)
        self._parts = [
            {k.split(".", 3)[3]: v for k, v in params.items() if k.startswith(f"model.layers.{i}.")}
            for i in range(s.layers)
        ]

    def hidden(self, ids: Tensor, pack: Packing) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(before the last norm [B, T, hidden], then as in :class:`Losses`)."""
        table = self.params["model.embed_tokens.weight"]
        # Its gradient is added with atomics, which a CUDA graph can hold.
        x = table.index_select(0, ids.flatten()).view(*ids.shape, -1).to(self.dtype)
        losses, shares, chosen = [], [], []
        for i, part in enumerate(self._parts):
            x, routing, share, index = self._layer(
                self.s, self.s.is_full(i), part, x, pack.position, pack.cu
            )
            losses.append(routing)
            shares.append(share)
            chosen.append(index)
        return x, torch.stack(losses).mean(0), torch.stack(shares), torch.stack(chosen)

    def losses(self, ids: Tensor, targets: Tensor, pack: Packing) -> Losses:
        """Of every target [B, T] after its input."""
        x, *routed = self.hidden(ids, pack)
        p = self.params
        ce, right = self._head(
            self.s, p["model.norm.weight"], p["lm_head.weight"], x.flatten(0, 1), targets.flatten()
        )
        return Losses(ce, right, *routed)

    def logits(self, ids: Tensor, pack: Packing) -> Tensor:
        """[B, T, vocab]."""
        x = self.hidden(ids, pack)[0]
        p = self.params
        return linear(rms(x, p["model.norm.weight"], self.s.eps), p["lm_head.weight"])
