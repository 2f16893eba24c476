"""What precision by router weight and fewer experts save, and what they cost, on the demo model.

    python benchmarks/mixed.py                  # 8 minutes on 2 cores
    python benchmarks/mixed.py --limit 20 --modes 2:4     # 440 prompts, a narrower interval

Bytes are those read for a generated token: every setting is fed the same tokens, those that
4 bits generate, with a cache of a quarter of the experts and with none, nothing read ahead.
Prompts are read before that and not counted. Beside them the share of tool calls that are
exactly right (suite `tools`, free, asked four at a time with the quarter cache), and how it
differs from that of 4 bits over the same prompts, each with its 95 % interval. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headgate.convert import ConvertOptions, convert
from headgate.demo import CHECKPOINT
from headgate.engine import Engine
from headgate.evals.engine_target import engine_target
from headgate.evals.intervals import paired_bootstrap, wilson
from headgate.evals.run import run_suite
from headgate.evals.suites import find_suite
from headgate.evals.suites.items import Item, load_items, some, suite_file
from headgate.stream import ExpertStream, StreamOptions

#: Prompts of each kind. More would not fit the time that is promised.
LIMIT = 3
BATCH, SHARE = 4, 1 / 4
#: What bytes are measured on, and tokens of each answer.
TOKENS = 40
QUESTIONS = (
    "Which country is Oslo in?",
    "What is the weather in Lima?",
    "Tell me a short story about Mona.",
    "Write a poem about the sea.",
    "How many people live in Paris?",
    "Tell me a short story about Ben.",
)
BASE = "4 bits"
MODES: dict[str, dict[str, Any]] = {
    BASE: {},
    "2 bits": {"expert_bits": 2},
    "2:4": {"expert_bits": "2:4"},
    "2:4@-1": {"expert_bits": "2:4@-1"},
    "2:4, top share 0.08": {"expert_bits": "2:4", "top_share": 0.08},
    "2:4, top share 0.2": {"expert_bits": "2:4", "top_share": 0.2},
    "2:4, top share 0.3": {"expert_bits": "2:4", "top_share": 0.3},
    "refine": {"refine": True},
    "mass 0.8": {"router_mass": 0.8},
    "mass 0.9": {"router_mass": 0.9},
    "mass 0.95": {"router_mass": 0.95},
    "prefer cached 0.02": {"prefer_cached": 0.02},
    "prefer cached 0.05": {"prefer_cached": 0.05},
    "mass 0.95, prefer cached 0.05": {"router_mass": 0.95, "prefer_cached": 0.05},
    "2:4, refine": {"expert_bits": "2:4", "refine": True},
    "2:4, mass 0.95": {"expert_bits": "2:4", "router_mass": 0.95},
    "2:4, mass 0.95, prefer cached 0.05": {
        "expert_bits": "2:4",
        "router_mass": 0.95,
        "prefer_cached": 0.05,
    },
}


@dataclass
class Row:
    """Figures of one mode; bytes per generated token."""

    name: str
    cached: float
    uncached: float
    right: list[bool]


def load(store: Path, cache: bool, options: dict[str, Any]) -> Engine:
    """An engine with an empty cache for a quarter of the experts, or one that forgets."""
    engine = Engine.load(store, sequences=BATCH, **options)
    manifest = engine.store.manifest
    slots = int(SHARE * len(manifest.layers) * manifest.num_experts)
    stream = StreamOptions(cache=cache, lookahead=0)  # reads of what is needed, no more
    engine.experts = ExpertStream(engine.store, engine.ops, slots, engine.experts.precision, stream)
    return engine


def generated(engine: Engine, prompts: list[list[int]]) -> list[list[int]]:
    """What the engine answers, for the others to be fed with."""
    return [list(engine.new_session().generate(p, TOKENS, stop=frozenset())) for p in prompts]


def bytes_per_token(engine: Engine, prompts: list[list[int]], answers: list[list[int]]) -> float:
    """Bytes read for each token of given answers, one sequence after the other."""
    stats, read, count = engine.experts.stats, 0, 0
    for prompt, answer in zip(prompts, answers, strict=True):
        session = engine.new_session()
        session.append(prompt)
        before = stats.bytes_read
        for token in answer:
            session.append([token], drawn=True)
        read += stats.bytes_read - before
        count += len(answer)
    return read / count


def exact(engine: Engine, items: list[Item]) -> list[bool]:
    """Whether each prompt's tool calls were exactly right."""
    suite = find_suite("tools")
    with engine_target(engine, BATCH) as target:
        return [bool(o.right) for o in run_suite(suite, target, items, "free", batch=BATCH)]


def difference(right: list[bool], base: list[bool]) -> tuple[float, float, float]:
    """Difference of two shares over the same prompts, and its 95 % interval.

    Where no prompt is right in one and wrong in the other, drawing them again says nothing:
    then it is bounded by the share of such prompts that none of as many still allows.
    """
    if right == base:
        bound = wilson(0, len(base))[1]
        return 0.0, -bound, bound
    return paired_bootstrap(right, base)


def table(rows: list[Row]) -> list[dict[str, Any]]:
    """Prints as Markdown what it returns."""
    base = next(row for row in rows if row.name == BASE)
    found = []
    print("| mode | KiB, quarter cached | of 4 bits | KiB, no cache | of 4 bits "
          "| exact | 95 % | difference, points | 95 % |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        right, n = sum(row.right), len(row.right)
        low, high = wilson(right, n)
        by = [100 * x for x in difference(row.right, base.right)]
        ratios = row.cached / base.cached, row.uncached / base.uncached
        cells = [
            row.name,
            f"{row.cached / 1024:.0f}",
            f"{ratios[0]:.2f}",
            f"{row.uncached / 1024:.0f}",
            f"{ratios[1]:.2f}",
            f"{right / n:.1%}",
            f"{low:.1%} to {high:.1%}",
            f"{by[0]:+.1f}",
            f"{by[1]:+.1f} to {by[2]:+.1f}",
        ]
        print("| " + " | ".join(cells) + " |")
        found.append(
            {
                "mode": row.name,
                "bytes_cached": row.cached,
                "bytes_uncached": row.uncached,
                "ratios": ratios,
                "right": right,
                "n": n,
                "difference_points": by,
            }
        )
    return found


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--limit", type=int, default=LIMIT, help="prompts of each kind")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), help="all if not given")
    args = parser.parse_args()
    names = [BASE, *(name for name in args.modes or MODES if name != BASE)]
    begin = time.monotonic()
    suite = find_suite("tools")
    items = some(load_items(suite_file("tools"), suite.check), args.limit)
    rows = []
    with tempfile.TemporaryDirectory(prefix="headgate-mixed-") as folder:
        store = Path(folder) / "demo.headgate"
        convert(CHECKPOINT, store, ConvertOptions(expert_bits=4))
        encode = load(store, True, {}).tokenizer.encode
        prompts = [
            encode(f"<|im_start|>user\n{x}<|im_end|>\n<|im_start|>assistant\n") for x in QUESTIONS
        ]
        answers = generated(load(store, True, {}), prompts)
        for name in names:
            options, started = MODES[name], time.monotonic()
            read = [
                bytes_per_token(load(store, cache, options), prompts, answers)
                for cache in (True, False)
            ]
            rows.append(Row(name, *read, exact(load(store, True, options), items)))
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    found = table(rows)
    print(json.dumps({"limit": args.limit, "seconds": time.monotonic() - begin, "modes": found}))


if __name__ == "__main__":
    main()
