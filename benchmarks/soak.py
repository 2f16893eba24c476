"""Generation for a long time under a memory limit, with cancellations at random moments.

    python benchmarks/soak.py STORE --minutes 60 --memory 1.5G

The kernel holds the process to the limit where it may. Two sequences decode at a time;
prompts and lengths are random, two requests of three are cancelled. Every now and then one
greedy answer is asked for again: it must be what it was at the start. Prints the memory and
the counts once a minute; exits with 1 if an answer differs, a request fails, or memory of
the last quarter is more than 2 % above that of the first.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

from headgate.engine import Engine, Failed, Finished, Scheduler, Tokens, TurnOptions, parse_size
from headgate.engine.budget import format_size, peak_bytes, resident_bytes
from headgate.engine.ticket import Ticket
from headgate.measure.limit import memory_limit

SEQUENCES = 2
REFERENCE, REFERENCE_TOKENS = 24, 32  # tokens of the prompt, and of the answer
LONGEST_PROMPT, LONGEST_ANSWER = 96, 48
#: Requests between two reference answers.
EVERY = 10
GROWTH = 1.02


def answer(ticket: Ticket) -> list[int]:
    """The tokens of a request, to its end.

    Raises:
        Exception: what made it fail.
    """
    tokens: list[int] = []
    for event in ticket:
        if isinstance(event, Tokens):
            tokens += [step.token for step in event.steps]
        elif isinstance(event, Failed):
            raise event.error
    return tokens


class Soak:
    """Requests without end.

    Attributes:
        finished, cancelled: requests so far.
    """

    def __init__(self, engine: Engine, seed: int) -> None:
        self.scheduler = Scheduler(engine)
        self._random = random.Random(seed)
        self._vocab = engine.config.vocab_size
        self._reference = self._prompt(REFERENCE)
        self.finished = self.cancelled = 0
        self.expected = self.reference()

    def reference(self) -> list[int]:
        """The answer that must never change."""
        options = TurnOptions(max_tokens=REFERENCE_TOKENS, stop_ids=frozenset())
        return answer(self.scheduler.submit(self._reference, options))

    def batch(self) -> None:
        """A few requests at once; raises if one of them fails."""
        tickets = [self._submit() for _ in range(SEQUENCES)]
        doomed = [ticket for ticket in tickets if self._random.random() < 2 / 3]
        for ticket in doomed:
            time.sleep(self._random.expovariate(1.0))
            ticket.cancel()
        for ticket in tickets:
            answer(ticket)
            last = list(ticket)[-1]
            assert isinstance(last, Finished)
            self.cancelled += last.figures.finish_reason == "cancelled"
            self.finished += last.figures.finish_reason != "cancelled"

    def _submit(self) -> Ticket:
        length = self._random.randint(1, LONGEST_PROMPT)
        most = self._random.randint(1, LONGEST_ANSWER)
        return self.scheduler.submit(self._prompt(length), TurnOptions(max_tokens=most))

    def _prompt(self, length: int) -> list[int]:
        return [self._random.randrange(self._vocab) for _ in range(length)]


def soak(store: str, minutes: float, memory: int, seed: int) -> int:
    """In this process; the exit status."""
    engine = Engine.load(store, memory=memory, context=512, sequences=SEQUENCES)
    test, begin = Soak(engine, seed), time.monotonic()
    resident: list[int] = []
    wrong, batches = 0, 0
    while (spent := (time.monotonic() - begin) / 60) < minutes:
        test.batch()
        batches += 1
        if batches % EVERY == 0:
            wrong += test.reference() != test.expected
        if spent >= len(resident):
            resident.append(resident_bytes())
            print(
                f"{spent:5.1f} min  {test.finished} finished, {test.cancelled} cancelled, "
                f"{wrong} answers differ, {format_size(resident[-1])} resident, "
                f"peak {format_size(peak_bytes())}",
                flush=True,
            )
    wrong += test.reference() != test.expected
    test.scheduler.close()
    quarter = max(1, len(resident) // 4)
    first, last = (statistics.median(part) for part in (resident[:quarter], resident[-quarter:]))
    print(
        json.dumps(
            {
                "minutes": minutes,
                "limit_bytes": memory,
                "finished": test.finished,
                "cancelled": test.cancelled,
                "differing_answers": wrong,
                "resident_first_quarter": first,
                "resident_last_quarter": last,
                "peak_bytes": peak_bytes(),
            }
        )
    )
    return int(wrong > 0 or last > GROWTH * first)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("store")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--memory", default="1.5G")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limited", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    memory = parse_size(args.memory)
    if args.limited:
        sys.exit(soak(args.store, args.minutes, memory, args.seed))
    with memory_limit(memory) as prefix:
        print("held by the kernel" if prefix else "not held by the kernel", flush=True)
        again = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--limited"]
        sys.exit(subprocess.run([*prefix, *again]).returncode)


if __name__ == "__main__":
    main()
