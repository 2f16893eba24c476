"""Starting the processes of the benchmark, and measuring the machine between them."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

from headgate import errors
from headgate._native import AlignedBuffer
from headgate.engine.budget import available_bytes
from headgate.errors import HeadgateError, ResourceError
from headgate.measure.bandwidth import drive_bandwidth, memory_bandwidth
from headgate.measure.bench_job import Job, JobResult, PhaseResult
from headgate.measure.drive import drop_cache
from headgate.measure.limit import memory_limit
from headgate.measure.machine import core_count
from headgate.measure.roofline import Bandwidth, Roofline, TokenBytes, roofline
from headgate.models import parse_config
from headgate.paths import probe_file
from headgate.store import Store
from headgate.stream import CostModel, tuned

#: What a process takes at its start beside the dense weights.
STARTING_BYTES = 256 << 20


@dataclass(frozen=True)
class Measured:
    """A finished process.

    Attributes:
        bandwidth: of drive and memory, mean of right before and right after it.
        limited: the kernel held it to its budget.
        others_cpu: share of the machine's processor time that went elsewhere meanwhile;
            None where it is not told. Figures of a busy machine are worth little.
    """

    job: Job
    result: JobResult
    bandwidth: Bandwidth
    limited: bool
    others_cpu: float | None = None

    def roofline(self, phase: PhaseResult) -> Roofline:
        """Of one of the phases."""
        measured_s = 1 / phase.decode_tokens_per_s
        return roofline(TokenBytes(**phase.token_bytes), self.bandwidth, measured_s)


class Launcher:
    """Runs jobs on one store, one after the other."""

    def __init__(self, store: Store) -> None:
        self.store = store
        raw = {**store.manifest.config, "model_type": store.manifest.model_type}
        self._trained_experts_per_token = parse_config(raw).num_experts_per_tok
        self._last: tuple[Job, Bandwidth] | None = None

    def run(self, job: Job) -> Measured:
        """Run a job in a process of its own.

        Raises:
            HeadgateError: what the process raised; ResourceError if it died.
        """
        # What was measured after the last process is what there is before this one.
        if self._last is None or not _alike(self._last[0], job):
            self._last = job, self._bandwidth(job)
        before = self._last[1]
        for path in self.store.path.rglob("*"):
            if path.is_file():
                drop_cache(path)
        claim_memory(self.store.dense_bytes + STARTING_BYTES)
        begin = _processor_seconds()
        with memory_limit(job.memory) as prefix:
            result = launch(job, prefix)
        others_cpu = others_share(begin, _processor_seconds())
        after = self._bandwidth(job)
        self._last = job, after
        mean = Bandwidth((before.drive + after.drive) / 2, (before.memory + after.memory) / 2)
        return Measured(job, result, mean, bool(prefix), others_cpu)

    def _bandwidth(self, job: Job) -> Bandwidth:
        bits = job.expert_bits or self.store.manifest.experts.bits
        k = job.experts_per_token or self._trained_experts_per_token
        record = self.store.layout.prefix_bytes(bits)
        model = CostModel.load(probe_file(self.store.path))
        drive = drive_bandwidth(self.store, bits, tuned(job.stream, model, record, k))
        return Bandwidth(drive, memory_bandwidth(job.threads or core_count()))


def claim_memory(nbytes: int) -> None:
    """Take memory from the system and give it back at once.

    A virtual machine's host may take back memory that the machine has not used for some
    seconds (free page reporting). A process that is given such memory waits for the host,
    0.3 GB/s where this was written, slower than the drive. Memory that has just been freed
    is still there, as it is on a machine of one's own.
    """
    with suppress(MemoryError):
        AlignedBuffer(max(1, min(nbytes, available_bytes() // 2)), True).array()[::4096] = 0


def _alike(a: Job, b: Job) -> bool:
    """Whether the same bandwidths are what they are compared with."""

    def what(job: Job) -> tuple[object, ...]:
        s = job.stream
        k, bits = job.experts_per_token, job.expert_bits
        return s.throttle, s.depth, s.chunk_bytes, job.threads, bits, k

    return what(a) == what(b)


def _processor_seconds() -> tuple[float, float, float] | None:
    """Seconds of all cores since the machine started, those of them that were idle, and
    those of this process's children."""
    try:
        words = Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]
    except OSError:
        return None
    # user, nice, system, idle, waiting for a drive, interrupts, soft interrupts, stolen
    seconds = [int(word) / os.sysconf("SC_CLK_TCK") for word in words]
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = children.ru_utime + children.ru_stime
    return sum(seconds), seconds[3] + seconds[4], own


def others_share(
    begin: tuple[float, float, float] | None, end: tuple[float, float, float] | None
) -> float | None:
    """Share of the time between two counts of all, idle and own seconds that was neither."""
    if begin is None or end is None or end[0] <= begin[0]:
        return None
    whole, idle, own = (after - before for before, after in zip(begin, end, strict=True))
    return max(0.0, whole - idle - own) / whole


def launch(job: Job, prefix: list[str]) -> JobResult:
    """Run a job in a new process, its command after ``prefix``; raises as
    :meth:`Launcher.run`."""
    document = json.dumps(replace(job, spawned=monotonic()).to_dict())
    command = [*prefix, sys.executable, "-m", "headgate.measure.bench_worker", document]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    if done.returncode < 0 or not done.stdout.strip():
        why = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        held = f" under a limit of {job.memory} bytes" if prefix else ""
        raise ResourceError(f"a process of the benchmark died with {why}{held}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if "error" in answer:
        raise _error(answer["kind"], answer["error"])
    return JobResult.from_dict(answer)


def _error(kind: str, message: str) -> HeadgateError:
    found = getattr(errors, kind, HeadgateError)
    try:
        error = found(message)
    except TypeError:  # it takes more than a message
        error = ResourceError(message)
    assert isinstance(error, HeadgateError)
    return error
