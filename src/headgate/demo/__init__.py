"""The embedded demo: a small trained Qwen3.5-MoE that answers and calls tools.

Its checkpoint travels with the package and is converted to a store in the user's
cache directory when it is first needed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from headgate.convert import ConvertOptions, convert
from headgate.paths import cache_folder

CHECKPOINT = Path(__file__).parent / "checkpoint"

#: Exact: the checkpoint's own bfloat16 weights.
OPTIONS = ConvertOptions(expert_bits=16, dense_bits=16)


def demo_store() -> Path:
    """The demo's store, converted now if it is not in the cache yet.

    The name carries a digest of the checkpoint's index, so that another version of
    the package gets a store of its own.
    """
    digest = hashlib.sha256()
    for file in sorted(CHECKPOINT.glob("*.json")) + sorted(CHECKPOINT.glob("*.safetensors")):
        digest.update(f"{file.name} {file.stat().st_size}".encode())
        with file.open("rb") as data:
            digest.update(data.read(1 << 16))
    store = cache_folder() / f"demo-{digest.hexdigest()[:12]}.headgate"
    if not store.exists():
        store.parent.mkdir(parents=True, exist_ok=True)
        convert(CHECKPOINT, store, OPTIONS)
    return store
