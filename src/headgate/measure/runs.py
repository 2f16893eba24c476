"""A cell of the benchmark's matrix: repeats of one phase, and the figures they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headgate.measure.bench_job import Counts, Phase, PhaseResult
from headgate.measure.launch import Measured
from headgate.measure.percentiles import Spread, histogram_percentiles, percentiles


@dataclass
class Run:
    """One cell of the matrix, measured in several processes.

    Attributes:
        index: which of their phases it is.
    """

    phase: Phase
    index: int
    samples: list[tuple[Measured, PhaseResult]] = field(default_factory=list)

    def add(self, measured: Measured) -> None:
        """One of the processes."""
        self.samples.append((measured, measured.result.phases[self.index]))

    def to_dict(self) -> dict[str, Any]:
        """For JSON. Medians over repeats, and the range beside the speeds; latencies of
        all repeats together; peak memory is the largest."""
        first = self.samples[0][0]
        phases = [phase for _, phase in self.samples]
        rooflines = [measured.roofline(phase) for measured, phase in self.samples]
        return {
            "temperature": self.phase.temperature,
            "prompt_tokens": self.phase.prompt_tokens,
            "generated_tokens": self.phase.generated_tokens,
            "budget_bytes": first.result.budget_bytes,
            "repeats": len(self.samples),
            **_spread("decode_tokens_per_s", [p.decode_tokens_per_s for p in phases]),
            **_spread("prefill_tokens_per_s", [p.prefill_tokens_per_s for p in phases]),
            **_spread("ttft_s", [p.ttft_s for p in phases]),
            **_spread("roofline_ratio", [r.ratio for r in rooflines]),
            "overlapped_ratio": _median([r.overlapped_ratio for r in rooflines]),
            "memory_ratio": _median([r.memory_ratio for r in rooflines]),
            "roofline": {
                **{f"{k}_bytes": v for k, v in _medians([p.token_bytes for p in phases]).items()},
                "drive_s": _median([r.drive_s for r in rooflines]),
                "memory_s": _median([r.memory_s for r in rooflines]),
                "measured_s": _median([r.measured_s for r in rooflines]),
                "drive_bytes_per_s": _median([m.bandwidth.drive for m, _ in self.samples]),
                "memory_bytes_per_s": _median([m.bandwidth.memory for m, _ in self.samples]),
            },
            "token_latency_ms": percentiles([1e3 * s for p in phases for s in p.token_s]),
            **_decode_figures(phases),
            **_prompt_figures(phases),
            "peak_memory_bytes": max(m.result.peak_memory_bytes for m, _ in self.samples),
            "limited_by_kernel": first.limited,
            "others_cpu": max(m.others_cpu or 0.0 for m, _ in self.samples),
            "direct": first.result.direct,
            "stream": first.result.stream,
            "backend": first.result.backend,
            "threads": first.result.threads,
            "lossy": first.result.lossy,
            "ready_s": _median([m.result.ready_s for m, _ in self.samples]),
            "dense_s": _median([m.result.dense_s for m, _ in self.samples]),
            "dense_bytes": first.result.dense_bytes,
            "token_s": [p.token_s for p in phases],
        }


def _spread(name: str, values: Sequence[float]) -> dict[str, Any]:
    spread = Spread.of(values)
    return {name: spread.median, f"{name}_range": [spread.low, spread.high]}


def _median(values: Sequence[float]) -> float:
    return Spread.of(values).median


def _medians(found: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: _median([each[key] for each in found]) for key in found[0]}


def _decode_figures(phases: Sequence[PhaseResult]) -> dict[str, Any]:
    counts = [p.decode for p in phases]

    def per_token(value: Callable[[Counts], float]) -> float:
        return _median([value(p.decode) / len(p.token_s) for p in phases])

    known = all(c.kernel_read_bytes is not None for c in counts)
    reads = [c.stream["bytes_read"] / c.chunk_reads for c in counts if c.chunk_reads]
    stalls = [c.stream["stalls"] / c.stream["layers"] for c in counts]
    return {
        "hit_rate": _median([c.hit_rate for c in counts]),
        "bytes_read_per_token": per_token(lambda c: c.stream["bytes_read"]),
        "kernel_bytes_per_token": per_token(lambda c: c.kernel_read_bytes or 0) if known else None,
        "ahead_reads_per_token": per_token(lambda c: c.stream["ahead_reads"]),
        "ahead_used_per_token": per_token(lambda c: c.stream["ahead_used"]),
        "stalls_per_layer": _median(stalls),
        "bytes_per_read": _median(reads) if reads else 0.0,
        "max_queue_depth": max(c.max_depth for c in counts),
        "read_latency_us": _read_latency(counts),
        "record_latency_us": _record_latency(counts),
        "time_split_s": {
            part: per_token(lambda c, part=part: c.parts[part])  # type: ignore[misc]
            for part in counts[0].parts
        },
    }


def _prompt_figures(phases: Sequence[PhaseResult]) -> dict[str, Any]:
    counts = [p.prompt for p in phases]
    return {
        "prompt_hit_rate": _median([c.hit_rate for c in counts]),
        "prompt_bytes_read": _median([c.stream["bytes_read"] for c in counts]),
        "prompt_experts_needed": _median([c.needed for c in counts]),
        "prompt_experts_read": _median([c.stream["misses"] for c in counts]),
        "prompt_time_split_s": _medians([c.parts for c in counts]),
    }


def _read_latency(counts: Sequence[Counts]) -> dict[str, float]:
    """Of the pieces that the queue read, from issue to completion."""
    merged = np.sum([c.latency_counts for c in counts], axis=0)
    return histogram_percentiles(counts[0].latency_lower_us, merged.tolist())


def _record_latency(counts: Sequence[Counts]) -> dict[str, dict[str, float]]:
    """By bytes of the read: whole reads as they were asked for, waiting in the queue
    included."""
    pooled: dict[str, list[float]] = {}
    for found in counts:
        for nbytes, latencies in found.record_us.items():
            pooled.setdefault(nbytes, []).extend(latencies)
    return {
        nbytes: {"count": len(pooled[nbytes]), **percentiles(pooled[nbytes])}
        for nbytes in sorted(pooled, key=int)
    }
