"""A request that the scheduler has taken, and what it reports of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from headgate.engine.turn import Step, TurnOptions

EndReason = Literal["stop", "length", "cancelled"]


@dataclass
class TurnFigures:
    """What an answer took.

    Attributes:
        finish_reason: ``stop``, ``length``, or ``cancelled``.
        prompt_tokens: of the prompt; cached_tokens: of them, restored instead of processed.
        ttft_s: from submission to the first token, waiting in the queue included.
        decode_s: from the first token to the last.
        hits, misses, bytes_read: this request's share of the steps that it took part in,
            by tokens.
        prompt_logprobs: for each token of the prompt its log-probability, if asked for;
            that of the first is None.
    """

    finish_reason: EndReason = "cancelled"
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    ttft_s: float = 0.0
    decode_s: float = 0.0
    hits: float = 0.0
    misses: float = 0.0
    bytes_read: float = 0.0
    prompt_logprobs: list[Step] | None = None

    @property
    def tokens_per_s(self) -> float:
        """Decode speed; the first token belongs to the prompt."""
        return (self.generated_tokens - 1) / self.decode_s if self.decode_s > 0 else 0.0


@dataclass(frozen=True)
class Queued:
    """Waiting; ``position`` requests are ahead."""

    position: int


@dataclass(frozen=True)
class PromptProgress:
    """``done`` of ``total`` tokens of the prompt are processed, ``cached`` of them were
    restored."""

    done: int
    total: int
    cached: int


@dataclass(frozen=True)
class Tokens:
    """The answer has grown."""

    steps: list[Step]


@dataclass(frozen=True)
class Finished:
    """The answer is complete, or has been cancelled. The last event."""

    figures: TurnFigures


@dataclass(frozen=True)
class Failed:
    """There will be no answer, or no more of it. The last event."""

    error: Exception


Event = Queued | PromptProgress | Tokens | Finished | Failed


@dataclass(eq=False)
class Ticket:
    """One request. Any thread may use it.

    Attributes:
        prompt, options, prompt_logprobs, snapshot_at: as submitted.
        submitted: ``time.perf_counter()`` then.
    """

    prompt: Sequence[int]
    options: TurnOptions
    prompt_logprobs: int | None = None
    snapshot_at: Sequence[int] = ()
    wake: Callable[[], None] = lambda: None
    submitted: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._telling = threading.RLock()  # callbacks see events in order, each once
        self._events: list[Event] = []
        self._callbacks: list[Callable[[Event], None]] = []
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """Whether :meth:`cancel` has been called."""
        return self._cancelled

    @property
    def done(self) -> bool:
        """Whether the last event has been reported."""
        with self._changed:
            return bool(self._events) and isinstance(self._events[-1], Finished | Failed)

    def cancel(self) -> None:
        """End the answer before its next token. It is then reported as finished, with the
        reason ``cancelled``."""
        self._cancelled = True
        self.wake()

    def on_event(self, callback: Callable[[Event], None]) -> None:
        """Have ``callback`` called for every event: for those until now at once, for later
        ones from the scheduler's thread, which waits for it. If it raises there, it is not
        called any more and the request is cancelled."""
        with self._telling:
            for event in list(self._events):
                callback(event)
            self._callbacks.append(callback)

    def __iter__(self) -> Iterator[Event]:
        """All events, from the first to the last, as they come."""
        position = 0
        while True:
            with self._changed:
                while position == len(self._events):
                    self._changed.wait()
                event = self._events[position]
            yield event
            if isinstance(event, Finished | Failed):
                return
            position += 1

    def report(self, event: Event) -> None:
        """For the scheduler: something has happened."""
        with self._telling:
            with self._changed:
                self._events.append(event)
                self._changed.notify_all()
            self._callbacks = [told for told in self._callbacks if self._told(told, event)]

    def _told(self, callback: Callable[[Event], None], event: Event) -> bool:
        try:
            callback(event)
        except Exception:  # nobody listens any more
            self._cancelled = True
            return False
        return True
