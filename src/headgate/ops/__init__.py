"""Arithmetic behind one interface: ``reference`` (NumPy) and ``cpu`` (native)."""

from __future__ import annotations

from headgate.errors import UsageError
from headgate.ops.interface import (
    Array,
    AttentionShape,
    DeltaShape,
    ExpertBatch,
    ExpertKernel,
    Ops,
    PlainWeight,
    QuantWeight,
    Weight,
)

__all__ = [
    "BACKENDS",
    "Array",
    "AttentionShape",
    "DeltaShape",
    "ExpertBatch",
    "ExpertKernel",
    "Ops",
    "PlainWeight",
    "QuantWeight",
    "Weight",
    "load_ops",
]

BACKENDS = ("cpu", "reference")


def load_ops(backend: str = "cpu", threads: int = 1, exact: bool = False) -> Ops:
    """The named backend, imported only now.

    Args:
        threads: threads to multiply on; the reference takes no notice.
        exact: float32 activations everywhere instead of int8 ones against
            quantised weights. Slower; for tests.
    """
    if backend == "cpu":
        from headgate.ops.cpu import CpuOps

        return CpuOps(threads, exact)
    if backend == "reference":
        from headgate.ops.reference import ReferenceOps

        return ReferenceOps()
    raise UsageError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
