"""What the kernel's control groups leave this process of the machine's memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def allowance_bytes(root: Path = ROOT, membership: Path = MEMBERSHIP) -> int | None:
    """The least that is left in this process's memory control group and those around it;
    None if none of them has a limit.

    Page cache that is not in active use gives way and counts as left.
    """
    left = [_left(group, names) for group, names in _groups(root, membership)]
    found = [nbytes for nbytes in left if nbytes is not None]
    return min(found) if found else None


def _groups(root: Path, membership: Path) -> Iterator[tuple[Path, tuple[str, str]]]:
    """Control groups from the innermost out, and their files of limit and usage."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:  # version 2
            top, names = root, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            top, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        # In a container the path may be that of the world outside; what is mounted is then
        # the group itself.
        inner = top / path.strip("/")
        group = inner if inner.is_dir() else top
        while True:
            yield group, names
            if group == top:
                break
            group = group.parent


def _left(group: Path, names: tuple[str, str]) -> int | None:
    try:
        limit, used = (int((group / name).read_text()) for name in names)
    except (OSError, ValueError):  # no such file, or "max"
        return None
    return max(0, limit - used + _idle_cache(group))


def _idle_cache(group: Path) -> int:
    try:
        lines = (group / "memory.stat").read_text().splitlines()
        stat = {key: int(value) for key, value in (line.split() for line in lines)}
    except (OSError, ValueError):
        return 0
    # Version 1 counts groups inside this one under "total_".
    return stat.get("total_inactive_file", stat.get("inactive_file", 0))
