"""Figures for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from headgate.assistant import Finished

#: Seconds. A prompt for a model larger than memory may take minutes.
TTFT_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKEN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

#: key of the scheduler's state -> (name, what it is)
GAUGES = {
    "active": ("headgate_answers_active", "Answers being generated"),
    "queued": ("headgate_requests_queued", "Requests waiting for their turn"),
    "hit_rate": ("headgate_expert_hit_rate", "Share of routed experts found in memory"),
    "memory_bytes": ("headgate_memory_resident_bytes", "Resident memory of the process"),
    "budget_bytes": ("headgate_memory_budget_bytes", "Memory that the process may take"),
    "prefix_memory_bytes": ("headgate_prefix_memory_bytes", "Kept prefixes in memory"),
    "prefix_disk_bytes": ("headgate_prefix_disk_bytes", "Kept prefixes on the drive"),
}
COUNTERS = {
    "hits": ("headgate_expert_hits", "Routed experts found in memory"),
    "misses": ("headgate_expert_misses", "Routed experts read from the drive"),
    "bytes_read": ("headgate_expert_read_bytes", "Bytes of experts read from the drive"),
}


class Metrics:
    """Counters of one server.

    Args:
        state: figures of the moment, by the keys of :data:`GAUGES` and :data:`COUNTERS`.
    """

    def __init__(self, state: Callable[[], Mapping[str, Any]]) -> None:
        self.registry = registry = CollectorRegistry()
        registry.register(_State(state))
        self.responses = Counter(
            "headgate_http_responses", "HTTP responses", ["path", "status"], registry=registry
        )
        self._answers = Counter(
            "headgate_answers", "Complete answers", ["finish_reason"], registry=registry
        )
        self._prompt = Counter("headgate_prompt_tokens", "Tokens of prompts", registry=registry)
        self._cached = Counter(
            "headgate_prompt_tokens_cached",
            "Tokens of prompts that a kept prefix has spared",
            registry=registry,
        )
        self._generated = Counter(
            "headgate_generated_tokens", "Tokens generated", registry=registry
        )
        self._ttft = Histogram(
            "headgate_time_to_first_token_seconds",
            "From a request to its first token",
            buckets=TTFT_BUCKETS,
            registry=registry,
        )
        self._token = Histogram(
            "headgate_time_per_token_seconds",
            "Mean time between the tokens of an answer",
            buckets=TOKEN_BUCKETS,
            registry=registry,
        )

    def answered(self, finished: Finished) -> None:
        """Count a complete answer."""
        usage = finished.usage
        self._answers.labels(finished.reason).inc()
        self._prompt.inc(usage.prompt)
        self._cached.inc(usage.cached)
        self._generated.inc(usage.completion)
        if usage.completion:
            self._ttft.observe(finished.ttft_s)
        if usage.completion > 1:
            self._token.observe(finished.decode_s / (usage.completion - 1))

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self.registry)


class _State(Collector):
    """The figures that the scheduler keeps, asked for when somebody looks."""

    def __init__(self, state: Callable[[], Mapping[str, Any]]) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        found = self._state()
        for key, (name, help_text) in GAUGES.items():
            if key in found:
                yield GaugeMetricFamily(name, help_text, value=found[key])
        for key, (name, help_text) in COUNTERS.items():
            if key in found:
                yield CounterMetricFamily(name, help_text, value=found[key])
