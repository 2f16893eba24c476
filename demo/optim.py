"""Muon for the layers' matrices, Adam for everything else.

Muon (Jordan et al., 2024) steps along the orthogonalised momentum, here scaled to
Adam's usual size (Liu et al., *Muon is scalable for LLM training*, 2025).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ADAM = ("embed_tokens", "lm_head", "mlp.gate.", "shared_expert_gate", "in_proj_a", "in_proj_b", "conv1d")  # fmt: skip


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrices of g [n, rows, columns], roughly, in bfloat16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    if wide := x.shape[-2] > x.shape[-1]:
        x = x.transpose(-1, -2)
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).bfloat16()
    for _ in range(steps):
        y = x @ x.transpose(-1, -2)
        x = a * x + (b * y + c * (y @ y)) @ x
    return x.transpose(-1, -2) if wide else x


class Optimizer:
    """Steps on named float32 parameters.

    Args:
        decay: weight decay of matrices.
    """

    def __init__(
        self, params: dict[str, Tensor], decay: float = 0.05, compiled: bool = False
    ) -> None:
        self.decay = decay
        self._orthogonalise = (
            torch.compile(orthogonalise, dynamic=False) if compiled else orthogonalise
        )
        self.groups: dict[tuple[int, ...], list[Tensor]] = {}
        self.adam: list[Tensor] = []
        for name, p in params.items():
            if p.ndim < 2 or any(part in name for part in _ADAM):
                self.adam.append(p)
            else:
                self.groups.setdefault(_matrices(p, p).shape, []).append(p)
        self.momentum = {
            k: torch.zeros(len(v), *k, device=v[0].device) for k, v in self.groups.items()
        }
        self.first = [torch.zeros_like(p) for p in self.adam]
        self.second = [torch.zeros_like(p) for p in self.adam]

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"momentum": self.momentum, "first": self.first, "second": self.second}

    def load(self, state: dict[str, Any]) -> None:
        """Take over :meth:`state`."""
        for key, value in self.momentum.items():
            value.copy_(state["momentum"][key])
        for mine, theirs in ((self.first, state["first"]), (self.second, state["second"])):
            for a, b in zip(mine, theirs, strict=True):
                a.copy_(b)

    @torch.no_grad()
    def step(self, grads: dict[int, Tensor], lr: Tensor, correction: Tensor) -> None:
        """One step.

        Args:
            grads: id of a parameter -> its gradient.
            lr: scalar; correction: [2], 1 - beta^step of Adam's moments.
        """
        for key, params in self.groups.items():
            g = torch.stack([_matrices(grads[id(p)], p) for p in params])
            m = self.momentum[key].lerp_(g, 0.05)
            u = self._orthogonalise(g.lerp(m, 0.95).flatten(0, -3)).view(g.shape)
            scale = 0.2 * max(key[-2:]) ** 0.5
            for p, step in zip(params, u.unbind(0), strict=True):
                p.mul_(1 - lr * self.decay).sub_(step.reshape(p.shape).float() * (lr * scale))
        gs = [grads[id(p)] for p in self.adam]
        torch._foreach_lerp_(self.first, gs, 0.1)
        torch._foreach_mul_(self.second, 0.98)
        torch._foreach_addcmul_(self.second, gs, gs, 0.02)
        denominator = torch._foreach_sqrt(torch._foreach_div(self.second, correction[1]))
        torch._foreach_add_(denominator, 1e-9)
        steps = torch._foreach_div(torch._foreach_div(self.first, correction[0]), denominator)
        torch._foreach_mul_(steps, lr)
        torch._foreach_sub_(self.adam, steps)


def _matrices(x: Tensor, p: Tensor) -> Tensor:
    """As one or several matrices: an expert's gate and up are two."""
    if p.ndim == 3 and p.shape[-2] * 1.5 < p.shape[-1] + 1:  # gate_up [E, 2 I, H]
        return x.view(2 * p.shape[0], p.shape[1] // 2, p.shape[2])
    return x
