"""The few operations of training that torch has no fast form of.

Each has a plain version for the CPU, which defines it, and one for the GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU only
    triton = None

# -- inverse of a unit lower triangle


def _inverse_plain(a: Tensor) -> Tensor:
    """(I + a)^-1 by blocks: X <- X - X a' X doubles the size of the blocks that X inverts."""
    n = a.shape[-1]
    row = torch.arange(n, device=a.device)
    x = torch.eye(n, device=a.device, dtype=a.dtype).expand_as(a)
    size = 1
    while size < n:
        block = row // size
        mask = (block[:, None] == block[None, :] + 1) & (block[:, None] % 2 == 1)
        x = x - x @ (a * mask) @ x
        size *= 2
    return x.contiguous()


if triton is not None:

    @triton.jit
    def _inverse_kernel(a_ptr, x_ptr, n: tl.constexpr):
        base = tl.program_id(0).to(tl.int64) * n * n
        i = tl.arange(0, n)
        x = tl.where(i[:, None] == i[None, :], 1.0, 0.0)
        for r in range(1, n):
            row = tl.load(a_ptr + base + r * n + i)  # a[r, :], zero from r on
            update = tl.sum(row[:, None] * x, 0)
            x = tl.where(i[:, None] == r, x - update[None, :], x)
        tl.store(x_ptr + base + i[:, None] * n + i[None, :], x)

    @triton.jit
    def _scan_kernel(m_ptr, n_ptr, s_ptr, steps, dk: tl.constexpr, dv: tl.constexpr):
        """S[0] = 0, S[c + 1] = M[c] S[c] + N[c]."""
        row = tl.program_id(0).to(tl.int64) * steps
        i, j = tl.arange(0, dk), tl.arange(0, dv)
        square = i[:, None] * dk + i[None, :]
        wide = i[:, None] * dv + j[None, :]
        s = tl.zeros((dk, dv), tl.float32)
        for c in range(steps):
            tl.store(s_ptr + (row + c) * dk * dv + wide, s)
            m = tl.load(m_ptr + (row + c) * dk * dk + square)
            s = tl.dot(m, s, input_precision="tf32x3") + tl.load(n_ptr + (row + c) * dk * dv + wide)

    @triton.jit
    def _scan_back_kernel(m_ptr, g_ptr, l_ptr, steps, dk: tl.constexpr, dv: tl.constexpr):
        """L[last] = 0, L[c - 1] = G[c] + M[c]^T L[c]: L is the gradient of N."""
        row = tl.program_id(0).to(tl.int64) * steps
        i, j = tl.arange(0, dk), tl.arange(0, dv)
        turned = i[None, :] * dk + i[:, None]
        wide = i[:, None] * dv + j[None, :]
        grad = tl.zeros((dk, dv), tl.float32)
        for back in range(steps):
            c = steps - 1 - back
            tl.store(l_ptr + (row + c) * dk * dv + wide, grad)
            m = tl.load(m_ptr + (row + c) * dk * dk + turned)
            grad = tl.dot(m, grad, input_precision="tf32x3") + tl.load(
                g_ptr + (row + c) * dk * dv + wide
            )


@torch.library.custom_op("headgate_demo::unit_lower_inverse", mutates_args=())
def unit_lower_inverse(a: Tensor) -> Tensor:
    """(I + a)^-1 of strictly lower triangles a [..., n, n]."""
    if not a.is_cuda:
        return _inverse_plain(a)
    a = a.contiguous()
    x = torch.empty_like(a)
    n = a.shape[-1]
    _inverse_kernel[(a.numel() // n**2,)](a, x, n, num_warps=1)
    return x


@unit_lower_inverse.register_fake
def _(a: Tensor) -> Tensor:
    return torch.empty_like(a, memory_format=torch.contiguous_format)


def _inverse_setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(output)


def _inverse_backward(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    turned = x.transpose(-1, -2)
    return -(turned @ grad @ turned).tril(-1)


unit_lower_inverse.register_autograd(_inverse_backward, setup_context=_inverse_setup)


# -- scan over chunks


@torch.library.custom_op("headgate_demo::chunk_scan", mutates_args=())
def chunk_scan(m: Tensor, n: Tensor) -> Tensor:
    """States before every chunk: S[0] = 0, S[c + 1] = M[c] S[c] + N[c].

    Args:
        m: [..., C, dk, dk]; n: [..., C, dk, dv].

    Returns:
        [..., C, dk, dv].
    """
    m, n = m.contiguous(), n.contiguous()
    out = torch.empty_like(n)
    steps, dk, dv = n.shape[-3:]
    if m.is_cuda:
        _scan_kernel[(n.numel() // (steps * dk * dv),)](m, n, out, steps, dk, dv, num_warps=2)
        return out
    s = torch.zeros_like(n[..., 0, :, :])
    for c in range(steps):
        out[..., c, :, :] = s
        s = m[..., c, :, :] @ s + n[..., c, :, :]
    return out


@chunk_scan.register_fake
def _(m: Tensor, n: Tensor) -> Tensor:
    return torch.empty_like(n, memory_format=torch.contiguous_format)


@torch.library.custom_op("headgate_demo::chunk_scan_back", mutates_args=())
def _chunk_scan_back(m: Tensor, grad: Tensor) -> Tensor:
    m, grad = m.contiguous(), grad.contiguous()
    out = torch.empty_like(grad)
    steps, dk, dv = grad.shape[-3:]
    if m.is_cuda:
        _scan_back_kernel[(grad.numel() // (steps * dk * dv),)](
            m, grad, out, steps, dk, dv, num_warps=2
        )
        return out
    g = torch.zeros_like(grad[..., 0, :, :])
    for c in reversed(range(steps)):
        out[..., c, :, :] = g
        g = m[..., c, :, :].transpose(-1, -2) @ g + grad[..., c, :, :]
    return out


@_chunk_scan_back.register_fake
def _(m: Tensor, grad: Tensor) -> Tensor:
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


def _scan_setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], output)


def _scan_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    m, s = ctx.saved_tensors
    back = _chunk_scan_back(m, grad)
    return back @ s.transpose(-1, -2), back


chunk_scan.register_autograd(_scan_backward, setup_context=_scan_setup)


# -- experts


def dispatch_tokens(index: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort pairs (token, rank) by expert.

    Args:
        index: [N, k], expert of each pair.

    Returns:
        order [N * k], pairs sorted by expert; inverse, the place of each pair; ends
        int32 [experts], where each expert's pairs end.
    """
    keys, order = index.flatten().to(torch.uint8).sort(stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel(), device=order.device)
    marks = torch.arange(experts, device=order.device, dtype=torch.uint8)
    ends = torch.searchsorted(keys, marks, right=True).to(torch.int32)
    return order, inverse, ends


class _GatherSum(torch.autograd.Function):
    """Spread tokens over pairs, or sum pairs back into tokens; each is the other's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, take: Tensor, back: Tensor, k: int, add: bool) -> Tensor:
        ctx.save_for_backward(take, back)
        ctx.k, ctx.add = k, add
        return _summed(x, take, k) if add else x[take]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        _, back = ctx.saved_tensors
        found = grad[back] if ctx.add else _summed(grad, back, ctx.k)
        return found, None, None, None, None


def _summed(x: Tensor, take: Tensor, k: int) -> Tensor:
    return x[take].view(-1, k, x.shape[-1]).float().sum(1).to(x.dtype)


def gather_sum(x: Tensor, take: Tensor, back: Tensor, k: int, add: bool = False) -> Tensor:
    """x[take], or with ``add`` the sums of k rows of it; ``back`` undoes it."""
    return _GatherSum.apply(x, take, back, k, add)


def grouped_product(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows of x [N, in], grouped by ``ends``, times their group's weight [E, out, in]^T."""
    w = weight.to(x.dtype)
    if x.is_cuda:
        return torch._grouped_mm(x, w.transpose(-2, -1), offs=ends)
    stops = ends.tolist()
    starts = [0, *stops[:-1]]
    return torch.cat([x[a:b] @ w[e].T for e, (a, b) in enumerate(zip(starts, stops, strict=True))])
