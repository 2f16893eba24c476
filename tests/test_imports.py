"""The import directions that docs/architecture.md promises."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import headgate

ROOT = Path(headgate.__file__).parent

#: room -> the rooms that it may import from; everyone may import errors and _native
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "paths": set(),
    "quant": set(),
    "store": {"quant"},
    "ops": {"store", "quant"},
    "models": {"ops"},
    "stream": {"ops", "store"},
    "chat": set(),
    "engine": {"chat", "stream", "models", "ops", "store", "paths"},
    "convert": {"models", "store", "quant"},
    "assistant": {"chat", "engine", "store"},
    "server": {"assistant", "chat", "engine", "store"},
    "terminal": {"assistant", "chat", "engine", "store", "paths"},
    "demo": {"convert", "paths"},
    "measure": {"engine", "stream", "models", "ops", "store", "quant", "convert", "paths"},
    "plan": {"measure", "engine", "stream", "models", "ops", "store", "convert", "paths"},
    "evals": {
        "assistant",
        "chat",
        "engine",
        "measure",
        "stream",
        "models",
        "ops",
        "store",
        "paths",
    },
    "lab": {"evals", "measure", "engine", "stream", "store", "paths"},
    "cli": {
        "assistant",
        "chat",
        "convert",
        "demo",
        "engine",
        "evals",
        "lab",
        "measure",
        "plan",
        "server",
        "store",
        "paths",
        "stream",
        "terminal",
    },
}


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module]
            if node.module == "headgate":
                names = [f"headgate.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert not (isinstance(node, ast.ImportFrom) and node.level), "relative import"
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("headgate.")}
    return rooms


def room_files() -> list[tuple[str, Path]]:
    files = []
    for path in sorted(ROOT.rglob("*.py")):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room not in ("__init__", "__main__"):
            files.append((room, path))
    return files


@pytest.mark.parametrize(("room", "path"), room_files(), ids=lambda x: getattr(x, "stem", x))
def test_imports_point_one_way(room: str, path: Path) -> None:
    allowed = ALLOWED[room] | {room, "errors", "_native"}
    assert imported_rooms(path) <= allowed


def test_native_core_includes_no_python_and_its_rooms_stay_apart() -> None:
    native = ROOT.parent.parent / "native"
    for room, forbidden in {
        "io": ("kernels/", "bindings/", "nanobind", "Python.h"),
        "kernels": ("io/", "bindings/", "nanobind", "Python.h"),
    }.items():
        files = [p for p in (native / room).iterdir() if p.suffix in (".h", ".cpp", ".inl")]
        assert files
        for path in files:
            includes = [x for x in path.read_text().splitlines() if x.startswith("#include")]
            for line in includes:
                assert not any(f'"{x}' in line or f"<{x}" in line for x in forbidden), (path, line)
