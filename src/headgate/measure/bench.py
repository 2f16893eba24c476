"""The benchmark: a matrix of runs, each figure with its spread, beside its roofline."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import headgate
from headgate.measure.ablate import Ablation, ablate
from headgate.measure.bench_job import Job, Phase, Temperature
from headgate.measure.launch import Launcher
from headgate.measure.machine import describe_drive, describe_machine
from headgate.measure.roofline import DEFINITION
from headgate.measure.runs import Run
from headgate.store import Store
from headgate.stream.lookahead import PATTERN, STRETCH

#: Share of the processor used by others that spoils a measurement.
BUSY = 0.1

#: called with what is being measured
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Matrix:
    """What is combined with what. None as a budget is what fits."""

    prompt_lengths: Sequence[int] = (8, 128)
    generation_lengths: Sequence[int] = (32,)
    budgets: Sequence[int | None] = (None,)
    temperatures: Sequence[Temperature] = ("cold", "warm")
    repeats: int = 3


@dataclass
class Report:
    """Everything that was measured, and on what."""

    about: dict[str, Any]
    runs: list[Run]
    ablations: list[Ablation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the format that other commands read."""
        return {
            **self.about,
            "definition": DEFINITION,
            "runs": [run.to_dict() for run in self.runs],
            "ablations": [ablation.to_dict() for ablation in self.ablations],
            "notes": self.notes,
        }


def bench(
    store: Store,
    template: Job,
    matrix: Matrix,
    command: Sequence[str] = (),
    progress: Progress = lambda _: None,
) -> Report:
    """Measure every cell of a matrix, all of them once before any again.

    Args:
        template: what the cells have in common.
        command: words of the command line, to be reported.

    Raises:
        HeadgateError: a process of the benchmark raised it.
    """
    launcher = Launcher(store)
    jobs, runs = _jobs(template, matrix, settling(store, template))
    for repeat in range(matrix.repeats):
        for job, cells in zip(jobs, runs, strict=True):
            progress(f"repeat {repeat + 1} of {matrix.repeats}: {describe_job(job)}")
            # One process alone is traced; the next would write over it.
            record = template.record if job is jobs[0] and not repeat else None
            measured = launcher.run(replace(job, seed=template.seed + repeat, record=record))
            for run in cells:
                run.add(measured)
    found = [run for cells in runs for run in cells]
    return Report(describe(store, template, command), found, notes=_notes(found))


def bench_ablations(
    store: Store,
    template: Job,
    matrix: Matrix,
    command: Sequence[str] = (),
    progress: Progress = lambda _: None,
) -> Report:
    """What each mechanism is worth under the first budget and lengths of a matrix; its
    runs are those with everything on. Arguments and errors as of :func:`bench`."""
    cold = Phase("cold", max(matrix.prompt_lengths), matrix.generation_lengths[0])
    warm = Phase("warm", min(matrix.prompt_lengths), matrix.generation_lengths[0])
    job = replace(
        template,
        memory=matrix.budgets[0],
        phases=(cold, *settling(store, template), warm),
    )
    ablations, baseline = ablate(Launcher(store), job, matrix.repeats, progress)
    runs = [Run(cold, 0), Run(warm, len(job.phases) - 1)]
    for measured in baseline:
        for run in runs:
            run.add(measured)
    notes = _notes(runs)
    if not baseline[0].limited:
        notes.append(
            "the kernel did not limit memory: buffered reads and mmap may have used all that "
            "was free as page cache; give --budgets, and the right to make control groups"
        )
    return Report(describe(store, template, command), runs, ablations, notes)


def settling(store: Store, template: Job) -> list[Phase]:
    """What comes between cold and warm, and is not reported: as many tokens as lookahead
    tries itself on before it decides."""
    if not template.stream.lookahead:
        return []
    return [Phase("warm", 1, 2 + len(PATTERN) * STRETCH // len(store.manifest.layers))]


def _jobs(template: Job, matrix: Matrix, between: list[Phase]) -> tuple[list[Job], list[list[Run]]]:
    """A process for each budget and lengths, and what is to be kept of it. A warm run
    comes after a cold one whether or not that is asked for."""
    jobs, runs = [], []
    for budget in matrix.budgets:
        for prompt in matrix.prompt_lengths:
            for length in matrix.generation_lengths:
                phases = [Phase("cold", prompt, length)]
                if "warm" in matrix.temperatures:
                    phases += [*between, Phase("warm", prompt, length)]
                jobs.append(replace(template, memory=budget, phases=tuple(phases)))
                kept = {"cold": 0, "warm": len(phases) - 1}
                runs.append([Run(phases[kept[t]], kept[t]) for t in matrix.temperatures])
    return jobs, runs


def describe_job(job: Job) -> str:
    """In words, for progress."""
    budget = "what fits" if job.memory is None else f"{job.memory / 2**30:.3g} GiB"
    last = job.phases[-1]
    return f"{budget}, prompt {last.prompt_tokens}, generation {last.generated_tokens}"


def describe(store: Store, template: Job, command: Sequence[str]) -> dict[str, Any]:
    """Machine, drive, store, versions, options and command."""
    manifest = store.manifest
    return {
        "headgate": headgate.__version__,
        "command": list(command),
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "machine": describe_machine(),
        "drive": describe_drive(store.path),
        "store": {
            "path": str(store.path),
            "model_type": manifest.model_type,
            "layers": len(manifest.layers),
            "experts": manifest.num_experts,
            "expert_bits": manifest.experts.bits,
            "record_bytes": store.layout.stride,
            "expert_bytes": len(manifest.layers) * manifest.expert_file_bytes,
            "dense_bytes": store.dense_bytes,
            "provenance": manifest.provenance,
        },
        "options": {k: v for k, v in template.to_dict().items() if k not in ("phases", "spawned")},
    }


def _notes(runs: Sequence[Run]) -> list[str]:
    notes = []
    if not all(m.result.direct for run in runs for m, _ in run.samples):
        notes.append("reads went through the page cache: this file system allows no direct reads")
    busy = max(m.others_cpu or 0.0 for run in runs for m, _ in run.samples)
    if busy > BUSY:
        notes.append(f"others took up to {busy:.0%} of the processor: do not trust these figures")
    if any(m.job.memory and not m.limited for run in runs for m, _ in run.samples):
        notes.append("no control group could be made: budgets are the engine's promise alone")
    return notes
