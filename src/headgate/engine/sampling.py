"""From logits to the next token."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from headgate.errors import UsageError

#: A lower temperature would leave float32's range before it changed a choice.
COLDEST = 1e-6


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; the default is greedy.

    Attributes:
        temperature: 0 takes the likeliest token, and so does what is too little to tell
            from it (:data:`COLDEST`).
        top_k: keep the k likeliest; 0 keeps all.
        top_p: keep the smallest set of likeliest tokens with this much mass
            (Holtzman et al., 2020).
        min_p: keep tokens at least this likely relative to the likeliest.
        repetition_penalty: divide positive and multiply negative logits of tokens
            already in the sequence by this (Keskar et al., *CTRL*, 2019).
        seed: of the generator; None draws a fresh one.
        presence_penalty: taken from the logits of tokens that the answer has already.
        frequency_penalty: taken from them once for each time that it has them. Both as
            in OpenAI's API, which allows -2..2.
        logit_bias: token -> added to its logit, -100..100.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        checks = {
            f"temperature {self.temperature} is not in 0..100": 0 <= self.temperature <= 100,
            f"top_k {self.top_k} is negative": self.top_k >= 0,
            f"top_p {self.top_p} is not in (0, 1]": 0 < self.top_p <= 1,
            f"min_p {self.min_p} is not in [0, 1]": 0 <= self.min_p <= 1,
            f"repetition_penalty {self.repetition_penalty} is not in 0.01..100": (
                0.01 <= self.repetition_penalty <= 100
            ),
            f"presence_penalty {self.presence_penalty} is not in -2..2": (
                -2 <= self.presence_penalty <= 2
            ),
            f"frequency_penalty {self.frequency_penalty} is not in -2..2": (
                -2 <= self.frequency_penalty <= 2
            ),
            "logit_bias has a token below 0": all(token >= 0 for token in self.logit_bias),
            "logit_bias has a value outside -100..100": all(
                -100 <= value <= 100 for value in self.logit_bias.values()
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
        self._biased = np.array(list(sampling.logit_bias), np.int64)
        self._bias = np.array(list(sampling.logit_bias.values()), np.float32)
        if len(self._biased) and self._biased.max() >= len(allowed):
            raise UsageError(f"logit_bias has a token outside the vocabulary of {len(allowed)}")

    def choose(
        self,
        logits: npt.NDArray[np.float32],
        seen: Collection[int],
        counts: Mapping[int, int] | None = None,
        mask: npt.NDArray[np.bool_] | None = None,
    ) -> int:
        """The next token.

        Args:
            logits: float32 [vocab]; not changed.
            seen: tokens of the sequence so far, for the repetition penalty.
            counts: how often the answer has each of its tokens, for the presence and the
                frequency penalty.
            mask: bool [vocab], the only tokens that may be drawn.

        Raises:
            UsageError: no token may be drawn.
        """
        s = self.sampling
        logits = logits.copy()
        self._penalise(logits, seen, counts or {})
        logits[self._banned] = -np.inf
        if mask is not None:
            logits[~mask] = -np.inf
        best = int(np.argmax(logits))
        if logits[best] == -np.inf:
            raise UsageError("the constraint of the answer leaves no token that could follow")
        if s.temperature < COLDEST:
            return best
        ids, p = _truncate(logits / np.float32(s.temperature), s)
        return int(self._random.choice(ids, p=p))

    def _penalise(
        self, logits: npt.NDArray[np.float32], seen: Collection[int], counts: Mapping[int, int]
    ) -> None:
        s = self.sampling
        if s.repetition_penalty != 1.0 and seen:
            ids = np.fromiter(set(seen), np.int64)
            x = logits[ids]
            logits[ids] = np.where(x > 0, x / s.repetition_penalty, x * s.repetition_penalty)
        if counts and (s.presence_penalty or s.frequency_penalty):
            ids = np.fromiter(counts, np.int64, len(counts))
            times = np.fromiter(counts.values(), np.float32, len(counts))
            logits[ids] -= times * np.float32(s.frequency_penalty) + np.float32(s.presence_penalty)
        logits[self._biased] += self._bias


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
