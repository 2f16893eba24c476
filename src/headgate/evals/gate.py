"""What is known of a store's quality: the figures of its sweeps, kept beside it.

``quality.json`` lies in the store's directory. The manifest does not list it: a store is
whole without it, and `headgate verify` does not read it. It carries the manifest's
digest, so figures of another conversion at the same path are never taken for its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from headgate.evals.files import write_json
from headgate.store import Store

FILE = "quality.json"
VERSION = 1
#: Options of an engine that change its answers; a reference goes without.
KNOBS = (
    "expert_bits",
    "experts_per_token",
    "top_share",
    "refine",
    "router_mass",
    "router_floor",
    "prefer_cached",
)


def store_identity(store: Store) -> str:
    """The same for the same bytes of a store, wherever it lies."""
    return hashlib.sha256(store.manifest.to_bytes()).hexdigest()[:16]


def record(store: Store, results: Sequence[Mapping[str, Any]]) -> None:
    """Keep the figures of a sweep's points, in place of older ones of the same knobs.

    Raises:
        ResourceError: the store's directory cannot be written.
    """
    points = {_key(point["knobs"]): point for point in measured(store)}
    for result in results:
        point = _point(store, result)
        points[_key(point["knobs"])] = point
    document = {"version": VERSION, "store": store_identity(store), "points": list(points.values())}
    write_json(store.path / FILE, document)


def measured(store: Store) -> list[dict[str, Any]]:
    """The points that have been kept; none if the file is missing, damaged, or of
    another store."""
    try:
        found = json.loads((store.path / FILE).read_text(encoding="utf-8"))
        if found["version"] != VERSION or found["store"] != store_identity(store):
            return []
        return [p for p in found["points"] if _text(p) and set(p["knobs"]) == set(KNOBS)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def describe(store: Store, knobs: Mapping[str, Any]) -> str:
    """One line about the quality of ``store`` under ``knobs``, for people who use them.

    Args:
        knobs: those of :data:`KNOBS`, as :attr:`headgate.engine.Engine.knobs` has them;
            what is missing or None is the store's own. Others are ignored.
    """
    wanted = _key(_complete(store, knobs))
    points = measured(store)
    found = next((p for p in points if _key(p["knobs"]) == wanted), None)
    if found is not None:
        return f"measured on this store: {_text(found)}"
    others = f" ({len(points)} other settings have been)" if points else ""
    return (
        f"the quality of these settings has not been measured on this store{others}: "
        f"`headgate sweep {store.path.name}` does"
    )


def _point(store: Store, result: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a point: its shares, their intervals, and its divergence."""
    scores = {
        f"{suite} {mode}": {key: found["all"][key] for key in ("n", "score", "interval")}
        for suite, modes in result["suites"].items()
        for mode, found in modes.items()
        if found["all"]["n"]
    }
    # What the engine made of the settings: `2:4` has a share even if none was given.
    knobs = result.get("in_force") or result["knobs"]
    point = {"knobs": _complete(store, knobs), "scores": scores}
    if "divergence" in result:
        every = result["divergence"]["all"]
        point["divergence"] = {"mean_kl": every["mean_kl"], "p99_kl": every["p99_kl"],
                               "top1": every["top1"]["score"]}  # fmt: skip
    return point


def _text(point: Mapping[str, Any]) -> str:
    parts = []
    for name, found in point["scores"].items():
        low, high = found["interval"]
        share = f"{found['score']:.1%} ({low:.1%} to {high:.1%}, n {found['n']})"
        parts.append(f"{name} {share}")
    if kl := point.get("divergence"):
        parts.append(f"mean KL {kl['mean_kl']:.4f}, same likeliest token {kl['top1']:.1%}")
    return "; ".join(parts)


def _complete(store: Store, knobs: Mapping[str, Any]) -> dict[str, Any]:
    own = {
        "expert_bits": store.manifest.experts.bits,
        "experts_per_token": store.manifest.config.get("num_experts_per_tok"),
    }
    return {name: own.get(name) if knobs.get(name) is None else knobs[name] for name in KNOBS}


def _key(knobs: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(knobs[name]) for name in KNOBS)
