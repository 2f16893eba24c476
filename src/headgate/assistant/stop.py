"""Texts that end an answer."""

from __future__ import annotations

from collections.abc import Iterable


class StopStrings:
    """Cuts a text that arrives in pieces at the first stop string.

    What may be the beginning of a stop string is held back, so that no part of one is
    ever passed on. The first is the one that is complete first, however the text is
    cut into pieces.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """The part of the text so far that can be passed on; nothing after a stop."""
        if self.found is not None:
            return ""
        text = self._held + text
        ends = []
        for stop in self._stops:
            at = text.find(stop)
            if at >= 0:
                ends.append((at + len(stop), at, stop))
        if ends:
            _, at, self.found = min(ends)
            self._held = ""
            return text[:at]
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
