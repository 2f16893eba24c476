"""The arguments of a call as JSON, written while their values arrive."""

from __future__ import annotations

from typing import Any

from headgate.chat.schema import dump, kinds, properties_of, typed


class Arguments:
    """Builds one call's arguments object, value by value.

    Every method returns the JSON text that can be given away at that point; together the
    pieces are the whole object. Strings are given away as they arrive, other types when
    their value is complete. One newline at either end of a value is layout.

    Args:
        parameters: the function's schema; None if it is not declared.

    Attributes:
        values: the complete arguments, by name.
    """

    def __init__(self, parameters: dict[str, Any] | None) -> None:
        self.values: dict[str, Any] = {}
        self._root = parameters or {}
        self._properties = None if parameters is None else properties_of(parameters)
        self._key = ""
        self._pieces: list[str] = []
        self._held = ""  # not given away: a newline that may be the last
        self._fresh = True
        self._streams = self._nullable = False

    def can_begin(self, key: str, declared: bool = False) -> bool:
        """Whether ``key`` may begin now: a name that has a value does not begin again.

        Args:
            declared: it must be among the function's parameters, if those are known.
        """
        if key in self.values or key == self._key:
            return False
        return not declared or self._properties is None or key in self._properties

    def begin(self, key: str) -> str:
        """A value begins."""
        opening = ", " if self.values else "{"
        found = kinds((self._properties or {}).get(key), self._root)
        self._key, self._pieces, self._held, self._fresh = key, [], "", True
        self._streams = found == frozenset(("string",))
        self._nullable = found == frozenset(("string", "null"))
        return f"{opening}{dump(key)}: " + ('"' if self._streams else "")

    def push(self, text: str) -> str:
        """More of the value's text."""
        text = self._held + text
        if self._fresh and text:
            text, self._fresh = text.removeprefix("\n"), False
        kept = text.removesuffix("\n")
        self._held = text[len(kept) :]
        self._pieces.append(kept)
        if self._streams:
            return dump(kept)[1:-1]
        if self._nullable:
            whole = "".join(self._pieces)
            if not "null".startswith(whole.lower()):
                self._streams, self._nullable = True, False
                return dump(whole)[:-1]
        return ""

    def end(self) -> str:
        """The value is complete."""
        text = "".join(self._pieces)
        key, self._key = self._key, ""
        if self._streams:
            self.values[key] = text
            return '"'
        value = typed(text, (self._properties or {}).get(key), self._root)
        self.values[key] = value
        return dump(value)

    def close(self) -> str:
        """There are no more values."""
        return "}" if self.values else "{}"
