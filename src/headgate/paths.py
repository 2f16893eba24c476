"""Where headgate keeps what it can make again."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """The user's cache directory for headgate; it need not exist yet."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "headgate"
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "headgate"


def probe_file(path: Path) -> Path:
    """Where the probe of the drive that holds ``path`` is kept, whether or not there is
    one. Drives are told apart by their device number, which another boot may change.

    Raises:
        OSError: ``path`` does not exist.
    """
    device = path.stat().st_dev
    return cache_folder() / f"probe-{os.major(device)}-{os.minor(device)}.json"
