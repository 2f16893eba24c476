"""What an experiment is: two subjects, a protocol, and what was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from headgate.errors import UsageError
from headgate.lab.knobs import are_exact, describe_knobs
from headgate.lab.statistics import LEAST_PAIRS

#: decode: generated tokens per second after the first. prompt: prompt tokens per second.
#: answer: prompts answered per second, prompt and generation together.
Metric = Literal["decode", "prompt", "answer"]
METRICS: tuple[Metric, ...] = ("decode", "prompt", "answer")
#: run: by hand. trial, validation: of a search. round: of an agent.
Kind = Literal["run", "trial", "validation", "round"]
#: void: cannot be counted. None: not finished.
Verdict = Literal["kept", "discarded", "void"]
Side = Literal["A", "B"]


@dataclass(frozen=True)
class Code:
    """A state of the project's source.

    Attributes:
        commit: that it is, or is based on.
        patch: on top of that; empty for none.
        tree: git's name of the result.
    """

    commit: str
    tree: str
    patch: str = ""

    def __str__(self) -> str:
        return self.commit[:10] + (" with a patch" if self.patch else "")


@dataclass(frozen=True)
class Subject:
    """What is measured: knobs, and code unless it is what is installed."""

    knobs: Mapping[str, Any] = field(default_factory=dict)
    code: Code | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Subject:
        """What :meth:`to_dict` made."""
        return cls(raw["knobs"], Code(**raw["code"]) if raw["code"] else None)

    def __str__(self) -> str:
        if self.code is None:
            return describe_knobs(self.knobs)
        return f"{self.code}, {describe_knobs(self.knobs)}" if self.knobs else str(self.code)


@dataclass(frozen=True)
class Protocol:
    """How both sides are measured and what is asked of the candidate.

    Attributes:
        warm: the process has had a prompt of the same length before, and has settled.
        memory: budget of each process in bytes; the engine's own choice if None.
        routes: path of a route trace to follow; the model's routers if None.
        greedy: decoded tokens are the model's own, else random ones.
        pairs: most that are measured; fewer if the gain has become impossible.
        min_gain: the interval of the ratio must lie above 1 + min_gain.
        exact: the candidate must choose the baseline's tokens; else it must hold the
            quality suites' bounds.
        max_loss: of any quality suite's share of right answers, lower end of the interval.
        quality_suites: names, with commas; empty for all.
        quality_limit: prompts of each kind of a quality suite; all if None.
        timeout_s: for one process.
    """

    metric: Metric = "decode"
    prompt_tokens: int = 128
    generated_tokens: int = 64
    warm: bool = True
    memory: int | None = None
    routes: str | None = None
    greedy: bool = True
    pairs: int = 12
    min_gain: float = 0.02
    exact: bool = True
    max_loss: float = 0.05
    quality_suites: str = ""
    quality_limit: int | None = None
    seed: int = 0
    timeout_s: float = 3600.0

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise UsageError(f"metric is {self.metric!r}, expected one of {', '.join(METRICS)}")
        if self.prompt_tokens < 1 or self.generated_tokens < 2:
            raise UsageError("a prompt has at least 1 token, a generation at least 2")
        if not LEAST_PAIRS <= self.pairs <= 1000:
            raise UsageError(f"pairs is {self.pairs}, expected {LEAST_PAIRS} to 1000")
        if not 0 <= self.min_gain < 10 or not 0 <= self.max_loss <= 1:
            raise UsageError("the minimum gain and the loss allowed are shares, such as 0.02")
        if self.quality_suites:
            # Not above: the suites load the grammar library.
            from headgate.evals.suites import find_suite

            for name in self.quality_suites.split(","):
                find_suite(name)
        if self.seed < 0 or self.timeout_s <= 0:
            raise UsageError("the seed is not negative, the time limit more than 0")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def claims_exactness(baseline: Subject, candidate: Subject) -> bool:
    """Whether the candidate's knobs leave the output as the baseline's."""
    lossy = {n: v for n, v in candidate.knobs.items() if not are_exact({n: v})}
    before = {n: v for n, v in baseline.knobs.items() if not are_exact({n: v})}
    return lossy == before


@dataclass(frozen=True)
class Sample:
    """One process as measured.

    Attributes:
        value: speed; more is better.
        tokens: ids that the model chose, for each generation of the process.
        raw: everything else that it reported.
    """

    value: float
    tokens: list[list[int]]
    raw: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


#: Measures a subject in a fresh process. Raises HeadgateError if that fails.
Measure = Callable[[Subject, Protocol, int], Sample]
#: Right or wrong answers of a subject by suite and prompt; None for no answer.
Quality = Callable[[Subject, Protocol], dict[str, dict[str, bool | None]]]


@dataclass(frozen=True)
class Proposal:
    """An experiment before it is begun.

    Attributes:
        campaign: the search or the agent's work that it belongs to; empty for none.
        parent: kept experiment that the baseline is the result of.
        store: identity and path.
        machine: identity and description; the program that measures.
    """

    kind: Kind
    hypothesis: str
    baseline: Subject
    candidate: Subject
    protocol: Protocol
    store: Mapping[str, Any]
    machine: Mapping[str, Any]
    campaign: str = ""
    parent: int | None = None


@dataclass(frozen=True)
class Experiment:
    """One line of the ledger.

    Attributes:
        verdict: None if it has not been finished.
        why: of the verdict.
        result: ratio and interval; what else a verdict rests on.
        created, finished: seconds since 1970.
    """

    id: int
    proposal: Proposal
    created: float
    verdict: Verdict | None = None
    why: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)
    finished: float | None = None

    @property
    def ratio(self) -> float | None:
        """Speed of the candidate over that of the baseline, if there is a figure."""
        found = self.result.get("ratio")
        return float(found) if isinstance(found, (int, float)) else None


@dataclass(frozen=True)
class Measurement:
    """One process of an experiment.

    Attributes:
        position: 0 if it ran first of its pair.
        counted: False if its pair was never completed.
    """

    experiment: int
    pair: int
    position: int
    side: Side
    started: float
    sample: Sample
    counted: bool = True
