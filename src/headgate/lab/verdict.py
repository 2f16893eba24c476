"""The verdict: kept only if the interval clears the minimum gain and the guard holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headgate.evals.intervals import paired_bootstrap
from headgate.lab.experiment import Measurement, Protocol, Sample, Verdict
from headgate.lab.statistics import LEAST_PAIRS, paired_ratio

#: Pairs after which an experiment may end because its gain has become impossible. Ending
#: early can only discard, so it adds nothing to what is kept by chance.
LEAST_TO_DISCARD = 3


@dataclass(frozen=True)
class Decision:
    """A verdict, why, and the figures that it rests on."""

    verdict: Verdict
    why: str
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """Baseline and candidate, one after the other."""

    a: Sample
    b: Sample


def pairs_of(measurements: Sequence[Measurement]) -> dict[int, Pair]:
    """Complete pairs by number; what is not counted is left out."""
    found: dict[int, dict[str, Sample]] = {}
    for m in measurements:
        if m.counted:
            found.setdefault(m.pair, {})[m.side] = m.sample
    return {n: Pair(s["A"], s["B"]) for n, s in sorted(found.items()) if len(s) == 2}


def text_difference(pairs: Mapping[int, Pair]) -> str | None:
    """Where the candidate first chose another token than the baseline; None if nowhere."""
    for number, pair in pairs.items():
        if len(pair.a.tokens) != len(pair.b.tokens):
            return f"pair {number + 1}: another number of generations"
        for a, b in zip(pair.a.tokens, pair.b.tokens, strict=True):
            if a != b:
                same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y),
                            min(len(a), len(b)))  # fmt: skip
                return f"pair {number + 1}, token {same + 1} of {len(a)}"
    return None


def judge(pairs: Mapping[int, Pair], protocol: Protocol) -> Decision | None:
    """The verdict on what has been measured so far; None to go on. ``kept`` is without the
    quality suites, which a lossy candidate must still pass."""
    if protocol.exact and (where := text_difference(pairs)) is not None:
        why = f"its text is not the baseline's: {where}"
        return Decision("discarded", why, {**_figures(pairs), "guard": where})
    if len(pairs) < min(LEAST_TO_DISCARD, protocol.pairs):
        return None
    found = paired_ratio([p.a.value for p in pairs.values()], [p.b.value for p in pairs.values()])
    result, bar = found.to_dict(), 1 + protocol.min_gain
    if len(pairs) < protocol.pairs:
        if found.high < bar:
            why = f"{found} cannot reach {bar:.3f}: ended early"
            return Decision("discarded", why, result)
        return None
    if len(pairs) >= LEAST_PAIRS and found.low > bar:
        return Decision("kept", f"{found} lies above {bar:.3f}", result)
    return Decision("discarded", f"{found} does not lie above {bar:.3f}", result)


def _figures(pairs: Mapping[int, Pair]) -> dict[str, Any]:
    """For the record of what is discarded anyway."""
    if len(pairs) < 2:
        return {"pairs": len(pairs)}
    values = list(pairs.values())
    return paired_ratio([p.a.value for p in values], [p.b.value for p in values]).to_dict()


Answers = Mapping[str, Mapping[str, bool | None]]


def judge_quality(baseline: Answers, candidate: Answers, max_loss: float) -> Decision:
    """Whether no suite loses more than ``max_loss``: the lower end of the paired interval
    of candidate - baseline must not lie below it. ``kept`` if so.

    Args:
        baseline, candidate: suite -> prompt -> right or wrong; None for no answer.
    """
    result: dict[str, Any] = {}
    failed = []
    for suite, before in baseline.items():
        after = candidate.get(suite, {})
        both = [(before[i], after[i]) for i in before if before[i] is not None
                and after.get(i) is not None]  # fmt: skip
        if len(both) < len([x for x in before.values() if x is not None]) or not both:
            failed.append(f"{suite}: answers are missing")
            continue
        a, b = ([float(bool(pair[side])) for pair in both] for side in (0, 1))
        difference, low, high = paired_bootstrap(b, a)
        result[suite] = {"n": len(both), "difference": difference, "low": low, "high": high}
        if low < -max_loss:
            failed.append(f"{suite} {difference:+.1%} ({low:+.1%} to {high:+.1%})")
    if not result and not failed:
        failed.append("nothing was asked")
    if failed:
        why = f"quality: {'; '.join(failed)}; a loss of {max_loss:.1%} is allowed"
        return Decision("discarded", why, {"quality": result})
    return Decision("kept", "no quality suite lost more than allowed", {"quality": result})
