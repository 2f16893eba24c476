"""Checkpoints of plain 16- and 32-bit floats: quantised here, or kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from headgate.convert.calibration import Calibration
from headgate.convert.checkpoint import Checkpoint, Raw, require_float, to_float32
from headgate.convert.names import Names, check_shapes, dense_shape, expert_shapes
from headgate.convert.source import (
    CodedTensor,
    ConvertOptions,
    PlainTensor,
    Tensors,
    require_finite,
)
from headgate.errors import CheckpointError, UsageError
from headgate.models import ModelConfig, TensorSpec
from headgate.quant import AffineMatrix, Half, Quantizer, quantize_calibrated
from headgate.quant.affine import Floats
from headgate.quant.halves import from_float
from headgate.store.layout import MATRICES, ExpertFormat, Matrix
from headgate.store.manifest import DenseMatrix
from headgate.store.record import Expert

#: Beyond this the squared errors that the quantiser compares overflow.
LARGEST_WEIGHT = 1e15


class FloatSource:
    """A :class:`Source` that quantises. The convention of norms and convolutions is
    that of the expert layout, see :mod:`headgate.convert.names`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        names: Names,
        config: ModelConfig,
        options: ConvertOptions,
        quantizer: Quantizer,
    ) -> None:
        self._tensors = Tensors(checkpoint, names)
        self._quantizer = quantizer
        self._layout = names.layout
        self._threads = options.thread_count
        self._specs = config.dense_tensors()
        experts = expert_shapes(names, config)
        dense = {n: dense_shape(spec, self._layout) for n, spec in self._specs.items()}
        for name, actual in names.actual.items():
            require_float(actual, self._tensors.info(name).dtype)
        found = {name: self._tensors.info(name).shape for name in names.actual}
        check_shapes(found, {**dense, **experts})
        dtypes = {self._tensors.info(name).dtype for name in experts}
        self.kind = "/".join(sorted(dtypes)).lower()
        self.notes: list[str] = []
        self.experts = self._expert_format(config, options, dtypes)
        self.calibration = self._open_calibration(config, options)
        group_size = options.group_size or 64
        eight = options.dense_bits != 16
        self.dense = {n: self._format(n, s, eight, group_size) for n, s in self._specs.items()}

    def _expert_format(
        self, config: ModelConfig, options: ConvertOptions, dtypes: set[str]
    ) -> ExpertFormat:
        bits, half, group_size = options.expert_bits or 4, "bf16", options.group_size or 64
        if bits == 16:
            group_size = 0
            half = "f16" if dtypes == {"F16"} else "bf16"
            if half == "bf16" and dtypes != {"BF16"}:
                self.notes.append(f"expert weights were rounded from {self.kind} to bf16")
        as_half: Half = "f16" if half == "f16" else "bf16"
        return ExpertFormat(
            config.hidden_size, config.moe_intermediate_size, bits, group_size, as_half
        )

    def _format(
        self, name: str, spec: TensorSpec, eight: bool, group_size: int
    ) -> PlainTensor | CodedTensor:
        if spec.role == "projection" and eight:
            rows, columns = spec.shape
            return CodedTensor(DenseMatrix((rows, columns), 8, group_size, "bf16"))
        return self._tensors.plain_format(name, spec)

    def _open_calibration(self, config: ModelConfig, options: ConvertOptions) -> Calibration | None:
        if options.calibration is None:
            return None
        if self.experts.bits == 16:
            raise UsageError("a calibration is of no use to experts of 16 bits")
        found = Calibration.open(options.calibration, config, self.experts.group_size)
        tokens = min(found.tokens(layer) for layer in config.moe_layers)
        self.notes.append(f"experts were quantised for inputs of {tokens} calibration tokens")
        return found

    def expert(self, layer: int, expert: int) -> Expert:
        """See :meth:`Source.expert`."""
        if self.calibration is not None:
            return self._calibrated(self.calibration, layer, expert)
        return {
            matrix: self._outcome(raw, self._tensors.info(name).dtype, f"{where}tensor {name}")
            for matrix, name, raw, where in self._matrices(layer, expert)
        }

    def _calibrated(self, calibration: Calibration, layer: int, expert: int) -> Expert:
        w: dict[Matrix, Floats] = {}
        for matrix, name, raw, where in self._matrices(layer, expert):
            w[matrix] = to_float32(raw, self._tensors.info(name).dtype)
            _require_moderate(w[matrix], f"{where}tensor {name}")
        inputs, hidden = calibration.moments(layer, expert)
        e, threads = self.experts, self._threads
        # Gate and up get the same inputs: they are the rows of one problem.
        both = np.concatenate([w["gate"], w["up"]])
        whole = quantize_calibrated(both, inputs, e.bits, e.group_size, threads=threads)
        gate, up = whole.split(len(w["gate"]))
        down = quantize_calibrated(w["down"], hidden, e.bits, e.group_size, threads=threads)
        return {"gate": gate, "up": up, "down": down}

    def _matrices(self, layer: int, expert: int) -> Iterator[tuple[Matrix, str, Raw, str]]:
        block = f"layers.{layer}.mlp"
        where = f"layer {layer}, expert {expert}: "
        if self._layout == "fused":
            name = f"{block}.experts.gate_up_proj"
            both = self._tensors.raw(name, expert, 1, where)[0]
            yield "gate", name, both[: len(both) // 2], where
            yield "up", name, both[len(both) // 2 :], where
            name = f"{block}.experts.down_proj"
            yield "down", name, self._tensors.raw(name, expert, 1, where)[0], where
            return
        for m in MATRICES:
            if self._layout == "stacked":
                name = f"{block}.switch_mlp.{m}_proj.weight"
                yield m, name, self._tensors.raw(name, expert, 1, where)[0], where
            else:
                name = f"{block}.experts.{expert}.{m}_proj.weight"
                yield m, name, self._tensors.raw(name, where=where), where

    def _outcome(self, raw: Raw, dtype: str, what: str) -> AffineMatrix | Raw:
        e = self.experts
        if e.bits != 16:
            return self._quantize(to_float32(raw, dtype), e.bits, e.group_size, what)
        if dtype == e.half.upper():
            return raw
        rounded = from_float(to_float32(raw, dtype), e.half)
        require_finite(rounded, e.half.upper(), f"rounded to {e.half}, {what}")
        return rounded

    def _quantize(
        self, weights: Floats, bits: int, group_size: int, what: str, nested: bool = True
    ) -> AffineMatrix:
        _require_moderate(weights, what)
        return self._quantizer.quantize(weights, bits, group_size, nested)

    def dense_rows(self, name: str, start: int, rows: int) -> AffineMatrix | npt.NDArray[Any]:
        """See :meth:`Source.dense_rows`."""
        kept, spec = self.dense[name], self._specs[name]
        if isinstance(kept, CodedTensor):
            weights = self._tensors.float_rows(name, start, rows)
            bits, group_size = kept.entry.bits, kept.entry.group_size
            return self._quantize(weights, bits, group_size, f"tensor {name}", nested=False)
        one = spec.zero_centred and self._layout != "stacked"
        return self._tensors.plain_rows(name, spec, start, rows, add=1.0 if one else 0.0)


def _require_moderate(weights: Floats, what: str) -> None:
    largest = float(max(weights.max(), -weights.min()))
    if largest > LARGEST_WEIGHT:
        raise CheckpointError(f"{what} holds a weight of {largest:.3g}, too large to quantise")
