"""Write the held-out set: ``python demo/held_out.py``.

Tools of the kind ``seen`` belong to families that training has; every other made-up
name and value, in all kinds, comes from the split that training never draws.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from corpus import Transcript, transcript
from text import HERE, TOKENIZER, render
from words import HOSTILE

HELD_OUT = HERE / "held_out.jsonl"
#: Rows of training have as many tokens.
LONGEST = 1024
#: kind -> (how many, the corpus' kinds in turn, its options)
PLAN: dict[str, tuple[int, list[str], dict[str, Any]]] = {
    "seen": (120, ["calling", "calling", "parallel"], {"seen": True, "thinking": False}),
    "unseen": (120, ["calling", "calling", "parallel"], {"seen": False, "thinking": False}),
    "hostile": (100, ["calling"], {"thinking": False}),
    "irrelevant": (120, ["irrelevant"], {"thinking": False}),
    "json": (120, ["json"], {"thinking": False}),
    "multi_turn": (120, ["multi_turn"], {"thinking": False}),
    "thinking": (100, ["calling", "irrelevant", "json", "chat"], {"thinking": True}),
    "chat": (100, ["chat"], {"thinking": False}),
    "story": (100, ["story"], {"thinking": False}),
}


def has_hostile(value: Any) -> bool:
    """Whether a string somewhere in ``value`` needs care."""
    if isinstance(value, dict):
        return any(map(has_hostile, value.values()))
    if isinstance(value, list):
        return any(map(has_hostile, value))
    signs = [s for s in HOSTILE if s in ('"', "\\", "\n", "{", "}", "\t")]
    return isinstance(value, str) and any(s in value for s in signs)


def _suits(kind: str, t: Transcript) -> bool:
    if kind != "hostile":
        return True
    calls = [c for m in t["messages"] for c in m.get("tool_calls", [])]
    return any(has_hostile(c["function"]["arguments"]) for c in calls)


def held_out(first: int = 0) -> Iterator[dict[str, Any]]:
    """All transcripts, in order; ``first`` is the first seed of each kind."""
    from tokenizers import Tokenizer

    tok = Tokenizer.from_file(str(TOKENIZER))
    for kind, (count, sources, options) in PLAN.items():
        found, seed = 0, first
        while found < count:
            t = transcript(seed, sources[found % len(sources)], held=True, **options)
            seed += 1
            short = len(tok.encode(render(t["messages"], t["tools"])).ids) <= LONGEST
            if short and _suits(kind, t):
                yield {"id": f"{kind}-{found:03d}", **t, "kind": kind}
                found += 1


def main() -> None:
    with HELD_OUT.open("w", encoding="utf-8") as file:
        for t in held_out():
            file.write(json.dumps(t, ensure_ascii=False) + "\n")
    print(f"{HELD_OUT}: {HELD_OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
