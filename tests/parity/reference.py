"""transformers in float32 on the CPU, the implementation that no one here wrote."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def load_reference(checkpoint: Path) -> Any:
    """The checkpoint as a transformers model in float32 with eager experts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(2)
        return AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, experts_implementation="eager"
        ).eval()


def log_probabilities(model: Any, ids: list[int]) -> Floats:
    """float32 [T, vocab]."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].float()
        return np.asarray(torch.log_softmax(logits, -1))


def greedy(model: Any, ids: list[int], tokens: int) -> list[int]:
    """The greedy continuation, stop tokens not heeded."""
    import torch

    with torch.no_grad():
        out = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return [int(x) for x in out[0, len(ids) :]]


def log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), np.float32)


def likeliest_difference(ours: Floats, theirs: Floats, count: int = 20) -> float:
    """Largest difference of log-probabilities over their likeliest tokens."""
    top = np.argsort(-theirs, axis=-1)[:, :count]
    a, b = (np.take_along_axis(x, top, -1) for x in (ours, theirs))
    return float(np.abs(a - b).max())


def divergence(theirs: Floats, ours: Floats) -> float:
    """Mean KL divergence from theirs to ours, per token."""
    return float((np.exp(theirs) * (theirs - ours)).sum(-1).mean())
