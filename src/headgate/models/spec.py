"""What a converter has to know of an architecture: its tensors and their roles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from headgate.errors import HeadgateError

#: ``projection``: may be kept at 8 bits. ``embedding``, ``router``: kept as they
#: were. ``norm``, ``vector``: small, kept in float32.
Role = Literal["projection", "embedding", "router", "norm", "vector"]


@dataclass(frozen=True)
class TensorSpec:
    """A dense tensor as the store holds it.

    Attributes:
        shape: its shape in the store; a source may have further axes of length 1.
        role: how it may be kept.
        zero_centred: checkpoints in Hugging Face's layout hold w where the model
            multiplies by 1 + w; the store always holds the factor.
    """

    shape: tuple[int, ...]
    role: Role
    zero_centred: bool = False


class ModelConfig(Protocol):
    """The parsed configuration of any architecture."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def max_position_embeddings(self) -> int: ...
    @property
    def num_experts(self) -> int: ...
    @property
    def num_experts_per_tok(self) -> int: ...
    @property
    def moe_intermediate_size(self) -> int: ...
    @property
    def moe_layers(self) -> tuple[int, ...]:
        """The decoder layers that have experts."""

    @property
    def activation_width(self) -> int:
        """Floats per token of the widest set of activations inside a layer."""

    def dense_tensors(self) -> dict[str, TensorSpec]:
        """Every dense tensor, named without the checkpoint's prefix."""

    def state_bytes(self, context: int) -> int:
        """Bytes of one sequence's state for up to ``context`` tokens."""


class Fields:
    """Typed access to the fields of a ``config.json``.

    Every complaint is a ValueError that names the field.
    """

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw

    def natural(self, name: str, limit: int = 1 << 31) -> int:
        value = self.raw.get(name)
        if type(value) is not int or not 1 <= value <= limit:
            raise ValueError(f"config field {name} is {value!r}, expected a number in 1..{limit}")
        return value

    def real(self, name: str, default: float | None = None) -> float:
        value = self.raw.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
            raise ValueError(f"config field {name} is {value!r}, expected a positive number")
        return float(value)

    def require(self, name: str, allowed: tuple[Any, ...], default: Any) -> None:
        """Refuse a variant of the architecture that is not implemented."""
        value = self.raw.get(name, default)
        if value not in allowed:
            raise ValueError(f"config field {name} is {value!r}; supported: {list(allowed)}")


@dataclass
class Part:
    """The tokens that one pass appends to one sequence.

    Attributes:
        ids: at least one.
        state: of the sequence; changed in place.
        marks: positions in the sequence, behind one of these tokens each, after which
            what cannot be told from a later state is copied.
        marked: position -> layer -> the copies.
        drawn: these tokens are of an answer, not of a prompt.
        error: set by the pass if the experts of these tokens could not be read. The state
            is of no use then.
    """

    ids: Sequence[int]
    state: Any
    marks: tuple[int, ...] = ()
    marked: dict[int, dict[int, tuple[Any, ...]]] = field(default_factory=dict)
    error: HeadgateError | None = None
    drawn: bool = False


class ExpertSource(Protocol):
    """Where a forward pass gets its routed experts from."""

    def request(
        self, layer: int, ids: npt.NDArray[np.int32], fine: npt.NDArray[np.bool_] | None = None
    ) -> Any:
        """Say which experts a layer needs, so that reading them can begin.

        Args:
            ids: [T, K], the routed experts of each token; -1 for none.
            fine: [T, K], those wanted at the higher of two precisions; only given if
                routing marks them.
        """

    def holds(self, layer: int, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """[K], which experts of a layer are in memory; only asked if routing prefers
        those."""

    @property
    def wants_suggestions(self) -> bool:
        """Whether :meth:`suggest` would do anything."""

    def suggest(self, layer: int, ids: npt.NDArray[np.int32]) -> None:
        """Say which experts a later layer will probably need, likeliest first.

        Args:
            ids: [K].
        """

    def compute(self, request: Any, x: Any, weights: Any, base: Any) -> Any:
        """base + the weighted sum of the requested experts' outputs for x.

        Args:
            x, base: [T, hidden]; weights: [T, K].
        """
