"""What each mechanism is worth: the speed with it over the speed without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from headgate.measure.bench_job import Job
from headgate.measure.launch import Launcher, Measured
from headgate.measure.percentiles import Spread


@dataclass(frozen=True)
class Mechanism:
    """Something that can be turned off; ``change`` makes of a job one without it."""

    name: str
    change: Callable[[Job], Job]


def _stream(**changes: Any) -> Callable[[Job], Job]:
    return lambda job: replace(job, stream=replace(job.stream, **changes))


MECHANISMS = (
    Mechanism("direct reads, not buffered", _stream(read_mode="buffered")),
    Mechanism("direct reads, not mmap", _stream(read_mode="mmap")),
    Mechanism("overlap of reads and products", _stream(overlap=False)),
    Mechanism("expert cache", _stream(cache=False)),
    Mechanism("lookahead", _stream(lookahead=0)),
    Mechanism("merged reads", _stream(merge=False)),
    Mechanism("expert-major prompts", lambda job: replace(job, prompt_chunk=1)),
    Mechanism("sparsity of one layer", lambda job: replace(job, dense_layer=0)),
)


@dataclass
class Ablation:
    """A mechanism and its worth, one ratio for each round.

    Attributes:
        decode, prefill: tokens per second with it over without it. Above 1 it helps.
    """

    mechanism: Mechanism
    decode: list[float] = field(default_factory=list)
    prefill: list[float] = field(default_factory=list)

    def add(self, baseline: Measured, without: Measured) -> None:
        """A round; prompts are taken from the first phase, decoding from the last."""
        on, off = baseline.result.phases, without.result.phases
        self.decode.append(on[-1].decode_tokens_per_s / off[-1].decode_tokens_per_s)
        self.prefill.append(on[0].prefill_tokens_per_s / off[0].prefill_tokens_per_s)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "mechanism": self.mechanism.name,
            "decode_worth": Spread.of(self.decode).to_dict(),
            "prefill_worth": Spread.of(self.prefill).to_dict(),
            "rounds": len(self.decode),
        }


def ablate(
    launcher: Launcher, job: Job, rounds: int, progress: Callable[[str], None]
) -> tuple[list[Ablation], list[Measured]]:
    """Measure ``job`` with everything on and with each mechanism off, all of them in
    every round, each compared with the baseline of its own round.

    Returns:
        the ablations, and the baselines.
    """
    ablations = [Ablation(mechanism) for mechanism in MECHANISMS]
    baselines = []
    for number in range(rounds):
        job = replace(job, seed=job.seed + 1)
        progress(f"round {number + 1} of {rounds}: everything on")
        baseline = launcher.run(job)
        baselines.append(baseline)
        # Every other round backwards, so that a drift of the machine cancels.
        for ablation in ablations[:: -1 if number % 2 else 1]:
            progress(f"round {number + 1} of {rounds}: {ablation.mechanism.name}")
            ablation.add(baseline, launcher.run(ablation.mechanism.change(job)))
    return ablations, baselines
