"""``headgate inspect``: what is in a store, and what a token costs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from headgate.engine.budget import format_size
from headgate.models import parse_config
from headgate.store import Store
from headgate.store.manifest import VERSION

#: Experts per token to tabulate, besides what the model was trained with.
FEWER = (2, 4, 6)


def inspect(
    store: Annotated[Path, typer.Argument(help="A store made by `headgate convert`.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show the shapes, precisions and sizes of STORE, and the bytes read per token.

    Bytes per token are those of all experts that the router asks for, before any cache.
    """
    found = describe(Store.open(store))
    print(json.dumps(found) if as_json else _text(found))


def describe(store: Store) -> dict[str, Any]:
    """What ``--json`` prints; sizes in bytes."""
    manifest, layout = store.manifest, store.layout
    config = parse_config({**manifest.config, "model_type": manifest.model_type})
    trained = config.num_experts_per_tok
    counts = sorted({k for k in FEWER if k < trained} | {trained})
    layers = len(manifest.layers)
    experts = layers * manifest.expert_file_bytes
    files = {name: entry.nbytes for name, entry in manifest.files.items()}
    dense_file = (store.path / "dense.safetensors").stat().st_size
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
        role["bytes"] += sum(parts[part].nbytes for part in (name, *_pieces(name)) if part in parts)
        if kind not in role["precisions"]:
            role["precisions"].append(kind)
    return roles


def _pieces(name: str) -> list[str]:
    return [f"{name}.{piece}" for piece in ("q2", "q3", "q4", "q8", "scales", "biases")]


def _text(found: dict[str, Any]) -> str:
    e = found["experts"]
    precision = f"{e['bits']} bits" + (f", groups of {e['group_size']}" if e["group_size"] else "")
    lines = [
        f"{found['store']}: {found['model_type']}, {format_size(found['bytes'])}"
        + (f", from {found['source']}" if found["source"] else ""),
        f"{found['layers']} layers, hidden size {found['hidden_size']}, "
        f"vocabulary {found['vocab_size']}",
        f"{e['per_layer']} experts in each of {found['moe_layers']} layers, "
        f"{e['per_token']} per token, intermediate size {e['intermediate_size']}",
        "",
        *_table(("part", "weights", "kept as", "size"), _parts(found, precision)),
        "",
        *_table(
            ("segment", "offset", "bytes", "expert readable at"),
            [
                (number, s["offset"], s["nbytes"], f"{s['bits']} bits")
                for number, s in enumerate(e["segments"])
            ],
        ),
        "",
    ]
    per_token = found["bytes_per_token"]
    counts = list(next(iter(per_token.values())))
    rows = [
        (f"{bits} bits", *(format_size(sizes[k]) for k in counts))
        for bits, sizes in per_token.items()
    ]
    lines += _table(("bytes per token", *(f"{k} experts" for k in counts)), rows)
    return "\n".join(lines)


def _parts(found: dict[str, Any], precision: str) -> list[tuple[object, ...]]:
    e = found["experts"]
    rows: list[tuple[object, ...]] = [
        ("experts", e["parameters"], precision, format_size(e["bytes"]))
    ]
    for role, part in found["dense"].items():
        kept = ", ".join(part["precisions"])
        rows.append((role, part["parameters"], kept, format_size(part["bytes"])))
    rows += [(name, "", "", format_size(size)) for name, size in found["files"].items()]
    return rows


def _table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> list[str]:
    """Columns as wide as their widest cell; the first one and words to the left."""
    cells = [[f"{x:,}" if isinstance(x, int) else str(x) for x in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells
    ]
