"""The weights in a store, in float32, read without the engine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from headgate.quant import AffineMatrix, Planes, dequantize, planes_of, unpack
from headgate.quant.halves import to_float
from headgate.store import MATRICES, Store
from headgate.store.record import read_record

Floats = npt.NDArray[np.float32]


def expert_weights(store: Store, bits: int | None = None) -> dict[str, Floats]:
    """``layers.N.mlp.experts.E.M_proj.weight`` -> float32, read at ``bits`` bits."""
    return dict(_experts(store, bits or store.manifest.experts.bits))


def _experts(store: Store, bits: int) -> Iterator[tuple[str, Floats]]:
    nbytes = store.layout.prefix_bytes(bits)
    for layer in store.manifest.layers:
        data = np.fromfile(store.expert_path(layer), np.uint8)
        for number, record in enumerate(data.reshape(-1, store.layout.stride)):
            expert = read_record(store.layout, record[:nbytes], bits)
            for matrix in MATRICES:
                found = expert[matrix]
                name = f"layers.{layer}.mlp.experts.{number}.{matrix}_proj.weight"
                if isinstance(found, AffineMatrix):
                    yield name, dequantize(found, bits)
                else:
                    yield name, to_float(found, store.manifest.experts.half)


def dense_weights(store: Store) -> dict[str, Floats]:
    """Dense tensor -> float32."""
    arrays = store.load_dense()
    coded = store.manifest.dense_matrices
    header = store.dense_header().tensors
    out = {name: dequantize(dense_matrix(store, arrays, name)) for name in coded}
    pieces = {f"{name}.{piece}" for name in coded for piece in _pieces(coded[name].bits)}
    for name, array in arrays.items():
        if name not in pieces:
            half = "bf16" if header[name].dtype == "BF16" else "f16"
            out[name] = array if header[name].dtype == "F32" else to_float(array, half)  # type: ignore[arg-type]
    return out


def dense_matrix(store: Store, arrays: dict[str, npt.NDArray[Any]], name: str) -> AffineMatrix:
    """A quantised dense matrix, as it was before it was packed."""
    entry = store.manifest.dense_matrices[name]
    planes = cast(Planes, {plane: arrays[f"{name}.{plane}"] for plane in planes_of(entry.bits)})
    return AffineMatrix(
        unpack(planes, entry.bits),
        arrays[f"{name}.scales"],
        arrays[f"{name}.biases"],
        entry.shape[1],
        entry.bits,
        entry.group_size,
        entry.half,
    )


def _pieces(bits: int) -> tuple[str, ...]:
    return (*planes_of(bits), "scales", "biases")


def digests(folder: Path) -> dict[str, str]:
    """Every file below ``folder`` -> SHA-256 of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
