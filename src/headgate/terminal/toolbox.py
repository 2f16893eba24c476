"""Everything that the model may call here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headgate.chat import Tool, load_tools
from headgate.errors import UsageError
from headgate.terminal.functions import load_functions

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


@dataclass(frozen=True)
class LocalTool:
    """A function.

    Attributes:
        declaration: in OpenAI's form.
        source: where it comes from, for the user.
        run: calls it; what it raises is told to the model. None: the user types results.
    """

    declaration: Tool
    source: str
    run: Callable[[dict[str, Any]], str] | None = None

    @property
    def name(self) -> str:
        return str(self.declaration["function"]["name"])

    @property
    def description(self) -> str:
        return str(self.declaration["function"].get("description") or "")


class Toolbox:
    """Functions by name, and which of them run without a question.

    Raises:
        UsageError: two have the same name, or a name cannot be used.
    """

    def __init__(self, tools: Iterable[LocalTool] = ()) -> None:
        self._tools: dict[str, LocalTool] = {}
        self._allowed: set[str] = set()
        for tool in tools:
            self.add(tool)

    def add(self, tool: LocalTool) -> None:
        """Offer another function."""
        if not _NAME.fullmatch(tool.name):
            raise UsageError(f"{tool.source}: {tool.name!r} cannot be the name of a function")
        other = self._tools.get(tool.name)
        if other is not None:
            raise UsageError(
                f"{tool.source} and {other.source} both have a function named {tool.name}"
            )
        self._tools[tool.name] = tool

    def get(self, name: str) -> LocalTool | None:
        return self._tools.get(name)

    def allow(self, name: str) -> None:
        """Run a function without a question from now on.

        Raises:
            UsageError: there is no such function, or it is not one that can run.
        """
        tool = self._tools.get(name)
        if tool is None or tool.run is None:
            raise UsageError(f"there is no function named {name} that could run")
        self._allowed.add(name)

    def allowed(self, name: str) -> bool:
        return name in self._allowed

    @property
    def tools(self) -> list[LocalTool]:
        return list(self._tools.values())

    @property
    def declarations(self) -> list[Tool]:
        return [tool.declaration for tool in self._tools.values()]


def load_toolbox(files: Sequence[Path]) -> Toolbox:
    """The tools of Python files (which are executed) and of JSON files (declarations only).

    Raises:
        UsageError: says what is wrong with a file.
    """
    box = Toolbox()
    for path in files:
        if path.suffix == ".py":
            for declaration, run in load_functions(path):
                box.add(LocalTool(declaration, str(path), run))
        else:
            for declaration in load_tools(path):
                box.add(LocalTool(declaration, str(path)))
    return box
