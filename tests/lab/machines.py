"""A simulated machine to experiment on: noise, drift, and runs that something disturbs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from headgate.errors import ResourceError
from headgate.lab.experiment import Proposal, Protocol, Sample, Subject
from headgate.lab.ledger import Ledger
from headgate.lab.runner import Runner

A = Subject()
B = Subject({"depth": 7})
#: What the simulated model says, by prompt.
TOKENS = [[3, 1, 4, 1, 5, 9, 2, 6]]


class Killed(BaseException):
    """The process that measures is gone."""


class Machine:
    """Speeds around 100, multiplied by what a subject is worth.

    Args:
        worth: of subject B.
        noise: relative deviation of a run.
        drift: relative change of the machine over twenty runs, steadily.
        outliers: share of runs that lose 10 to 60 % of their speed.
        wrong: the model of subject B says something else, from this seed on.
        kill_at: runs until the process that measures is killed.
    """

    def __init__(
        self,
        seed: int,
        worth: float = 1.0,
        *,
        noise: float = 0.02,
        drift: float = 0.15,
        outliers: float = 0.03,
        wrong: int | None = None,
        kill_at: int | None = None,
        broken: Subject | None = None,
        order: float = 0.0,
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._worth, self._noise, self._drift, self._outliers = worth, noise, drift, outliers
        self._wrong, self._kill_at, self._broken = wrong, kill_at, broken
        self._order = order
        self.runs: list[Subject] = []

    def measure(self, subject: Subject, protocol: Protocol, seed: int) -> Sample:
        if self._kill_at == len(self.runs):
            raise Killed
        if self._broken is not None and subject == self._broken:
            raise ResourceError("it died")
        self.runs.append(subject)
        speed = 100 * (1 + self._drift * len(self.runs) / 20)
        speed *= float(np.exp(self._rng.normal(0, self._noise)))
        if self._rng.random() < self._outliers:
            speed *= self._rng.uniform(0.4, 0.9)
        if len(self.runs) % 2 == 0:  # the second of a pair profits from the first
            speed *= 1 + self._order
        tokens = [[t + seed for t in TOKENS[0]]]
        if subject == B:
            speed *= self._worth
            if self._wrong is not None and seed >= self._wrong:
                tokens = [[*tokens[0][:5], 77, *tokens[0][6:]]]
        return Sample(speed, tokens, {"budget_bytes": 1 << 30})


def proposal(protocol: Protocol | None = None, baseline: Subject = A) -> Proposal:
    return Proposal("run", "depth 7 is faster", baseline, B, protocol or Protocol(), {}, {})


def verdict(
    path: Path, machine: Machine, protocol: Protocol | None = None
) -> tuple[str | None, str]:
    """Of one experiment in a ledger of its own."""
    ledger = Ledger(path)
    try:
        found = Runner(ledger, machine.measure).start(proposal(protocol))
    finally:
        ledger.close()
    return found.verdict, found.why
