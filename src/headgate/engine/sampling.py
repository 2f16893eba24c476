"""From logits to the next token."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headgate.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; the default is greedy.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_k: keep the k likeliest; 0 keeps all.
        top_p: keep the smallest set of likeliest tokens with this much mass
            (Holtzman et al., 2020).
        min_p: keep tokens at least this likely relative to the likeliest.
        repetition_penalty: divide positive and multiply negative logits of tokens
            already in the sequence by this (Keskar et al., *CTRL*, 2019).
        seed: of the generator; None draws a fresh one.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        checks = {
            f"temperature {self.temperature} is not in 0..100": 0 <= self.temperature <= 100,
            f"top_k {self.top_k} is negative": self.top_k >= 0,
            f"top_p {self.top_p} is not in (0, 1]": 0 < self.top_p <= 1,
            f"min_p {self.min_p} is not in [0, 1]": 0 <= self.min_p <= 1,
            f"repetition_penalty {self.repetition_penalty} is not in (0, 100]": (
                0 < self.repetition_penalty <= 100
            ),
            f"seed {self.seed} is negative": self.seed is None or self.seed >= 0,
        }
        for complaint, good in checks.items():
            if not good:
                raise UsageError(complaint)


class Sampler:
    """Draws tokens for one sequence.

    Args:
        allowed: bool [vocab]; tokens that may be drawn. Rows of the vocabulary that
            the tokenizer does not define are never drawn.
    """

    def __init__(self, sampling: Sampling, allowed: npt.NDArray[np.bool_]) -> None:
        self.sampling = sampling
        self._banned = np.flatnonzero(~allowed)
        self._random = np.random.default_rng(sampling.seed)

    def choose(self, logits: npt.NDArray[np.float32], seen: Collection[int]) -> int:
        """The next token.

        Args:
            logits: float32 [vocab]; not changed.
            seen: tokens of the sequence so far, for the repetition penalty.
        """
        s = self.sampling
        logits = logits.copy()
        logits[self._banned] = -np.inf
        if s.repetition_penalty != 1.0 and seen:
            ids = np.fromiter(set(seen), np.int64)
            x = logits[ids]
            logits[ids] = np.where(x > 0, x / s.repetition_penalty, x * s.repetition_penalty)
        if s.temperature == 0:
            return int(np.argmax(logits))
        ids, p = _truncate(logits / np.float32(s.temperature), s)
        return int(self._random.choice(ids, p=p))


def _truncate(
    logits: npt.NDArray[np.float32], s: Sampling
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The tokens that top-k, top-p and min-p keep, in that order, likeliest first,
    and their probabilities."""
    ids = np.argsort(-logits, kind="stable")
    if s.top_k:
        ids = ids[: s.top_k]
    kept = logits[ids].astype(np.float64)
    p = np.exp(kept - kept[0])
    p /= p.sum()
    if s.top_p < 1:
        # The token that reaches the mass is kept too.
        count = int(np.searchsorted(np.cumsum(p), s.top_p)) + 1
        ids, p = ids[:count], p[:count]
    if s.min_p > 0:
        good = p >= s.min_p * p[0]
        ids, p = ids[good], p[good]
    return ids, p / p.sum()
