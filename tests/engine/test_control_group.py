"""The limits of control groups, from files as the kernel shows them."""

from __future__ import annotations

from pathlib import Path

from headgate.engine.control_group import allowance_bytes


def group(path: Path, limit: str, used: int, names: tuple[str, str]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / names[0]).write_text(f"{limit}\n")
    (path / names[1]).write_text(f"{used}\n")


V2 = ("memory.max", "memory.current")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def test_the_tightest_group_around_the_process_counts(tmp_path: Path) -> None:
    group(tmp_path / "a", "1000", 100, V2)
    group(tmp_path / "a" / "b", "max", 90, V2)
    (tmp_path / "own").write_text("0::/a/b\n")
    assert allowance_bytes(tmp_path, tmp_path / "own") == 900
    group(tmp_path / "a" / "b", "300", 90, V2)
    assert allowance_bytes(tmp_path, tmp_path / "own") == 210
    (tmp_path / "a" / "b" / "memory.stat").write_text("anon 50\ninactive_file 30\n")
    assert allowance_bytes(tmp_path, tmp_path / "own") == 240


def test_version_1_has_its_memory_controller_apart(tmp_path: Path) -> None:
    group(tmp_path / "memory" / "job", "5000", 1000, V1)
    group(tmp_path / "memory", "9223372036854771712", 7, V1)
    (tmp_path / "own").write_text("8:pids:/other\n6:cpu,memory:/job\n")
    assert allowance_bytes(tmp_path, tmp_path / "own") == 4000


def test_a_container_sees_its_group_as_the_root(tmp_path: Path) -> None:
    group(tmp_path, "700", 800, V2)
    (tmp_path / "own").write_text("0::/outside/only\n")
    assert allowance_bytes(tmp_path, tmp_path / "own") == 0  # more used than allowed


def test_no_limit_is_none(tmp_path: Path) -> None:
    group(tmp_path, "max", 800, V2)
    (tmp_path / "own").write_text("0::/\n")
    assert allowance_bytes(tmp_path, tmp_path / "own") is None
    assert allowance_bytes(tmp_path, tmp_path / "absent") is None
