"""How much less is read when four sequences decode together than one after the other.

    .venv/bin/python benchmarks/serving/shared_reads.py

The demo model, with an expert cache of half of its experts. Four requests are answered one
after the other, each from an empty cache, and then together from an empty cache. Requests
that resemble each other are routed to the same experts and share more than others, so there
are several sets. Ratios are of expert bytes read: of everything, for which there is a bar,
and of what was read once all prompts had been processed, for which there is none: four
unrelated texts share few experts. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from checks import Figures

from headgate.demo import demo_store
from headgate.engine import Engine, PromptProgress, Sampling, Scheduler, Tokens, TurnOptions
from headgate.stream import ExpertStream, StreamOptions

BAR = 0.7
PROMPT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
STORY = "Tell me a short story about {}."
SETS: dict[str, Sequence[str]] = {
    "one question, four samples": [STORY.format("Mona")] * 4,
    "four of one kind": [f"Which country is {x} in?" for x in ("Oslo", "Paris", "Lima", "Rome")],
    "four stories": [STORY.format(x) for x in ("Mona", "Tom", "Anna", "Ben")],
    "unrelated": [
        "Which country is Oslo in?",
        STORY.format("Mona"),
        "What is the weather in Lima?",
        "Write a poem about the sea.",
    ],
}


@dataclass
class Run:
    """Expert bytes read for requests that were made at once."""

    total: int = 0
    decode: int = 0
    answers: list[list[int]] = field(default_factory=list)

    def __add__(self, other: Run) -> Run:
        return Run(
            self.total + other.total, self.decode + other.decode, self.answers + other.answers
        )


def load(share: float, sequences: int) -> Engine:
    """An engine whose cache is empty and holds ``share`` of the experts."""
    engine = Engine.load(demo_store(), sequences=sequences)
    manifest = engine.store.manifest
    slots = int(share * len(manifest.layers) * manifest.num_experts)
    options = StreamOptions(lookahead=0)  # reads of what is needed, no more
    bits = manifest.experts.bits
    engine.experts = ExpertStream(engine.store, engine.ops, slots, bits, options)
    return engine


def measure(share: float, requests: Sequence[tuple[str, int]], tokens: int) -> Run:
    """Answer (question, seed) at once."""
    engine = load(share, len(requests))
    stats, left, prompts = engine.experts.stats, len(requests), 0

    def watch(event: object) -> None:
        nonlocal prompts, left
        if isinstance(event, PromptProgress) and event.done == event.total:
            left -= 1
            if left == 0:
                prompts = stats.bytes_read

    with Scheduler(engine) as scheduler:
        tickets = []
        for question, seed in requests:
            ids = engine.tokenizer.encode(PROMPT.format(question))
            sampling = Sampling(temperature=0.7, seed=seed)
            options = TurnOptions(tokens, sampling, stop_ids=frozenset())
            tickets.append(scheduler.submit(ids, options))
        for ticket in tickets:
            ticket.on_event(watch)
        answers = [
            [step.token for event in ticket if isinstance(event, Tokens) for step in event.steps]
            for ticket in tickets
        ]
    return Run(stats.bytes_read, stats.bytes_read - prompts, answers)


def main() -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=0.5, help="of the experts in memory")
    parser.add_argument("--tokens", type=int, default=24, help="of each answer")
    args = parser.parse_args()
    figures = Figures()
    document = {"share": args.share, "tokens": args.tokens, "sets": {}}
    for name, questions in SETS.items():
        requests = [(question, seed) for seed, question in enumerate(questions)]
        alone = sum((measure(args.share, [x], args.tokens) for x in requests), Run())
        together = measure(args.share, requests, args.tokens)
        ratio, decode = together.total / alone.total, together.decode / alone.decode
        same = alone.answers == together.answers
        alone_mb, together_mb = alone.total / 1e6, together.total / 1e6
        what = f"{name}: bytes read, {together_mb:.0f} of {alone_mb:.0f} MB"
        figures.check(what, f"{ratio:.2f}", f"<= {BAR}", ratio <= BAR)
        figures.tell("  of them behind the prompts", f"{decode:.2f}")
        figures.check("  same answers", "yes" if same else "no", "yes", same)
        document["sets"][name] = {
            "ratio": round(ratio, 3),
            "decode_ratio": round(decode, 3),
            "same_answers": same,
        }
    print(json.dumps(document))
    return figures.status


if __name__ == "__main__":
    sys.exit(main())
