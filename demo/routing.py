"""How a model routes: even or skewed, and how much adjacent tokens have in common.

A trace is a list of (layer, tokens, experts): one entry per layer and call, ``tokens`` 1
for a decoded token, and the distinct experts that the call used.
"""

from __future__ import annotations

from collections import OrderedDict

Trace = list[tuple[int, int, list[int]]]
#: The caches of :func:`hit_rates` hold 1/8, 1/4 and 1/2 of all experts.
SHARES = (8, 4, 2)


def hit_rates(trace: Trace, experts: int) -> dict[str, float]:
    """Share of decoded tokens' expert uses that an LRU cache over all layers has.

    Args:
        experts: of all layers together.
    """
    return {f"1/{share}": _hit_rate(trace, experts // share) for share in SHARES}


def _hit_rate(trace: Trace, capacity: int) -> float:
    cache: OrderedDict[tuple[int, int], None] = OrderedDict()
    hits = uses = 0
    for layer, tokens, ids in trace:
        for expert in ids:
            key = (layer, expert)
            found = key in cache
            cache[key] = None
            cache.move_to_end(key)
            if len(cache) > capacity:
                cache.popitem(last=False)
            if tokens == 1:
                hits, uses = hits + found, uses + 1
    return hits / max(1, uses)


def overlap(trace: Trace) -> float:
    """Share of a decoded token's experts that the decoded token before it used too."""
    before: dict[int, set[int]] = {}
    same = uses = 0
    for layer, tokens, ids in trace:
        mine = set(ids)
        if tokens > 1:
            before.pop(layer, None)
            continue
        if layer in before:
            same, uses = same + len(mine & before[layer]), uses + len(mine)
        before[layer] = mine
    return same / max(1, uses)
