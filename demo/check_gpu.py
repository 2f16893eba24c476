"""On a GPU: the fast kernels against the plain ones, and the compiled model against
transformers' in float32."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import kernels
from model import Model, Packing, Sizes, initial


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative distance."""
    return float((a.float().cpu() - b.float().cpu()).norm() / b.float().cpu().norm())


def main() -> None:
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch._dynamo.config.specialize_float = True
    a = torch.rand(300, 32, 32).tril(-1)
    print(
        "inverse",
        error(kernels.unit_lower_inverse(a.cuda()), kernels.unit_lower_inverse(a.double()).float()),
    )
    m, n = torch.randn(40, 32, 32, 32) * 0.15, torch.randn(40, 32, 32, 32)
    print("scan", error(kernels.chunk_scan(m.cuda(), n.cuda()), kernels.chunk_scan(m, n)))
    back = kernels._chunk_scan_back
    print("scan back", error(back(m.cuda(), n.cuda()), back(m, n)))
    s = Sizes(layers=2)
    params = initial(s)
    ids, targets = torch.randint(0, s.vocab, (2, 4, 1024))
    position = torch.arange(1024).repeat(4, 1)
    position[:, 300:] -= 300
    starts = [0, 300]
    cu = torch.tensor(
        [i * 1024 + j for i in range(4) for j in starts] + [4096] * 4, dtype=torch.int32
    )
    found = []
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        p = {
            k: (v * 1.5 if v.ndim > 1 else v).to(device).requires_grad_() for k, v in params.items()
        }
        model = Model(s, p, dtype, device == "cuda")
        losses = model.losses(
            ids.to(device), targets.to(device), Packing(position.to(device), cu.to(device))
        )
        grads = torch.autograd.grad(losses.ce.mean() + losses.routing.sum(), list(p.values()))
        found.append((losses.ce.detach(), grads))
    print("loss", error(found[1][0], found[0][0]))
    errors = {k: error(g, h) for k, g, h in zip(params, found[1][1], found[0][1], strict=True)}
    worst = sorted(errors, key=errors.get)[-6:]
    print("gradients", {k: round(errors[k], 3) for k in worst})


if __name__ == "__main__":
    main()
