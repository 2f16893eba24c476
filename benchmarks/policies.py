"""Which eviction policy to use: hit rates and bookkeeping on route traces.

One cache for all layers is driven through the engine's own cache classes, as the expert
stream drives them: on traces with the statistics published for Qwen3.5-397B, and on
uniform ones. Belady's optimum is the bound.

    python benchmarks/policies.py            # Markdown tables, one to two minutes
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from headgate.measure.routes import Trace, generate_trace
from headgate.stream import POLICIES, Policy, Residency, make_policy
from headgate.stream.policies import Belady, Key

SHARES = (0.05, 0.1, 0.2, 0.4)
PROMPT, CHUNK, ANSWER = 512, 256, 128
SEEDS = 3


@dataclass
class Model:
    """Sizes of a trace."""

    name: str
    layers: int
    experts: int
    k: int
    tokens: int

    def published(self, tokens: int, seed: int = 0) -> Trace:
        return generate_trace(tokens, self.layers, self.experts, self.k, seed)

    def uniform(self, tokens: int, seed: int = 0) -> Trace:
        rng = np.random.default_rng(seed)
        order = rng.random((tokens, self.layers, self.experts), np.float32)
        return np.argpartition(order, self.k, axis=-1)[..., : self.k].astype(np.int16)

    def slots(self) -> list[int]:
        """Half a token cycle, and shares of all experts."""
        sizes = [int(share * self.layers * self.experts) for share in SHARES]
        return [self.layers * self.k // 2, *sizes]


MODELS = (
    Model("12 layers, 8 of 256", 12, 256, 8, 1200),
    Model("15 layers, 10 of 512", 15, 512, 10, 1000),
    Model("15 layers, 4 of 512", 15, 512, 4, 1600),
)


def requests(trace: Trace) -> Iterator[list[Key]]:
    """The experts of each layer of each token."""
    for routes in trace.tolist():
        for layer, experts in enumerate(routes):
            yield [(layer, expert) for expert in experts]


def decode(trace: Trace, cache: Residency) -> list[int]:
    """Token by token; hits of each. As the stream: hits are pinned, misses placed."""
    hits = []
    batches = requests(trace)
    for _ in trace:
        cache.advance()
        found = 0
        for _ in range(trace.shape[1]):
            keys = next(batches)
            missing = [key for key in keys if cache.hit(key) is None]
            for key in missing:
                if cache.place(key) is None:
                    raise RuntimeError("fewer slots than experts per token")
            for key in keys:
                cache.unpin(key)
            found += len(keys) - len(missing)
        hits.append(found)
    return hits


def prefill(chunk: Trace, cache: Residency, counted: bool, by_last_use: bool) -> None:
    """One prompt chunk, layer by layer, each expert once.

    Args:
        counted: tell the policy how many tokens use an expert.
        by_last_use: experts used by the last tokens come last, instead of by number.
    """
    cache.advance(len(chunk))
    for layer in range(chunk.shape[1]):
        flat = chunk[:, layer].ravel()
        experts, counts = np.unique(flat, return_counts=True)
        last = len(flat) - 1 - np.unique(flat[::-1], return_index=True)[1]
        order = np.argsort(last) if by_last_use else np.arange(len(experts))
        uses = counts.tolist() if counted else [1] * len(experts)
        batch = [((layer, int(experts[i])), uses[i]) for i in order.tolist()]
        missing = [(key, n) for key, n in batch if cache.hit(key, n) is None]
        for key, _ in batch:
            cache.unpin(key)
        in_use: list[Key] = []
        for key, n in missing:
            while cache.place(key, n) is None:
                cache.unpin(in_use.pop(0))
            in_use.append(key)
        for key in in_use:
            cache.unpin(key)


# Tables -----------------------------------------------------------------------


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def head(*cells: str) -> str:
    return row(*cells) + "\n|" + "---|" * len(cells)


def hit_rates() -> None:
    """Hit rate of each policy, and microseconds per use with everything around it."""
    names = list(POLICIES)
    print(head("trace", "slots", "of all", *names, "belady", *(f"{n} µs" for n in names)))
    for model in MODELS:
        for kind, make in (("published", model.published), ("uniform", model.uniform)):
            trace = make(model.tokens)
            skip = model.tokens // 4
            future = [key for keys in requests(trace) for key in keys]
            for slots in model.slots():
                rates, micros = [], []
                policies: list[Policy] = [make_policy(name, slots) for name in names]
                for policy in [*policies, Belady(future)]:
                    began = time.process_time()
                    hits = decode(trace, Residency(slots, policy))
                    micros.append((time.process_time() - began) / trace.size * 1e6)
                    rates.append(sum(hits[skip:]) / trace[skip:].size)
                share = slots / model.layers / model.experts
                print(
                    row(
                        f"{kind}, {model.name}",
                        f"{slots}",
                        f"{share:.1%}",
                        *(f"{rate:.1%}" for rate in rates),
                        *(f"{micro:.1f}" for micro in micros[:-1]),
                    ),
                    flush=True,
                )


def bookkeeping(model: Model, missed: bool) -> None:
    """Microseconds of a policy alone per hit or per miss (admit, remove, victim), in
    a full cache of a fifth of the experts; a layer's experts are pinned together."""
    slots = model.layers * model.experts // 5
    rng = np.random.default_rng(0)
    cells = []
    for name in POLICIES:
        policy = make_policy(name, slots)
        universe = [(i, e) for i in range(model.layers) for e in range(model.experts)]
        order = [universe[i] for i in rng.permutation(len(universe))]
        resident, absent = order[:slots], order[slots:]
        for key in resident:
            policy.admit(key)
        for key in resident[::2]:
            policy.touch(key)
            policy.touch(key)
        rounds = [rng.choice(slots, model.k, replace=False).tolist() for _ in range(3000)]
        began, calls = time.process_time(), 0
        for chosen in rounds:
            if not missed:
                for i in chosen:
                    policy.touch(resident[i])
            else:
                pinned: set[Key] = set()
                for _ in chosen:
                    victim = policy.victim(pinned)
                    if victim is None:
                        raise RuntimeError("nothing to evict")
                    policy.remove(victim)
                    key = absent[calls % len(absent)]
                    absent[calls % len(absent)] = victim
                    policy.admit(key)
                    pinned.add(key)
                    calls += 1
        total = time.process_time() - began
        cells.append(f"{total / (len(rounds) * model.k) * 1e6:.2f}")
    print(row("miss" if missed else "hit", *cells))


def seeding(model: Model) -> None:
    """Hit rate of the first tokens after a prompt."""
    ways: list[tuple[str, str, Callable[[Trace, Residency], object]]] = [
        ("lru", "each expert once", lambda t, c: prefill(t, c, False, False)),
        ("lru", "in the order of last use", lambda t, c: prefill(t, c, False, True)),
        ("lfu", "each expert once", lambda t, c: prefill(t, c, False, False)),
        ("lfu", "counted", lambda t, c: prefill(t, c, True, False)),
        ("lfu", "counted, in the order of last use", lambda t, c: prefill(t, c, True, True)),
        ("lru", "as if token by token", decode),
        ("lfu", "as if token by token", decode),
    ]
    spans: Sequence[int] = (1, 8, 32, ANSWER)
    print(head("slots", "policy", "prompt's uses", *(f"{n} tokens" for n in spans)))
    traces = [model.published(PROMPT + ANSWER, seed) for seed in range(SEEDS)]
    for slots in model.slots():
        for name, how, run in ways:
            rates = np.zeros(len(spans))
            for trace in traces:
                cache = Residency(slots, make_policy(name, slots))
                for start in range(0, PROMPT, CHUNK):
                    run(trace[start : start + CHUNK], cache)
                hits = decode(trace[PROMPT:], cache)
                rates += [sum(hits[:n]) / n / trace[0].size / SEEDS for n in spans]
            print(row(str(slots), name, how, *(f"{rate:.1%}" for rate in rates)), flush=True)


def main() -> None:
    print("Hit rates once warm; microseconds per use with the cache and the replay around it\n")
    hit_rates()
    print("\nMicroseconds of the policy alone\n")
    print(head("", *POLICIES))
    bookkeeping(Model("60 layers, 10 of 512", 60, 512, 10, 0), missed=False)
    bookkeeping(Model("60 layers, 10 of 512", 60, 512, 10, 0), missed=True)
    print(f"\nHit rates of the first tokens after a prompt of {PROMPT}, {MODELS[0].name}\n")
    seeding(MODELS[0])


if __name__ == "__main__":
    main()
