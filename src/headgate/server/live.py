"""``GET /live``: once a second, what the engine is doing. For the page."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from headgate.assistant import Assistant
from headgate.engine.budget import resident_bytes
from headgate.server.sse import data

PERIOD_S = 1.0


class LiveFeed:
    """The messages that one reader of ``/live`` gets.

    ``tokens_per_s`` and ``hit_rate`` are of the time since the message before (null if
    nothing was generated or routed); ``bytes_read`` counts from the start of the server.
    ``heat`` has one bit per expert, row by row, least significant bit first, in base64:
    ``resident`` ones are in memory, ``read`` ones have come in since the message before.
    """

    def __init__(self, assistant: Assistant) -> None:
        self._assistant = assistant
        self._then = time.monotonic()
        self._state, self._generated = assistant.scheduler.state(), assistant.generated
        self._resident = assistant.scheduler.resident()

    def message(self) -> dict[str, Any]:
        """The next message."""
        now, state = time.monotonic(), self._assistant.scheduler.state()
        generated = self._assistant.generated
        resident = self._assistant.scheduler.resident()
        tokens = generated - self._generated
        hits = state["hits"] - self._state["hits"]
        used = hits + state["misses"] - self._state["misses"]
        message = {
            "model": self._assistant.name,
            "lossy": self._assistant.engine.lossy,
            "tokens_per_s": tokens / (now - self._then) if tokens else None,
            "hit_rate": hits / used if used else None,
            "bytes_read": state["bytes_read"],
            "active": state["active"],
            "queued": state["queued"],
            "memory_bytes": resident_bytes(),
            "heat": {
                "layers": resident.shape[0],
                "experts": resident.shape[1],
                "resident": _bitmap(resident),
                "read": _bitmap(resident & ~self._resident),
            },
        }
        self._then, self._state, self._resident = now, state, resident
        self._generated = generated
        return message


def _bitmap(bits: npt.NDArray[np.bool_]) -> str:
    packed = np.packbits(bits.ravel(), bitorder="little")
    return base64.b64encode(packed.tobytes()).decode("ascii")


async def live_events(
    assistant: Assistant, stopping: Callable[[], bool]
) -> AsyncGenerator[bytes, None]:
    """Messages as server-sent events until the server stops."""
    feed = LiveFeed(assistant)
    while not stopping():
        yield data(feed.message())
        await asyncio.sleep(PERIOD_S)
