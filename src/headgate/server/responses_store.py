"""Responses that later requests may continue, in memory under a limit."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from headgate.server.errors import ApiError
from headgate.server.sse import dump

#: Bytes of JSON, the whole conversation of every response counted.
LIMIT = 64 << 20


@dataclass(frozen=True)
class Stored:
    """A response and what led to it.

    Attributes:
        document: as it was sent.
        input: items of its own request.
        conversation: all items, those of earlier responses first, its output last.
        size: bytes.
    """

    document: dict[str, Any]
    input: list[dict[str, Any]]
    conversation: list[dict[str, Any]]
    size: int


class ResponseStore:
    """The least recently used responses are forgotten first."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit, self._size = limit, 0
        self._stored: OrderedDict[str, Stored] = OrderedDict()

    def put(
        self,
        document: dict[str, Any],
        own: list[dict[str, Any]],
        earlier: list[dict[str, Any]],
    ) -> None:
        """Keep a response.

        Args:
            own: items of its request.
            earlier: items of the conversation before it.
        """
        conversation = [*earlier, *own, *document["output"]]
        size = len(dump(document)) + len(dump(conversation))
        self._stored[document["id"]] = Stored(document, own, conversation, size)
        self._size += size
        while self._size > self._limit:
            _, oldest = self._stored.popitem(last=False)
            self._size -= oldest.size

    def get(self, response_id: str, param: str | None = None) -> Stored:
        """Raises:
        ApiError: 404, there is no such response, or not any more.
        """
        if response_id not in self._stored:
            raise ApiError(
                404,
                f"response {response_id[:100]!r} is not stored: it never was, or has made "
                "room for others",
                param,
                "response_not_found",
            )
        self._stored.move_to_end(response_id)
        return self._stored[response_id]

    def delete(self, response_id: str) -> None:
        """Raises:
        ApiError: 404, there is no such response.
        """
        self._size -= self.get(response_id).size
        del self._stored[response_id]

    def item(self, item_id: str) -> dict[str, Any]:
        """An item of some stored response.

        Raises:
            ApiError: 404, there is no such item.
        """
        for stored in reversed(self._stored.values()):
            for item in stored.conversation:
                if item.get("id") == item_id:
                    return item
        raise ApiError(404, f"item {item_id[:100]!r} is not stored", "input", "item_not_found")
