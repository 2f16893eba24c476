"""What a sequence of Qwen3.5-MoE has to remember."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headgate.ops import Array


@dataclass
class AttentionState:
    """Keys and values of one layer, [context, kv_heads, head_dim] each."""

    keys: Array
    values: Array


@dataclass
class DeltaState:
    """conv [channels, window - 1], the raw inputs of the last tokens; rule
    [value_heads, key_dim, value_dim]."""

    conv: Array
    rule: Array


@dataclass
class State:
    """What one sequence has to remember; ``length`` tokens are in it."""

    layers: list[AttentionState | DeltaState]
    length: int = 0

    def arrays(self, length: int) -> list[Array]:
        """What describes the first ``length`` tokens, if no more have been processed: per
        layer the keys and values of these tokens, or the delta rule's two arrays. Views."""
        found = []
        for layer in self.layers:
            if isinstance(layer, DeltaState):
                found += [layer.conv, layer.rule]
            else:
                found += [layer.keys[:length], layer.values[:length]]
        return found

    def marks(self) -> dict[int, tuple[Array, ...]]:
        """Copies, by layer, of what cannot be told from a later state."""
        layers = enumerate(self.layers)
        return {
            number: (layer.conv.copy(), layer.rule.copy())
            for number, layer in layers
            if isinstance(layer, DeltaState)
        }

    def copy(
        self, length: int, marked: Mapping[int, tuple[Array, ...]] | None = None
    ) -> list[Array]:
        """Copies of :meth:`arrays`.

        Args:
            marked: if more tokens have been processed since, layer -> the arrays that have
                been copied at ``length``; see :class:`headgate.models.Part`.
        """
        arrays = self.arrays(length)
        for layer in range(len(self.layers)):
            pair = arrays[2 * layer : 2 * layer + 2]
            if marked is None or layer not in marked:
                arrays[2 * layer : 2 * layer + 2] = [array.copy() for array in pair]
            else:
                arrays[2 * layer : 2 * layer + 2] = marked[layer]
        return arrays

    def clear(self) -> None:
        """Make this the state of an empty sequence. Keys and values stay where they are:
        only those below ``length`` are ever read."""
        self.length = 0
        for layer in self.layers:
            if isinstance(layer, DeltaState):
                layer.conv[:] = 0
                layer.rule[:] = 0
