"""What answers took, for ``/stats``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headgate.assistant import Assistant, Finished
from headgate.engine.budget import format_size, peak_bytes, resident_bytes


@dataclass(frozen=True)
class AnswerFigures:
    """One answer.

    Attributes:
        hits, misses, bytes_read: of experts, while it was generated.
    """

    prompt: int
    cached: int
    generated: int
    reasoning: int
    ttft_s: float
    decode_s: float
    hits: int
    misses: int
    bytes_read: int

    @classmethod
    def of(
        cls, finished: Finished, before: Mapping[str, Any], after: Mapping[str, Any]
    ) -> AnswerFigures:
        """Of an answer and the scheduler's states around it."""
        usage = finished.usage
        return cls(
            usage.prompt,
            usage.cached,
            usage.completion,
            usage.reasoning,
            finished.ttft_s,
            finished.decode_s,
            *(after[name] - before[name] for name in ("hits", "misses", "bytes_read")),
        )

    @property
    def tokens_per_s(self) -> float:
        """Decode speed; the first token belongs to the prompt."""
        return (self.generated - 1) / self.decode_s if self.decode_s > 0 else 0.0

    @property
    def hit_rate(self) -> float:
        used = self.hits + self.misses
        return self.hits / used if used else 0.0

    @property
    def bytes_per_token(self) -> float:
        """Over all tokens processed."""
        return self.bytes_read / max(1, self.prompt - self.cached + self.generated)


def stats_rows(assistant: Assistant, last: AnswerFigures | None) -> list[tuple[str, str]]:
    """(what, figure) of the last answer and of the process."""
    engine, state = assistant.engine, assistant.scheduler.state()
    rows: list[tuple[str, str]] = []
    if last is not None:
        reasoning = f", {last.reasoning} of them reasoning" if last.reasoning else ""
        rows += [
            ("prompt", f"{last.prompt} tokens, {last.cached} of them cached"),
            ("answer", f"{last.generated} tokens{reasoning}"),
            ("speed", f"{last.tokens_per_s:.1f} tokens/s"),
            ("first token", f"after {last.ttft_s:.2f} s"),
            ("hit rate", f"{last.hit_rate:.0%}"),
            ("read", f"{format_size(last.bytes_per_token)} per token"),
            ("context", f"{last.prompt + last.generated} of {engine.context} tokens"),
        ]
    rows += [
        ("all answers", f"{assistant.generated} tokens, hit rate {state['hit_rate']:.0%}"),
        (
            "memory",
            f"{format_size(resident_bytes())}, peak {format_size(peak_bytes())}, "
            f"budget {format_size(engine.budget.total)}",
        ),
        ("lossy", "; ".join(engine.lossy) or "none"),
    ]
    return rows
