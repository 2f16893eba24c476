"""The probe: what this machine's drive, memory and cores can do, and the cost model."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from headgate.errors import ResourceError, UsageError
from headgate.measure.drive import (
    DriveProbe,
    Mode,
    ReadRate,
    cached_share,
    drop_cache,
    scratch_file,
)
from headgate.measure.machine import core_count, describe_drive, describe_machine
from headgate.measure.memory import KernelRate, MemoryProbe, MemoryRate
from headgate.paths import probe_file
from headgate.stream.cost_model import CostModel, fit, relative_errors

KIB, MIB = 1 << 10, 1 << 20

#: called with what is being measured
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        others: sizes and depths of the buffered reads and, at depth 1, of mmap.
        round_s: no round begins later than this.
        limit_s: nothing begins later than this; what has not been measured is left out.
    """

    file_bytes: int
    sizes: Sequence[int]
    depths: Sequence[int]
    other_sizes: Sequence[int]
    other_depths: Sequence[int]
    rounds: int
    round_s: float
    limit_s: float


FULL = Plan(
    file_bytes=2 << 30,
    sizes=[64 * KIB << i for i in range(9)],
    depths=[1, 2, 4, 8, 16, 32, 64],
    other_sizes=[256 * KIB, 1 * MIB, 4 * MIB],
    other_depths=[1, 16],
    rounds=5,
    round_s=35,
    limit_s=50,
)
QUICK = Plan(
    file_bytes=512 * MIB,
    sizes=[64 * KIB, 512 * KIB, 4 * MIB],
    depths=[1, 4, 16, 64],
    other_sizes=[1 * MIB],
    other_depths=[16],
    rounds=3,
    round_s=5,
    limit_s=8,
)


@dataclass
class ProbeReport:
    """What was measured.

    Attributes:
        direct: the file system allowed reads around the page cache.
        errors: relative error of the cost model for each of its measurements.
        notes: what the reader of the figures should know.
    """

    machine: dict[str, Any]
    drive: dict[str, Any]
    backend: str
    direct: bool
    quick: bool
    reads: list[ReadRate]
    memory: list[MemoryRate]
    kernels: list[KernelRate]
    cost_model: CostModel
    errors: list[float]
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def of(self, mode: Mode) -> list[ReadRate]:
        """The reads in one mode that were measured."""
        return [rate for rate in self.reads if rate.mode == mode and rate.samples]

    @property
    def memory_bytes_per_s(self) -> float:
        """What all threads read from memory."""
        return max(rate.bytes_per_s for rate in self.memory)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; sizes in bytes, times in seconds."""
        return {
            "machine": self.machine,
            "drive": self.drive,
            "backend": self.backend,
            "direct": self.direct,
            "quick": self.quick,
            "reads": [rate.to_dict() for rate in self.reads if rate.samples],
            "memory": [rate.to_dict() for rate in self.memory],
            "kernels": [rate.to_dict() for rate in self.kernels],
            "cost_model": self.cost_model.to_dict(),
            "fit": {
                "median_error": float(np.median(self.errors)),
                "p90_error": float(np.quantile(self.errors, 0.9)),
                "max_error": max(self.errors),
            },
            "notes": self.notes,
            "seconds": self.seconds,
        }

    def save(self, path: Path) -> None:
        """Write the report as JSON.

        Raises:
            ResourceError: it cannot be written.
        """
        scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_text(json.dumps(self.to_dict(), indent=1) + "\n")
            scratch.replace(path)
        except OSError as error:
            raise ResourceError(f"cannot write {path}: {error.strerror}") from None


def probe(
    path: Path | str = ".", plan: Plan = FULL, progress: Progress = lambda _: None
) -> tuple[ProbeReport, Path]:
    """Measure the drive that holds ``path``, and this machine.

    Rounds go over everything in a new order each, and each figure is the median of its
    rounds, so that a disturbance spoils one round of many figures and not one figure.

    Returns:
        the report, and where it was saved in the user's cache.

    Raises:
        UsageError: ``path`` does not exist.
        ResourceError: it cannot be written to, or has too little room.
    """
    begin = time.monotonic()
    path = Path(path)
    try:
        saved = probe_file(path)
    except OSError as error:
        raise UsageError(f"cannot probe {path}: {error.strerror}") from None
    folder = path if path.is_dir() else path.parent
    machine = describe_machine()
    progress("writing a scratch file")
    with scratch_file(folder, plan.file_bytes, plan.limit_s / 5) as file:
        report = _measure(file, plan, machine, begin, progress)
    report.seconds = time.monotonic() - begin
    report.save(saved)
    return report, saved


def _measure(
    file: Path, plan: Plan, machine: dict[str, Any], begin: float, progress: Progress
) -> ProbeReport:
    drive = DriveProbe(file)
    memory = MemoryProbe(core_count(), machine["available_bytes"])
    reads = [ReadRate("direct", size, depth) for size in plan.sizes for depth in plan.depths]
    others = [
        ReadRate("buffered", size, depth)
        for size in plan.other_sizes
        for depth in plan.other_depths
    ]
    others += [ReadRate("mmap", size, 1) for size in plan.other_sizes]
    order = random.Random(0)
    for number in range(plan.rounds):
        if number and time.monotonic() - begin > plan.round_s:
            break
        progress(f"round {number + 1} of up to {plan.rounds}")
        memory.measure()
        for rate in [*order.sample(others, len(others)), *order.sample(reads, len(reads))]:
            if time.monotonic() - begin < plan.limit_s:
                drive.measure(rate)
    direct = [rate for rate in reads if rate.samples]
    sizes, depths, seconds = (
        np.array([getattr(rate, name) for rate in direct], np.float64)
        for name in ("nbytes", "depth", "seconds")
    )
    try:
        model = fit(sizes, depths, seconds)
    except ValueError:
        raise ResourceError("the drive is too slow to be measured in this time") from None
    errors = relative_errors(model, sizes, depths, seconds).tolist()
    report = ProbeReport(
        machine,
        describe_drive(file.parent),
        drive.backend,
        drive.direct,
        plan is not FULL,
        reads + others,
        memory.memory,
        memory.kernels,
        model,
        errors,
    )
    report.notes = _notes(file, drive, memory, len(reads) - len(direct))
    return report


def _notes(file: Path, drive: DriveProbe, memory: MemoryProbe, left_out: int) -> list[str]:
    notes = []
    if not drive.direct:
        notes.append(
            "the file system allows no direct reads: those named so went through its cache"
        )
    drop_cache(file)
    share = cached_share(file)
    if share is None:
        notes.append("whether the page cache was dropped for buffered reads and mmap is unknown")
    elif share > 0.01:
        notes.append(
            f"{share:.0%} of the scratch file stayed in the page cache: buffered reads and mmap "
            "look faster than they are"
        )
    if memory.too_small:
        notes.append("memory was too short for a buffer of twice the last-level cache")
    if left_out:
        notes.append(f"{left_out} combinations of size and depth would have taken too long")
    return notes
