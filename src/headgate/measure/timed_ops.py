"""Where the time of a forward pass goes: operations with a clock around each."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, cast

from headgate.ops import Ops

#: operation -> part of the forward pass that it belongs to
PARTS = {
    "attention": "attention",
    "delta_net": "attention",
    "linear": "projections",
    "route": "router",
    "combine": "experts",
    "rms_norm": "norms",
    "silu_mul": "norms",
    "add": "norms",
    "add_gated": "norms",
    "embed": "norms",
}
#: These make constants and buffers, or code that times itself.
UNTIMED = ("tensor", "matrix", "zeros", "empty", "expert_kernel", "last_row")


class TimedOps:
    """Passes every operation on to ``ops``, and adds up the seconds of each part.

    Exact products belong to what follows them: to the router, or to the gates of the
    delta rule.
    """

    def __init__(self, ops: Ops) -> None:
        self._ops = ops
        self._pending = 0.0  # seconds of an exact product
        self.seconds = dict.fromkeys([*PARTS.values(), "other operations"], 0.0)

    def linear(self, x: Any, *matrices: Any, exact: bool = False) -> Any:
        """See :meth:`Ops.linear`."""
        began = perf_counter()
        out = self._ops.linear(x, *matrices, exact=exact)
        spent = perf_counter() - began
        if exact:
            self._pending += spent
        else:
            self.seconds["projections"] += spent
        return out

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._ops, name)
        if callable(value) and name not in UNTIMED:
            value = self._timed(PARTS.get(name, "other operations"), value)
        setattr(self, name, value)  # found without __getattr__ from now on
        return value

    def _timed(self, part: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            began = perf_counter()
            out = operation(*args, **options)
            self.seconds[part] += perf_counter() - began + self._pending
            self._pending = 0.0
            return out

        return call


def timed(ops: Ops) -> tuple[Ops, TimedOps]:
    """``ops`` with clocks, as operations and as what holds the times."""
    clocks = TimedOps(ops)
    return cast(Ops, clocks), clocks
