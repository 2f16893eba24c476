"""Many requests, one engine: a thread that decodes several sequences together.

Every step appends one token to each sequence that is decoding, and beside them at most one
chunk of prompts. They go through the model in one pass, so an expert that several of them
need is read once. What a sequence gets does not depend on the others.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headgate.engine.batch import Running, run_batch
from headgate.engine.chunks import chunk_end, grid_of
from headgate.engine.prefix_cache import PrefixCache
from headgate.engine.ticket import Failed, Finished, Queued, Ticket
from headgate.engine.turn import MOST_TOP_LOGPROBS, TurnOptions
from headgate.errors import Busy, HeadgateError, ShuttingDown, UsageError

if TYPE_CHECKING:
    from headgate.engine.engine import Engine

#: Tokens of a prompt beside sequences that are decoding, where arithmetic takes the time.
#: Where reading does, a small chunk takes as long as a large one.
SHARED_CHUNK = 128


class Scheduler:
    """Takes requests, and answers as many at a time as there is state for.

    Nothing else may use the engine meanwhile.

    Args:
        engine: loaded with ``sequences`` of at least what is asked for here.
        sequences: answered at a time; what the engine has room for unless given.
        queue: requests that may wait beyond that.
        prefix_cache: states to begin prompts from; closed by whoever made it.

    Raises:
        UsageError: the engine's budget has no room for so many sequences.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        sequences: int | None = None,
        queue: int = 64,
        prefix_cache: PrefixCache | None = None,
    ) -> None:
        sequences = engine.sequences if sequences is None else sequences
        if not 1 <= sequences <= engine.sequences:
            raise UsageError(
                f"sequences is {sequences}, the engine was loaded for 1..{engine.sequences}"
            )
        if queue < 1:
            raise UsageError(f"queue is {queue}, it must be at least 1")
        self.engine, self.sequences, self.queue = engine, sequences, queue
        self.prefix_cache = prefix_cache
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._prompting: deque[Running] = deque()  # whose turn is next comes first
        self._decoding: list[Running] = []
        self._closing = self._abort = False
        self._reading_bound = False  # the last prompt chunk mostly waited for reads
        self._counts = dict.fromkeys(
            ("finished", "cancelled", "failed", "prompt_tokens", "cached_tokens", "tokens"), 0
        )
        self._thread = threading.Thread(target=self._run, name="headgate-scheduler", daemon=True)
        self._thread.start()

    # For any thread

    def submit(
        self,
        prompt: Sequence[int],
        options: TurnOptions | None = None,
        *,
        prompt_logprobs: int | None = None,
        snapshot_at: Sequence[int] = (),
    ) -> Ticket:
        """Queue a request.

        Args:
            prompt: token ids.
            prompt_logprobs: report the log-probabilities of the prompt's tokens, and this
                many of the likeliest beside each; the prefix cache is not used then.
            snapshot_at: positions in the prompt, in tokens, whose states are worth keeping.

        Raises:
            Busy: as many requests are waiting as may wait.
            ShuttingDown: the scheduler is being closed.
            PromptTooLong, UsageError: the prompt cannot be processed.
        """
        options = options or TurnOptions()
        self.engine.check_tokens(prompt)
        if prompt_logprobs is not None and not 0 <= prompt_logprobs <= MOST_TOP_LOGPROBS:
            raise UsageError(f"prompt_logprobs is {prompt_logprobs}, not 0..{MOST_TOP_LOGPROBS}")
        with self._changed:
            if self._closing:
                raise ShuttingDown("the engine is shutting down and takes no more requests")
            if len(self._waiting) >= self.queue:
                raise Busy(f"{len(self._waiting)} requests are waiting already: try again later")
            ticket = Ticket(list(prompt), options, prompt_logprobs, snapshot_at, self._wake)
            ticket.report(Queued(len(self._waiting)))
            self._waiting.append(ticket)
            self._changed.notify_all()
        return ticket

    def close(self, timeout: float | None = None) -> None:
        """Take no more requests, finish those that there are, and end the thread.

        Args:
            timeout: seconds after which what is not finished is cancelled; None to wait.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        if self._thread.is_alive():
            with self._changed:
                self._abort = True
                self._changed.notify_all()
            self._thread.join()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(0)

    def state(self) -> dict[str, Any]:
        """Figures for a person or a monitor, as of now: requests that wait, are being
        answered, have ended; tokens of prompts that were processed (``prompt_tokens``) and
        restored (``cached_tokens``), and of answers (``tokens``); what the expert stream
        did since the engine was loaded."""
        stats, experts = self.engine.experts.stats, self.engine.experts
        used = stats.hits + stats.misses
        return {
            "queued": len(self._waiting),
            "active": len(self._prompting) + len(self._decoding),
            "prompting": len(self._prompting),
            "sequences": self.sequences,
            **self._counts,
            "hits": stats.hits,
            "misses": stats.misses,
            "hit_rate": stats.hits / used if used else 0.0,
            "bytes_read": stats.bytes_read,
            "budget_bytes": self.engine.budget.total,
            "expert_slots": experts.residency.slots,
            "experts_resident": len(experts.residency),
            "prefix_cache": None if self.prefix_cache is None else self.prefix_cache.figures(),
        }

    def resident(self) -> npt.NDArray[np.bool_]:
        """bool [layers, experts]: which experts are in memory, or on their way."""
        manifest, residency = self.engine.store.manifest, self.engine.experts.residency
        layers, experts = len(manifest.layers), manifest.num_experts
        found = [(i, e) in residency for i in range(layers) for e in range(experts)]
        return np.array(found, np.bool_).reshape(layers, experts)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # For the scheduler's own thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._prompting or self._decoding or self._closing):
                    self._changed.wait()
                idle = not (self._waiting or self._prompting or self._decoding)
            if idle:
                return
            try:
                self._drop_cancelled()
                self._admit()
                self._step()
            except Exception as error:  # of ours; nobody must wait for ever because of it
                for running in [*self._decoding, *self._prompting]:
                    self._fail(running, error)

    def _drop_cancelled(self) -> None:
        with self._changed:
            dropped = [x for x in self._waiting if x.cancelled or self._abort]
            self._waiting = deque(x for x in self._waiting if x not in dropped)
        for ticket in dropped:
            running = Running(ticket)
            running.figures.finish_reason = "cancelled"
            self._end(running)
        for running in [*self._decoding, *self._prompting]:
            if running.ticket.cancelled or self._abort:
                running.figures.finish_reason = "cancelled"
                self._end(running)

    def _admit(self) -> None:
        while len(self._prompting) + len(self._decoding) < self.sequences:
            with self._changed:
                if not self._waiting:
                    return
                ticket = self._waiting.popleft()
                behind = list(self._waiting)
            running = Running(ticket)
            try:
                running.start(self.engine, self.prefix_cache)
                self._counts["cached_tokens"] += running.done
                self._prompting.append(running)
            except Exception as error:
                self._fail(running, error)
            for position, other in enumerate(behind):
                other.report(Queued(position))

    def _step(self) -> None:
        chosen = [*self._decoding, *self._next_chunks()]
        if not chosen:
            return
        began, stats = perf_counter(), self.engine.experts.stats
        waited, prompts = stats.wait_s, len(chosen) > len(self._decoding)
        done, generated = _progress(chosen)
        try:
            run_batch(self.engine, chosen, self.prefix_cache)
        except Exception as error:
            # What each state has become is not known.
            for running in chosen:
                running.error = error
        if prompts:
            self._reading_bound = 2 * (stats.wait_s - waited) > perf_counter() - began
        done_now, generated_now = _progress(chosen)
        self._counts["prompt_tokens"] += done_now - done
        self._counts["tokens"] += generated_now - generated
        for running in chosen:
            if running.error is not None:
                self._fail(running, running.error)
            elif running.finished:
                self._end(running)
            elif running in self._prompting and running.prompt_left == 0:
                self._prompting.remove(running)
                self._decoding.append(running)

    def _next_chunks(self) -> list[Running]:
        """Prompts of which a chunk is due, with the end of each set: the next one's chunk,
        and whatever other prompts fit into the room that it leaves."""
        room, grid = self._chunk_room(), grid_of(self.engine.budget.prompt_chunk)
        chosen: list[Running] = []
        for running in list(self._prompting):
            if chosen and running.prompt_left > room:
                continue
            total = len(running.ticket.prompt)
            running.until = chunk_end(running.done, total, max(room, grid))
            room -= running.until - running.done
            chosen.append(running)
        if chosen:
            self._prompting.rotate(-1)
        return chosen

    def _chunk_room(self) -> int:
        full = self.engine.budget.prompt_chunk
        if not self._decoding:
            return full
        beside = sum(len(running.turn.pending) - 1 for running in self._decoding)
        return (full if self._reading_bound else min(full, SHARED_CHUNK)) - beside

    def _fail(self, running: Running, error: Exception) -> None:
        self._forget(running)
        self._counts["failed"] += 1
        if not isinstance(error, HeadgateError):
            cause, error = error, HeadgateError(f"internal error: {type(error).__name__}: {error}")
            error.__cause__ = cause
        running.ticket.report(Failed(error))

    def _end(self, running: Running) -> None:
        self._forget(running)
        figures = running.figures
        self._counts["cancelled" if figures.finish_reason == "cancelled" else "finished"] += 1
        running.ticket.report(Finished(figures))

    def _forget(self, running: Running) -> None:
        """Make room for another sequence."""
        if running in self._prompting:
            self._prompting.remove(running)
        if running in self._decoding:
            self._decoding.remove(running)
        running.close()


def _progress(chosen: list[Running]) -> tuple[int, int]:
    """Tokens of prompts and of answers."""
    return sum(r.done for r in chosen), sum(r.figures.generated_tokens for r in chosen)
