"""Texts of a model, made fit to be shown: what a terminal would obey becomes visible."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from typing import Any

#: Control characters to what is shown of them: the control pictures of Unicode.
_PICTURES: dict[int, str | None] = {
    **{code: chr(0x2400 + code) for code in range(32) if code not in (9, 10, 13)},
    **dict.fromkeys(range(0x80, 0xA0), "\N{REPLACEMENT CHARACTER}"),
    0x0D: None,
    0x7F: "\N{SYMBOL FOR DELETE}",
}

#: Categories of characters that can hide or reorder what stands around them.
_DECEPTIVE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def printable(text: str) -> str:
    """``text`` without characters that a terminal obeys, such as escape sequences."""
    return text.translate(_PICTURES)


def exact(value: Any) -> str:
    """A value as JSON in which every character can be seen: invisible ones and those that
    change the direction of text are escaped. For questions that a person answers by it."""
    return visible(json.dumps(value, ensure_ascii=False))


def visible(text: str) -> str:
    """``text`` with its invisible characters as ``\\uXXXX``."""
    return "".join(_escape(c) if unicodedata.category(c) in _DECEPTIVE else c for c in text)


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def call_text(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as it is shown and asked about, whole."""
    inside = ", ".join(f"{visible(key)}={exact(value)}" for key, value in arguments.items())
    return f"{visible(name)}({inside})"


def one_line(text: str, width: int = 200) -> str:
    """The beginning of a text on one line."""
    joined = " ".join(printable(text).split())
    return joined if len(joined) <= width else joined[: width - 3] + "..."
