"""At how many bits experts are read, as people write it: ``4``, ``2:4`` or ``2:4@-1``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from headgate.errors import UsageError
from headgate.store.layout import RecordLayout

_FORM = re.compile(r"(\d{1,4})(?:\s*:\s*(\d{1,4})(?:@(-?\d{1,4}(?:\+-?\d{1,4})*))?)?", re.ASCII)


@dataclass(frozen=True)
class ExpertBits:
    """One precision, or two.

    Attributes:
        low, high: the same for one.
        layers: whose experts are read at ``high``, all others at ``low``, numbers below 0
            counted from the last layer on; None if the router's weights decide.
    """

    low: int
    high: int
    layers: tuple[int, ...] | None = None

    @property
    def mixed(self) -> bool:
        """Whether there are two."""
        return self.low != self.high

    @classmethod
    def parse(cls, text: int | str) -> ExpertBits:
        """``4`` or ``"4"``; ``"2:4"``; ``"2:4@0+7"`` and ``"2:4@-1"`` for some layers.

        Raises:
            UsageError: it is something else, or not in ascending order.
        """
        found = _FORM.fullmatch(str(text).strip())
        if found is None:
            raise UsageError(
                f"expert bits are {text!r}, expected a number such as 4, or 2:4, or 2:4@-1 "
                "for the last layer"
            )
        low = int(found[1])
        if found[2] is None:
            return cls(low, low)
        if low >= int(found[2]):
            raise UsageError(
                f"expert bits are {text!r}, expected the lower number first, such as 2:4"
            )
        layers = None if found[3] is None else tuple(map(int, found[3].split("+")))
        return cls(low, int(found[2]), layers)

    def of(self, layout: RecordLayout, layers: Sequence[int]) -> ExpertBits:
        """The same for a store: layers by their own numbers, ascending.

        Args:
            layers: those of the store.

        Raises:
            StoreError, UsageError: the store has no such bits, or no such layer.
        """
        readable = layout.format.readable_bits
        if not self.mixed:
            layout.prefix(self.high)  # refuses bits that the store does not have
            return self
        if missing := [bits for bits in (self.low, self.high) if bits not in readable]:
            raise UsageError(
                f"the store has no {missing[0]}-bit experts to mix with others; it can be read at "
                f"{', '.join(map(str, readable))} bits"
            )
        if self.layers is None:
            return self
        known = {number: number for number in layers}
        known.update((back - len(layers), number) for back, number in enumerate(layers))
        if unknown := [number for number in self.layers if number not in known]:
            first, last = layers[0], layers[-1]
            raise UsageError(
                f"there is no layer {unknown[0]}: those with experts are {first} to {last}"
            )
        numbers = {known[number] for number in self.layers}
        return ExpertBits(self.low, self.high, tuple(sorted(numbers)))

    @property
    def shown(self) -> int | str:
        """As it is written."""
        if not self.mixed:
            return self.high
        of_layers = "" if self.layers is None else "@" + "+".join(map(str, self.layers))
        return f"{self.low}:{self.high}{of_layers}"
