"""What one process of the benchmark does, and what it reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from headgate.stream import StreamOptions

#: cold: the page cache dropped where permitted, the process new, its expert cache empty.
#: warm: the same process goes on with another prompt.
Temperature = Literal["cold", "warm"]


@dataclass(frozen=True)
class Phase:
    """One prompt and the tokens generated after it."""

    temperature: Temperature
    prompt_tokens: int
    generated_tokens: int


@dataclass(frozen=True)
class Job:
    """One process: load a store, go through the phases in order.

    Attributes:
        memory: budget in bytes; the engine's own choice if None.
        dense_layer: for every decoded token all experts of this layer are used.
        trace: path of a route trace to follow.
        record: path of a route trace to write.
        greedy: decoded tokens are the model's own; else random ones, since a model with
            random weights soon repeats itself, and with its tokens their experts.
        spawned: time.monotonic() when the process was started.
    """

    store: str
    phases: tuple[Phase, ...]
    memory: int | None = None
    context: int | None = None
    experts_per_token: int | None = None
    expert_bits: int | None = None
    threads: int | None = None
    prompt_chunk: int | None = None
    stream: StreamOptions = field(default_factory=StreamOptions)
    dense_layer: int | None = None
    trace: str | None = None
    record: str | None = None
    greedy: bool = False
    seed: int = 0
    spawned: float = 0.0

    def throttled(self, bytes_per_s: float) -> Job:
        """The same with a slower drive; 0 for no limit."""
        return replace(self, stream=replace(self.stream, throttle=bytes_per_s))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Job:
        """What :meth:`to_dict` made."""
        phases = tuple(Phase(**phase) for phase in raw["phases"])
        return cls(**{**raw, "phases": phases, "stream": StreamOptions(**raw["stream"])})


@dataclass
class Counts:
    """Figures of a part of a run: of its prompt, or of its decoding.

    Attributes:
        stream: differences of the stream's statistics.
        parts: seconds by part of the forward pass.
        needed: distinct experts that were asked for, over all layers.
        chunk_reads, max_depth: pieces that the queue read, and most in flight at once.
        latency_lower_us, latency_counts: histogram of those pieces, issue to completion.
        record_us: bytes of a read -> microseconds from submission to its last byte.
        kernel_read_bytes: of the kernel's own count; None where it does not tell.
    """

    stream: dict[str, float]
    parts: dict[str, float]
    needed: int
    chunk_reads: int
    max_depth: int
    latency_lower_us: list[float]
    latency_counts: list[int]
    record_us: dict[str, list[float]]
    kernel_read_bytes: int | None

    @property
    def hit_rate(self) -> float:
        """Share of routed experts that were in memory."""
        used = self.stream["hits"] + self.stream["misses"]
        return self.stream["hits"] / used if used else 0.0


@dataclass
class PhaseResult:
    """One phase as measured.

    Attributes:
        token_s: seconds of each decoded token, those after the first.
        token_bytes: parts of :class:`headgate.measure.roofline.TokenBytes`, averages over
            the decoded tokens.
    """

    phase: Phase
    ttft_s: float
    token_s: list[float]
    token_bytes: dict[str, float]
    prompt: Counts
    decode: Counts

    @property
    def decode_tokens_per_s(self) -> float:
        return len(self.token_s) / sum(self.token_s)

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.phase.prompt_tokens / self.ttft_s


@dataclass
class JobResult:
    """What a process reports.

    Attributes:
        ready_s: from the start of the process until it could take a prompt.
        dense_s: of that, reading and checking the dense weights.
        direct: whether reads bypassed the page cache.
        stream: the stream's options, with what the cost model chose.
    """

    budget: dict[str, int]
    budget_bytes: int
    threads: int
    lossy: list[str]
    backend: str
    direct: bool
    stream: dict[str, Any]
    ready_s: float
    dense_s: float
    dense_bytes: int
    peak_memory_bytes: int
    phases: list[PhaseResult]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> JobResult:
        """What :meth:`to_dict` made."""
        phases = [
            PhaseResult(
                **{
                    **phase,
                    "phase": Phase(**phase["phase"]),
                    "prompt": Counts(**phase["prompt"]),
                    "decode": Counts(**phase["decode"]),
                }
            )
            for phase in raw["phases"]
        ]
        return cls(**{**raw, "phases": phases})
