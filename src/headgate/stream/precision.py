"""At how many bits experts are read, where that is not one number."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """Lossy unless both are the store's bits and nothing is refined.

    Attributes:
        low, high: bits of the experts that are asked for as coarse and as fine ones; a
            slot has room for ``high``.
        refine: what is used again at ``low`` bits gets the rest while the drive is idle,
            and is then used at ``high``, whatever it is asked for as. Results then depend
            on what is in memory.
        fine_layers: layers, by their place among those that have experts, whose experts
            are all fine, while all others are coarse; None if each pair of token and
            expert says what it wants.
    """

    low: int
    high: int
    refine: bool = False
    fine_layers: frozenset[int] | None = None

    def of_layer(self, index: int) -> int:
        """The fewest bits that anything in a layer is wanted at."""
        fine = self.fine_layers is not None and index in self.fine_layers
        return self.high if fine else self.low

    @property
    def mixed(self) -> bool:
        """Whether there are two."""
        return self.low != self.high

    @property
    def all(self) -> tuple[int, ...]:
        """The precisions at which experts may be multiplied."""
        return (self.low, self.high) if self.mixed else (self.high,)

    @classmethod
    def of(cls, bits: int | Precision) -> Precision:
        """A number stands for itself alone."""
        return bits if isinstance(bits, Precision) else cls(bits, bits)
