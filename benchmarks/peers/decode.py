"""What ``llama-bench -p 0 -n N`` does, with headgate: decode N random tokens one by one.

Random tokens, since greedy ones of a model with random weights soon repeat themselves, and with
them their experts. Prints one JSON document; says ``decoding`` on standard error when it starts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from headgate.engine import Engine, parse_size

MARKER = "decoding"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--memory", type=parse_size, required=True, help="of the whole process")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--prompt", type=int, default=0, help="random tokens, not timed")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    begin = time.perf_counter()
    engine = Engine.load(args.store, memory=args.memory, threads=args.threads, context=args.context)
    load_s = time.perf_counter() - begin
    rng = np.random.default_rng(args.seed)
    ids: list[int] = rng.integers(engine.config.vocab_size, size=args.prompt + args.tokens).tolist()
    session = engine.new_session()
    if args.prompt:
        session.append(ids[: args.prompt])
    before = engine.experts.stats.bytes_read
    print(MARKER, file=sys.stderr, flush=True)
    marks = [time.perf_counter()]
    for token in ids[args.prompt :]:
        session.append([token])
        marks.append(time.perf_counter())
    figures = {
        "tokens": args.tokens,
        "tokens_per_s": args.tokens / (marks[-1] - marks[0]),
        "seconds": np.diff(marks).tolist(),
        "load_s": load_s,
        "expert_bytes_read": engine.experts.stats.bytes_read - before,
        "cached_experts": engine.budget.slots,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
