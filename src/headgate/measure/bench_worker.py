"""One process of the benchmark: ``python -m headgate.measure.bench_worker JOB``.

JOB is a JSON document, see :class:`headgate.measure.bench_job.Job`. A process of its own
gives every configuration its own peak memory and an empty cache to begin with.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import numpy as np

from headgate.engine import Engine, Sampling
from headgate.engine.budget import peak_bytes
from headgate.engine.sampling import Sampler
from headgate.errors import HeadgateError, UsageError
from headgate.measure.bench_job import Counts, Job, JobResult, Phase, PhaseResult
from headgate.measure.machine import core_count
from headgate.measure.roofline import TokenBytes, dense_bytes_per_token
from headgate.measure.routes import load_trace, routed_by
from headgate.measure.sources import CountedExperts, DenseLayer
from headgate.measure.timed_ops import TimedOps, timed
from headgate.measure.trace import TraceRecorder
from headgate.ops import Ops
from headgate.store import Store

WHAT_IT_TOOK = ("wait_s", "compute_s", "keep_s")


class RecordedQueue:
    """A read queue that keeps the latency of every read by its size."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self.latency_us: dict[int, list[float]] = {}

    def wait(self, *args: Any) -> Any:
        done = self._queue.wait(*args)
        for _, _, nbytes, latency_ns in done:
            self.latency_us.setdefault(nbytes, []).append(latency_ns / 1e3)
        return done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)


class Meter:
    """Reads every counter of an engine; :meth:`lap` says what happened since the last."""

    def __init__(self, engine: Engine, clocks: TimedOps) -> None:
        self._engine, self._clocks = engine, clocks
        reader = engine.experts.reader
        self._queue = reader.queue = RecordedQueue(reader.queue)  # type: ignore[assignment]
        layers, experts = engine.config.moe_layers, engine.config.num_experts
        self._counted = CountedExperts(engine.experts, layers, experts)
        engine.experts = self._counted  # type: ignore[assignment]
        self._before = self._now()

    def lap(self, seconds: float) -> Counts:
        """Counts of the last ``seconds``, which began when this was last called."""
        before, now = self._before, self._now()
        stream, parts = ({k: now[i][k] - before[i][k] for k in now[i]} for i in (0, 1))
        kernel = None if now[2] is None else now[2] - before[2]
        reads, needed = self._queue.stats(), int(self._counted.needed.sum())
        counts = Counts(
            stream,
            split(stream, parts, seconds),
            needed,
            reads["count"],
            reads["max_depth"],
            reads["latency_lower_us"],
            reads["latency_counts"],
            {str(nbytes): found for nbytes, found in self._queue.latency_us.items()},
            kernel,
        )
        self.restart()
        return counts

    def restart(self) -> None:
        """Begin a lap."""
        self._queue.reset_stats()
        self._queue.latency_us = {}
        self._counted.needed[:] = False
        self._before = self._now()

    def _now(self) -> tuple[dict[str, float], dict[str, float], Any]:
        stats = self._engine.experts.stats
        return dict(vars(stats)), dict(self._clocks.seconds), kernel_read_bytes()


def split(stream: dict[str, float], parts: dict[str, float], seconds: float) -> dict[str, float]:
    """Seconds by part, which add up to ``seconds``.

    The stream counts the sum of expert outputs as keeping books; it belongs to experts.
    """
    summing = parts["experts"]
    known = {
        **parts,
        "experts": stream["compute_s"] + summing,
        "waiting for reads": stream["wait_s"],
        "bookkeeping": max(0.0, stream["keep_s"] - summing),
    }
    known["sampling, Python"] = max(0.0, seconds - sum(known.values()))
    return known


def kernel_read_bytes() -> int | None:
    """Bytes that this process has had read from drives, as the kernel counts them."""
    try:
        text = Path("/proc/self/io").read_text()
    except OSError:
        return None
    found = [line.split()[1] for line in text.splitlines() if line.startswith("read_bytes:")]
    return int(found[0]) if found else None


def run(job: Job) -> JobResult:
    """Do what a process of the benchmark does, in this process."""
    begun = monotonic()
    store = Store.open(job.store)
    dense_s = _clock_dense(store)
    recorder = TraceRecorder(job.record) if job.record else None
    engine, clocks = _load(store, job, recorder)
    ready_s = monotonic() - (job.spawned or begun)
    direct = _is_direct(engine, job)
    meter = Meter(engine, clocks)
    with _sources(engine, job), recorder or nullcontext():
        # Another prompt each time: what repeats itself is not warm but known.
        rng = np.random.default_rng(job.seed)
        phases = [_phase(engine, meter, phase, rng, job.greedy) for phase in job.phases]
    return JobResult(
        asdict(engine.budget),
        engine.budget.total if job.memory is None else job.memory,
        job.threads or core_count(),
        engine.lossy,
        engine.experts.reader.queue.backend,
        direct,
        asdict(engine.experts.options),
        ready_s,
        dense_s[0],
        store.dense_bytes,
        peak_bytes(),
        phases,
    )


def _clock_dense(store: Store) -> list[float]:
    """Will hold the seconds that loading dense weights took."""
    load, taken = store.load_dense, [0.0]

    def clocked() -> Any:
        began = perf_counter()
        tensors = load()
        taken[0] = perf_counter() - began
        return tensors

    store.load_dense = clocked  # type: ignore[method-assign]
    return taken


def _load(store: Store, job: Job, recorder: TraceRecorder | None) -> tuple[Engine, TimedOps]:
    held: list[TimedOps] = []

    def instrument(ops: Ops) -> Ops:
        wrapped, clocks = timed(ops)
        held.append(clocks)
        return wrapped

    longest = max(phase.prompt_tokens + phase.generated_tokens for phase in job.phases)
    engine = Engine(
        store,
        memory=job.memory,
        experts_per_token=job.experts_per_token,
        expert_bits=job.expert_bits,
        threads=job.threads,
        context=job.context,
        prompt_chunk=job.prompt_chunk,
        stream=job.stream,
        instrument=instrument,
        recorder=recorder,
    )
    if longest > engine.context:
        raise UsageError(
            f"prompt and generation make {longest} tokens, the context holds {engine.context}: "
            "raise --context"
        )
    return engine, held[0]


def _is_direct(engine: Engine, job: Job) -> bool:
    if job.stream.read_mode in ("buffered", "mmap"):
        return False
    return bool(engine.experts.reader.queue.file_is_direct(0))


@contextmanager
def _sources(engine: Engine, job: Job) -> Iterator[None]:
    with ExitStack() as stack:
        if job.dense_layer is not None:
            layer = engine.config.moe_layers[job.dense_layer]
            dense = DenseLayer(engine.experts, layer, engine.config.num_experts)
            engine.experts = dense  # type: ignore[assignment]
        if job.trace is not None:
            stack.enter_context(routed_by(engine, load_trace(Path(job.trace))))
        yield


def _phase(
    engine: Engine, meter: Meter, phase: Phase, rng: np.random.Generator, greedy: bool
) -> PhaseResult:
    count = phase.prompt_tokens + phase.generated_tokens - 1
    ids = rng.integers(0, engine.config.vocab_size, count).tolist()
    session, sampler = engine.new_session(), Sampler(Sampling(), engine.allowed_tokens)
    meter.restart()
    began = perf_counter()
    logits = session.append(ids[: phase.prompt_tokens])
    token = sampler.choose(logits, session.tokens)
    ttft_s = perf_counter() - began
    first = meter.lap(ttft_s)
    token_s = []
    for random in ids[phase.prompt_tokens :]:
        began = perf_counter()
        logits = session.append([token if greedy else random])
        token = sampler.choose(logits, session.tokens)
        token_s.append(perf_counter() - began)
    decode = meter.lap(sum(token_s))
    steps = max(1, len(token_s))
    middle = phase.prompt_tokens + (steps + 1) // 2
    need = _token_bytes(engine, decode.stream["bytes_read"] / steps, middle)
    return PhaseResult(phase, ttft_s, token_s, need, first, decode)


def _token_bytes(engine: Engine, drive: float, length: int) -> dict[str, float]:
    """What a token after ``length`` others needs, as :class:`TokenBytes`."""
    config, store, stream = engine.config, engine.store, engine.experts
    sizes = {name: info.nbytes for name, info in store.dense_header().tensors.items()}
    k = engine.model.experts_per_token
    need = TokenBytes(
        drive,
        dense_bytes_per_token(sizes, config.vocab_size, config.tie_word_embeddings),
        float(len(config.moe_layers) * k * store.layout.prefix_bytes(stream.bits)),
        float(config.state_bytes(length)),
    )
    return {field.name: getattr(need, field.name) for field in fields(need)}


def main() -> None:
    """Run a job; one line of JSON on stdout, ``{"error": ..}`` if it failed."""
    try:
        document = run(Job.from_dict(json.loads(sys.argv[1]))).to_dict()
    except HeadgateError as error:
        document = {"error": str(error), "kind": type(error).__name__}
    print(json.dumps(document))


if __name__ == "__main__":
    main()
