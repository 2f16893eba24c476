"""Results of points that were never measured."""

from __future__ import annotations

from typing import Any

from headgate.evals.run import Outcome, summarize


def outcomes(right: str, kind: str = "single") -> list[Outcome]:
    """One for each letter: y right, n wrong, e no answer."""
    return [
        Outcome(f"{kind} {i}", kind, None if letter == "e" else letter == "y",
                {"y": "", "n": "wrong value", "e": "error"}[letter])
        for i, letter in enumerate(right)
    ]  # fmt: skip


def result(bits: int, k: int, nbytes: int, right: str, kl: float | None = 0.1) -> dict[str, Any]:
    """A point's figures; ``right`` as of :func:`outcomes`."""
    found = outcomes(right)
    document: dict[str, Any] = {
        "knobs": {"expert_bits": bits, "experts_per_token": k, "dense_bits": 16},
        "store": "x.headgate",
        "lossy": [] if (bits, k) == (8, 4) else ["something"],
        "expert_bytes_per_token": nbytes,
        "suites": {"tools": {"free": summarize(found)}},
        "outcomes": {"tools": {"free": {o.id: o.right for o in found if o.right is not None}}},
        "alone": {"decode_tokens_per_s": 10.0},
    }
    if kl is not None:
        top1 = {"n": 100, "score": 0.9, "interval": [0.8, 0.95]}
        every = {"mean_kl": kl, "mean_kl_interval": [kl / 2, kl * 2], "p95_kl": kl, "p99_kl": kl,
                 "max_kl": kl, "top1": top1, "perplexity": 2.0}  # fmt: skip
        document["divergence"] = {"all": every, "kinds": {}}
    return document
