"""Lossy knobs beyond fewer experts and fewer bits: what they may be, and what they set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from headgate.engine.expert_bits import ExpertBits
from headgate.errors import UsageError
from headgate.models import Routing
from headgate.store.layout import RecordLayout
from headgate.stream import Precision


@dataclass(frozen=True)
class Mixed:
    """How experts are chosen and read, checked.

    Attributes:
        precision: bits to read experts at.
        bits: the same, as it is written.
        routing: what is done to the router's choice; None for nothing.
        knobs: name -> value of what is in force, beside experts per token and bits.
        lossy: these in words.
        depends_on_cache: whether a prompt's state depends on what was in memory.
    """

    precision: Precision
    bits: int | str
    routing: Routing | None = None
    knobs: dict[str, Any] = field(default_factory=dict)
    lossy: list[str] = field(default_factory=list)

    @property
    def depends_on_cache(self) -> bool:
        return self.precision.refine


def plan_mixed(
    layout: RecordLayout,
    layers: Sequence[int],
    k: int,
    *,
    expert_bits: int | str | None = None,
    top_share: float | None = None,
    refine: bool = False,
    router_mass: float | None = None,
    router_floor: int | None = None,
    prefer_cached: float | None = None,
) -> Mixed:
    """Check what :meth:`headgate.engine.Engine.load` was asked for.

    Args:
        layers: those of the model that have experts.
        k: experts per token.

    Raises:
        StoreError: the store has no experts of so many bits.
        UsageError: a value is out of range, or does not go with another or the store.
    """
    bits = ExpertBits.parse(layout.format.bits if expert_bits is None else expert_bits)
    bits = bits.of(layout, layers)
    low = layout.format.readable_bits[0] if refine and not bits.mixed else bits.low
    if refine and low == bits.high:
        raise UsageError(f"there is nothing to refine: experts are read at {low} bits at once")
    fine = None if bits.layers is None else frozenset(map(list(layers).index, bits.layers))
    precision = Precision(low, bits.high, refine, fine)
    _check("router mass", router_mass, 1.0)
    _check("top share", top_share, 1.0)
    if prefer_cached is not None and not 0 <= prefer_cached < 1:
        raise UsageError(f"prefer-cached is {prefer_cached}, expected 0 or more and less than 1")
    if router_floor is not None and router_mass is None:
        raise UsageError("a router floor is for a router mass, and there is none")
    if router_floor is not None and not 1 <= router_floor <= k:
        raise UsageError(f"router floor is {router_floor}, expected 1..{k}, the experts per token")
    by_weight = bits.mixed and bits.layers is None
    if top_share is not None and not by_weight:
        why = "layers decide" if bits.mixed else "there is one precision"
        raise UsageError(f"a top share is for expert bits such as 2:4, and {why}")
    knobs: dict[str, Any] = {}
    lossy: list[str] = []
    if by_weight:
        # An expert with more than the mean weight is worth more bits than one with less.
        knobs["top_share"] = 1 / k if top_share is None else top_share
        lossy.append(f"top-share {knobs['top_share']:g}")
    if refine:
        knobs["refine"] = True
        lossy.append(f"refine from {precision.low} bits")
    if router_mass is not None and router_mass < 1:
        knobs["router_mass"], knobs["router_floor"] = router_mass, router_floor or 1
        at_least = f", at least {router_floor}" if (router_floor or 1) > 1 else ""
        lossy.append(f"router-mass {router_mass:g}{at_least}")
    if prefer_cached:
        knobs["prefer_cached"] = prefer_cached
        lossy.append(f"prefer-cached {prefer_cached:g}")
    routing = None
    if knobs.keys() - {"refine"}:
        routing = Routing(
            k,
            knobs.get("router_mass", 1.0),
            knobs.get("router_floor", 1),
            knobs.get("top_share"),
            knobs.get("prefer_cached", 0.0),
        )
    return Mixed(precision, bits.shown, routing, knobs, lossy)


def _check(name: str, value: float | None, most: float) -> None:
    if value is not None and not 0 < value <= most:
        raise UsageError(f"{name} is {value}, expected more than 0 and {most:g} at most")
