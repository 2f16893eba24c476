"""Calibration: a file of what the routed experts' inputs look like.

A safetensors file, written by ``headgate calibrate``. For each layer N with E experts of
hidden size H and intermediate size I, all float32 but the counts:

==========================  ==========================================================
``layers.N.experts.tokens``  int32 [E]: inputs that each expert was given
``layers.N.experts.inputs``  mean of x x^T over inputs of gate and up: [E, H, H] for each
                             expert, [H, H] for the layer, or [H], its diagonal
``layers.N.experts.hidden``  the same of down's inputs: [E, I, I], or [E, I]
==========================  ==========================================================

Experts with few inputs borrow from their layer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headgate._native import crc32c
from headgate.errors import ResourceError, UsageError
from headgate.models import ModelConfig
from headgate.quant import Moments
from headgate.store import safetensors

Floats = npt.NDArray[np.float32]
#: What a layer's mean counts beside an expert's own inputs.
PRIOR_TOKENS = 64
_PIECE = 16 << 20


@dataclass
class LayerMoments:
    """Second moments of one layer, as in the file."""

    tokens: npt.NDArray[np.int32]
    inputs: Floats
    hidden: Floats

    def inputs_of(self, expert: int) -> Floats:
        """Of the inputs of gate and up: [H, H], or [H]."""
        if self.inputs.ndim < 3:
            return self.inputs
        n = self.tokens.astype(np.float32)
        mean = np.tensordot(n, self.inputs, 1) / max(float(n.sum()), 1.0)
        return self._mixed(self.inputs[expert], mean, expert)

    def hidden_of(self, expert: int) -> Floats:
        """Of the inputs of down: [I, I], or [I]."""
        own = self.hidden[expert]
        full = own.ndim == 2
        diagonals = np.einsum("eii->ei", self.hidden) if full else self.hidden
        # Experts' intermediate units have nothing in common but their size.
        n = self.tokens.astype(np.float32)
        size = float(n @ diagonals.mean(1)) / max(float(n.sum()), 1.0)
        mean = np.full(own.shape[0], size, np.float32)
        return self._mixed(own, np.diag(mean) if full else mean, expert)

    def _mixed(self, own: Floats, mean: Floats, expert: int) -> Floats:
        n = int(self.tokens[expert])
        share = np.float32(n / (n + PRIOR_TOKENS))
        return own * share + mean * (1 - share)


@dataclass
class Calibration:
    """A calibration file that fits a model.

    Attributes:
        crc32c: of the whole file; part of what determines a store.
        group_size: of the experts' format.
    """

    path: Path
    crc32c: int
    group_size: int
    _header: safetensors.Header
    _experts_per_token: int
    _layers: dict[int, LayerMoments] = field(default_factory=dict)
    _shared: dict[int, Moments] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, config: ModelConfig, group_size: int) -> Calibration:
        """Check that ``path`` has every layer of the model.

        Raises:
            UsageError: it cannot be read, is not a calibration, or is of another model.
        """
        try:
            header = safetensors.read_header(path)
            with path.open("rb") as file:
                total = 0
                while piece := file.read(_PIECE):
                    total = crc32c(np.frombuffer(piece, np.uint8), total)
        except safetensors.HeaderError as error:
            raise UsageError(f"{path} is no calibration: {error}") from None
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from None
        e, h, i = config.num_experts, config.hidden_size, config.moe_intermediate_size
        allowed: dict[str, tuple[str, list[tuple[int, ...]]]] = {
            "tokens": ("I32", [(e,)]),
            "inputs": ("F32", [(e, h, h), (h, h), (h,)]),
            "hidden": ("F32", [(e, i, i), (e, i)]),
        }
        for layer in config.moe_layers:
            for part, (dtype, shapes) in allowed.items():
                info = header.tensors.get(f"layers.{layer}.experts.{part}")
                if info is None:
                    raise UsageError(f"calibration {path} has no {part} of layer {layer}")
                if info.dtype != dtype or info.shape not in shapes:
                    raise UsageError(
                        f"calibration {path} is of another model: {part} of layer {layer} are "
                        f"{info.dtype} {list(info.shape)}"
                    )
        return cls(path, total, group_size, header, config.num_experts_per_tok)

    def tokens(self, layer: int) -> int:
        """Tokens that ``layer`` saw."""
        return int(self._read(layer).tokens.sum()) // self._experts_per_token

    def moments(self, layer: int, expert: int) -> tuple[Moments, Moments]:
        """Of the inputs of gate and up, and of those of down."""
        found = self._read(layer)
        hidden = Moments.prepare(found.hidden_of(expert), self.group_size)
        if found.inputs.ndim == 3:
            return Moments.prepare(found.inputs_of(expert), self.group_size), hidden
        if layer not in self._shared:
            self._shared = {layer: Moments.prepare(found.inputs, self.group_size)}
        return self._shared[layer], hidden

    def _read(self, layer: int) -> LayerMoments:
        if layer not in self._layers:
            parts = {p: self._tensor(f"layers.{layer}.experts.{p}") for p in _PARTS}
            if any(not np.isfinite(x).all() for x in parts.values()) or parts["tokens"].min() < 0:
                raise UsageError(f"calibration {self.path}: layer {layer} holds bad values")
            self._layers = {layer: LayerMoments(**parts)}  # one layer is in memory at a time
        return self._layers[layer]

    def _tensor(self, name: str) -> npt.NDArray[Any]:
        info = self._header.tensors[name]
        dtype = safetensors.STORAGE[info.dtype]
        count = info.nbytes // np.dtype(dtype).itemsize
        offset = self._header.data_start + info.start
        try:
            found = np.fromfile(self.path, dtype, count, offset=offset)
        except OSError as error:
            raise UsageError(f"cannot read {self.path}: {error.strerror}") from None
        if found.size != count:
            raise UsageError(f"{self.path} has become shorter")
        return found.reshape(info.shape)


_PARTS = ("tokens", "inputs", "hidden")


def write_calibration(path: Path, layers: Mapping[int, LayerMoments]) -> None:
    """Write a calibration file; it is complete once it has its name.

    Raises:
        ResourceError: it cannot be written.
    """
    tensors: dict[str, npt.NDArray[Any]] = {
        f"layers.{layer}.experts.{part}": getattr(moments, part)
        for layer, moments in layers.items()
        for part in _PARTS
    }
    kinds = {
        name: ("I32" if x.dtype == np.int32 else "F32", x.shape) for name, x in tensors.items()
    }
    head, _ = safetensors.build_header(kinds)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(head)
            for name, x in tensors.items():
                dtype = "<i4" if kinds[name][0] == "I32" else "<f4"
                np.ascontiguousarray(x, dtype).tofile(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise ResourceError(f"cannot write {partial}: {error.strerror}") from None
