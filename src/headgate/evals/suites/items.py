"""Prompts of a suite, read from JSON lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headgate.errors import UsageError

DATA = Path(__file__).parent / "data"
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Item:
    """One prompt.

    Attributes:
        id: its name, unique in the file.
        kind: results are given for each kind.
        data: the whole object; ``messages``, perhaps ``tools`` and ``thinking``, and
            what the suite compares the answer with.
    """

    id: str
    kind: str
    data: dict[str, Any]

    @property
    def messages(self) -> list[dict[str, Any]]:
        return list(self.data["messages"])

    @property
    def tools(self) -> list[dict[str, Any]]:
        return list(self.data.get("tools", []))

    @property
    def thinking(self) -> bool:
        return bool(self.data.get("thinking", False))


def suite_file(name: str) -> Path:
    """The suite's own prompts."""
    return DATA / f"{name}.jsonl"


def load_items(path: Path, check: Callable[[Item], None] = lambda _: None) -> list[Item]:
    """All items of a file.

    Args:
        check: raises ValueError unless an item has what its suite needs.

    Raises:
        UsageError: the file cannot be read, or a line is broken; says which.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UsageError(f"cannot read suite {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"suite {path} is not UTF-8 text") from None
    items: dict[str, Item] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            item = _item(line)
            check(item)
            if item.id in items:
                raise ValueError(f"the id {item.id!r} occurs before")
        except (KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"suite {path}, line {number}: no usable {error}") from None
        except (ValueError, RecursionError) as error:
            raise UsageError(f"suite {path}, line {number}: {error}") from None
        items[item.id] = item
    if not items:
        raise UsageError(f"suite {path} holds no prompts")
    return list(items.values())


def _item(line: str) -> Item:
    try:
        raw = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ValueError("not a JSON object")
    for name in ("id", "kind"):
        if not isinstance(raw.get(name), str):
            raise ValueError(f"no {name}")
    messages = raw.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError("no messages")
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise ValueError(f"a message without one of the roles {', '.join(ROLES)}")
    return Item(raw["id"], raw["kind"], raw)


def some(items: Sequence[Item], limit: int | None) -> list[Item]:
    """The first ``limit`` of each kind, in order; all if it is None."""
    counts: Counter[str] = Counter()
    found = []
    for item in items:
        counts[item.kind] += 1
        if limit is None or counts[item.kind] <= limit:
            found.append(item)
    return found
