"""``headgate inspect``: what is in a store, and what a token costs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from headgate.convert import describe
from headgate.engine.budget import format_size
from headgate.store import Store


def inspect(
    store: Annotated[Path, typer.Argument(help="A store made by `headgate convert`.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show shapes, precisions and sizes of STORE, and bytes read per token.

    The latter are those of all experts that the router asks for, before any
    cache.
    """
    found = describe(Store.open(store))
    print(json.dumps(found) if as_json else _text(found))


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
