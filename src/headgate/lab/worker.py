"""One measured process. Started by :mod:`headgate.lab.process`, which hands it a job on
stdin and takes the time: it starts a clock when it tells this to go on, and stops it at the
next line that this prints.

It is run as a file, so that a candidate's code is measured by the program that measures.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from headgate.engine import Engine, Sampler, Sampling
from headgate.engine.budget import peak_bytes
from headgate.errors import HeadgateError, UsageError
from headgate.measure.routes import load_trace, routed_by
from headgate.stream import StreamOptions


def say(**event: Any) -> None:
    """One line of JSON."""
    print(json.dumps(event), flush=True)


def main() -> None:
    """Do the job on stdin."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=listen, daemon=True).start()
    try:
        say(at="result", **run(job))
    except HeadgateError as error:
        say(at="error", kind=type(error).__name__, message=str(error))
    os._exit(0)  # the thread that listens holds stdin, which an orderly end would wait for


#: Told once for each time that the process that measures says to go on.
GO = threading.Semaphore(0)


def listen() -> None:
    """The other end of stdin is closed when the process that measures is gone."""
    for _ in sys.stdin:
        GO.release()
    os._exit(1)


def stop(at: str) -> None:
    """Say where this is and wait for the clock to be started."""
    say(at=at)
    GO.acquire()


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Load, and answer as many prompts as there are in ``job["lengths"]``. The last one is
    what is measured."""
    began = perf_counter()
    engine = Engine.load(
        job["store"],
        memory=job["memory"],
        stream=StreamOptions(**job["stream"]),
        **job["engine"],
    )
    longest = max(prompt + generated for prompt, generated in job["lengths"])
    if longest > engine.context:
        raise UsageError(
            f"prompt and generation make {longest} tokens, the context holds {engine.context}"
        )
    ready_s = perf_counter() - began
    rng = np.random.default_rng(job["seed"])
    routes = nullcontext()
    if job["routes"] is not None:
        routes = routed_by(engine, load_trace(Path(job["routes"])))  # type: ignore[assignment]
    tokens: list[list[int]] = []
    token_s: list[float] = []
    with routes:
        for number, (prompt, generated) in enumerate(job["lengths"]):
            measured = number == len(job["lengths"]) - 1
            ids = rng.integers(0, engine.config.vocab_size, prompt + generated - 1).tolist()
            before = dict(vars(engine.experts.stats))
            chosen, token_s = _answer(engine, ids, prompt, job["greedy"], measured)
            tokens.append(chosen)
            after = dict(vars(engine.experts.stats))
    return {
        "tokens": tokens,
        "token_s": token_s,
        "ready_s": ready_s,
        "stream": {name: after[name] - before[name] for name in after},
        "peak_memory_bytes": peak_bytes(),
        "budget_bytes": engine.budget.total,
        "slots": engine.budget.slots,
        "prompt_chunk": engine.budget.prompt_chunk,
        "lossy": engine.lossy,
    }


def _answer(
    engine: Engine, ids: list[int], prompt: int, greedy: bool, measured: bool
) -> tuple[list[int], list[float]]:
    """Tokens that the model chose, and seconds of each after the first."""
    session, sampler = engine.new_session(), Sampler(Sampling(), engine.allowed_tokens)
    if measured:
        stop("prompt")
    chosen = [sampler.choose(session.append(ids[:prompt]), session.tokens)]
    if measured:
        stop("decode")
    seconds = []
    for given in ids[prompt:]:
        began = perf_counter()
        logits = session.append([chosen[-1] if greedy else given])
        chosen.append(sampler.choose(logits, session.tokens))
        seconds.append(perf_counter() - began)
    if measured:
        say(at="end")
    return chosen, seconds


if __name__ == "__main__":
    main()
