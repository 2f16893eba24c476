"""What is in a store, and what a token costs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from headgate.models import parse_config
from headgate.quant import PLANES
from headgate.store import Store
from headgate.store.manifest import VERSION
from headgate.store.reader import DENSE_FILE, MANIFEST_FILE

#: Experts per token to tabulate, besides what the model was trained with.
FEWER = (2, 4, 6)


def describe(store: Store) -> dict[str, Any]:
    """Shapes, precisions and sizes as plain data; sizes in bytes.

    ``bytes_per_token`` is bits -> experts per token -> bytes of all experts that the
    router asks for, before any cache.
    """
    manifest, layout = store.manifest, store.layout
    config = parse_config({**manifest.config, "model_type": manifest.model_type})
    trained = config.num_experts_per_tok
    counts = sorted({k for k in FEWER if k < trained} | {trained})
    layers = len(manifest.layers)
    experts = layers * manifest.expert_file_bytes
    files = {name: entry.nbytes for name, entry in manifest.files.items()}
    files[MANIFEST_FILE] = (store.path / MANIFEST_FILE).stat().st_size
    dense_file = (store.path / DENSE_FILE).stat().st_size
    return {
        "store": str(store.path),
        "format_version": VERSION,
        "model_type": manifest.model_type,
        "source": manifest.provenance.get("source"),
        "layers": config.num_hidden_layers,
        "moe_layers": layers,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "experts": {
            "per_layer": manifest.num_experts,
            "per_token": trained,
            "intermediate_size": config.moe_intermediate_size,
            "bits": manifest.experts.bits,
            "group_size": manifest.experts.group_size,
            "half": manifest.experts.half,
            "parameters": manifest.experts.parameters * manifest.num_experts * layers,
            "record_bytes": layout.stride,
            "bytes": experts,
            "segments": [dataclasses.asdict(segment) for segment in layout.segments],
        },
        "dense": _dense(store),
        "files": files,
        "bytes": experts + dense_file + sum(files.values()),
        "bytes_per_token": {
            str(bits): {str(k): layers * k * layout.prefix_bytes(bits) for k in counts}
            for bits in manifest.experts.readable_bits
        },
    }


def _dense(store: Store) -> dict[str, dict[str, Any]]:
    """Role -> number of tensors and weights, precisions, and bytes."""
    manifest = store.manifest
    config = parse_config({**manifest.config, "model_type": manifest.model_type})
    parts = store.dense_header().tensors
    roles: dict[str, dict[str, Any]] = {}
    for name, spec in config.dense_tensors().items():
        matrix = manifest.dense_matrices.get(name)
        if matrix is not None:
            kind = f"{matrix.bits} bits, groups of {matrix.group_size}"
        else:
            kind = parts[name].dtype if name in parts else "missing"
        role = roles.setdefault(
            spec.role, {"tensors": 0, "parameters": 0, "precisions": [], "bytes": 0}
        )
        role["tensors"] += 1
        role["parameters"] += math.prod(spec.shape)
        pieces = [name, *(f"{name}.{piece}" for piece in (*PLANES, "scales", "biases"))]
        role["bytes"] += sum(parts[piece].nbytes for piece in pieces if piece in parts)
        if kind not in role["precisions"]:
            role["precisions"].append(kind)
    return roles
