"""The states of sequences, used again when a sequence has ended."""

from __future__ import annotations

from collections.abc import Callable

from headgate.models import State


class StatePool:
    """States that nobody uses wait here for the next sequence.

    What a long sequence has written stays resident, so a state is used again rather than
    returned to the system; the budget has room for ``keep`` of them. Any thread may give
    one back.

    Args:
        make: an empty state.
        keep: states that may wait.
    """

    def __init__(self, make: Callable[[], State], keep: int) -> None:
        self._make, self._keep = make, keep
        self._free: list[State] = []

    def __len__(self) -> int:
        return len(self._free)

    def take(self) -> State:
        """The state of an empty sequence."""
        try:
            state = self._free.pop()
        except IndexError:
            return self._make()
        state.clear()
        return state

    def give_back(self, state: State) -> None:
        """Nobody uses ``state`` any more."""
        if len(self._free) < self._keep:
            self._free.append(state)
