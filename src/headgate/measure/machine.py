"""What a figure was measured on: processor, memory, drive, operating system."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

from headgate import _native
from headgate.engine.budget import available_bytes


def describe_machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in bytes, kernel."""
    return {
        "cpu": _cpu_name(),
        "cores": core_count(),
        "isa": _native.isa_names(),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "available_bytes": available_bytes(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }


def core_count() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def last_level_cache_bytes() -> int | None:
    """Size of the largest cache of the first core; None where it is not told."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        match = re.fullmatch(r"(\d+)([KMG])", _text(path))
        if match is not None:
            sizes.append(int(match[1]) << {"K": 10, "M": 20, "G": 30}[match[2]])
    return max(sizes, default=None)


def describe_drive(folder: Path) -> dict[str, Any]:
    """File system and device that hold ``folder``; what is not told is left out."""
    found: dict[str, Any] = {}
    device = folder.stat().st_dev
    mount = _mount(device)
    if mount is not None:
        found |= dict(zip(("file_system", "device", "options"), mount, strict=True))
    block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if (block / "partition").exists():
        block = block.resolve().parent
    if text := _text(block / "device/model"):
        found["model"] = text
    if match := re.search(r"\[(.+)\]", _text(block / "queue/scheduler")):
        found["scheduler"] = match[1]  # the one in use
    if text := _text(block / "queue/rotational"):
        found["rotational"] = text == "1"
    if text := _text(block / "size"):
        found["bytes"] = int(text) * 512
    return found


def _mount(device: int) -> tuple[str, str, str] | None:
    """(file system, device, options) of the mount of a device number."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in _text(Path("/proc/self/mountinfo")).splitlines():
        # id parent major:minor root mountpoint options [...] - type source superoptions
        left, _, right = line.partition(" - ")
        parts, rest = left.split(), right.split()
        if len(parts) > 5 and parts[2] == wanted and len(rest) >= 2:
            return rest[0], rest[1], parts[5]
    return None


def _cpu_name() -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    return match[1] if match else platform.processor() or platform.machine()


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
