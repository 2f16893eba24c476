"""Checkpoints that MLX has quantised: repacked bit for bit, never quantised again.

A quantised module ``M`` is ``M.weight`` uint32 [..., in * bits / 32], ``M.scales`` and
``M.biases`` [..., in / group]; a weight is code * scale + bias. Codes lie in a row as a
little-endian bit stream, the first one in the lowest bits; codes of 3, 5 and 6 bits
straddle words. ``config.json`` has under ``quantization`` the defaults and an entry
for each module that deviates (``mlx.core.quantize`` and ``mlx_lm`` define all this).

The store has no codes of 5 and 6 bits. They become 8-bit ones exactly: the code is
shifted left by k, the scale divided by 2**k.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headgate.convert.calibration import Calibration
from headgate.convert.checkpoint import Checkpoint, require_float
from headgate.convert.names import Names, Shape, check_shapes, dense_shape, expert_shapes
from headgate.convert.source import CodedTensor, ConvertOptions, PlainTensor, Tensors
from headgate.errors import CheckpointError
from headgate.models import ModelConfig, TensorSpec
from headgate.quant import AffineMatrix, Half, padded_columns
from headgate.quant.halves import from_float, to_float
from headgate.quant.planes import GROUP_SIZES, Codes
from headgate.store.layout import MATRICES, ExpertFormat
from headgate.store.manifest import DenseMatrix
from headgate.store.record import Expert

#: bits of the source -> bits of the store
STORED = {2: 2, 3: 3, 4: 4, 5: 8, 6: 8, 8: 8}
_HALVES: dict[str, Half] = {"BF16": "bf16", "F16": "f16"}
_MATRIX_ROLES = ("projection", "embedding", "router")


@dataclass(frozen=True)
class Packing:
    """How a module is quantised in the source."""

    bits: int
    group_size: int
    half: Half

    @property
    def shift(self) -> int:
        """Bits that the codes are shifted left by in the store."""
        return STORED[self.bits] - self.bits

    def __str__(self) -> str:
        return f"{self.bits} bits in groups of {self.group_size} ({self.half})"


class MlxSource:
    """A :class:`Source` that repacks."""

    def __init__(
        self, checkpoint: Checkpoint, names: Names, config: ModelConfig, options: ConvertOptions
    ) -> None:
        self._tensors = Tensors(checkpoint, names)
        self._settings = quantization_settings(checkpoint.config) or {}
        self._specs = config.dense_tensors()
        if names.layout != "stacked":
            raise CheckpointError("the checkpoint has MLX's settings but no switch_mlp tensors")
        experts = expert_shapes(names, config)
        dense = {name: dense_shape(spec, "stacked") for name, spec in self._specs.items()}
        matrices = [n for n, spec in self._specs.items() if spec.role in _MATRIX_ROLES]
        expected = {**dense, **experts}
        self._packed: dict[str, Packing] = {}
        found = {name: self._tensors.info(name).shape for name in names.actual}
        for name in [*matrices, *experts]:
            if name in found and _sibling(name, "scales") in found:
                self._packed[name] = self._packing(name, expected[name])
                found[name] = expected[name]  # _packing has compared the shapes
                for part in ("scales", "biases"):
                    found.pop(_sibling(name, part), None)
        check_shapes(found, expected)
        for name in found.keys() - self._packed.keys():
            require_float(names.actual[name], self._tensors.info(name).dtype)
        packing = self._one_packing(list(experts))
        self.kind = f"MLX affine, {packing}"
        self.notes: list[str] = []
        self.calibration: Calibration | None = None
        self.experts = ExpertFormat(
            config.hidden_size,
            config.moe_intermediate_size,
            STORED[packing.bits],
            packing.group_size,
            packing.half,
        )
        if packing.shift:
            self.notes.append(f"{packing.bits}-bit codes are stored as 8-bit ones, exactly")
        self.dense = {name: self._format(name, spec) for name, spec in self._specs.items()}
        self._refuse_other(options)

    def _packing(self, name: str, shape: Shape) -> Packing:
        """Bits and group size of module ``name`` from its shapes, compared with
        ``config.json``; ``shape`` is that of the unpacked matrix."""
        module = self._tensors.names.actual[name].removesuffix(".weight")
        bits, group_size = self._declared(module)
        weight = self._tensors.info(name)
        groups = (*shape[:-1], shape[-1] // group_size)
        if weight.dtype != "U32" or weight.shape != (*shape[:-1], shape[-1] * bits // 32):
            found_bits = 32 * weight.shape[-1] / shape[-1] if weight.shape else 0
            raise CheckpointError(
                f"tensor {module}.weight is {weight.dtype} {list(weight.shape)}, which is "
                f"{found_bits:g} bits a weight; config.json says {bits} bits for "
                f"{list(shape)} weights"
            )
        dtypes = set()
        for part in ("scales", "biases"):
            if _sibling(name, part) not in self._tensors.names.actual:
                raise CheckpointError(f"the checkpoint lacks tensor {module}.{part}")
            info = self._tensors.info(_sibling(name, part))
            dtypes.add(info.dtype)
            if info.shape != groups:
                raise CheckpointError(
                    f"tensor {module}.{part} has shape {list(info.shape)}, expected "
                    f"{list(groups)} for groups of {group_size} as config.json says"
                )
        if len(dtypes) > 1 or not dtypes <= set(_HALVES):
            raise CheckpointError(
                f"scales and biases of {module} are {', '.join(sorted(dtypes))}; "
                f"supported: both BF16 or both F16"
            )
        return Packing(bits, group_size, _HALVES[dtypes.pop()])

    def _declared(self, module: str) -> tuple[int, int]:
        entry = self._settings.get(module, True)
        if entry is True:
            entry = self._settings
        if not isinstance(entry, dict):
            raise CheckpointError(
                f"config.json says that {module} is not quantised, but it has scales"
            )
        mode = entry.get("mode", "affine")
        if mode != "affine":
            raise CheckpointError(
                f"MLX quantisation mode {mode!r} ({module}) is not supported yet; supported: affine"
            )
        bits, group_size = entry.get("bits"), entry.get("group_size")
        if type(bits) is not int or bits not in STORED:
            raise CheckpointError(
                f"config.json gives {module} {bits!r} bits; supported: "
                f"{', '.join(map(str, STORED))}"
            )
        if type(group_size) is not int or group_size not in GROUP_SIZES:
            raise CheckpointError(
                f"config.json gives {module} group size {group_size!r}; supported: "
                f"{', '.join(map(str, GROUP_SIZES))}"
            )
        return bits, group_size

    def _one_packing(self, experts: list[str]) -> Packing:
        kinds: dict[Packing | None, str] = {}
        for name in experts:
            kinds.setdefault(self._packed.get(name), name.removesuffix(".weight"))
        if len(kinds) > 1:
            text = ", ".join(f"{n} has {p or 'no quantisation'}" for p, n in kinds.items())
            raise CheckpointError(f"all experts must be quantised alike, but {text}")
        packing = next(iter(kinds))
        if packing is None:
            raise CheckpointError(
                "the experts are not quantised while other modules are; convert the "
                "unquantised checkpoint instead"
            )
        return packing

    def _format(self, name: str, spec: TensorSpec) -> PlainTensor | CodedTensor:
        packing = self._packed.get(name)
        if packing is None:
            return self._tensors.plain_format(name, spec)
        rows, columns = spec.shape
        return CodedTensor(
            DenseMatrix((rows, columns), STORED[packing.bits], packing.group_size, packing.half)
        )

    def _refuse_other(self, options: ConvertOptions) -> None:
        dense = {
            kept.entry.bits if isinstance(kept, CodedTensor) else 16
            for name, kept in self.dense.items()
            if self._specs[name].role == "projection"
        }
        for what, asked, has in (
            ("expert bits", options.expert_bits, {self.experts.bits}),
            ("group size", options.group_size, {self.experts.group_size}),
            ("dense bits", options.dense_bits, dense),
        ):
            if asked is not None and {asked} != has:
                raise CheckpointError(
                    f"{what} {asked} cannot be had from this checkpoint: it is already "
                    f"quantised ({', '.join(map(str, sorted(has)))}) and repacked as it is"
                )

    def expert(self, layer: int, expert: int) -> Expert:
        """See :meth:`Source.expert`."""
        where = f"layer {layer}, expert {expert}: "
        block = f"layers.{layer}.mlp.switch_mlp"
        return {m: self._matrix(f"{block}.{m}_proj.weight", expert, 1, where) for m in MATRICES}

    def dense_rows(self, name: str, start: int, rows: int) -> AffineMatrix | npt.NDArray[Any]:
        """See :meth:`Source.dense_rows`."""
        if name in self._packed:
            return self._matrix(name, start, rows)
        return self._tensors.plain_rows(name, self._specs[name], start, rows)

    def _matrix(self, name: str, start: int, rows: int, where: str = "") -> AffineMatrix:
        """Rows of the first axis of a module; an expert of stacked ones is one row."""
        packing = self._packed[name]
        words, scales, biases = (
            self._flat(self._tensors.raw(n, start, rows, where))
            for n in (name, _sibling(name, "scales"), _sibling(name, "biases"))
        )
        codes = unpack_codes(words, packing.bits) << np.uint8(packing.shift)
        columns = codes.shape[1]
        padded = padded_columns(columns, packing.group_size)
        extra = (padded - columns) // packing.group_size
        return AffineMatrix(
            np.pad(codes, ((0, 0), (0, padded - columns))),
            np.pad(_divided(scales, packing, where + name), ((0, 0), (0, extra))),
            np.pad(biases, ((0, 0), (0, extra))),
            columns,
            STORED[packing.bits],
            packing.group_size,
            packing.half,
        )

    @staticmethod
    def _flat(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return values.reshape(-1, values.shape[-1])


def quantization_settings(config: dict[str, Any]) -> dict[str, Any] | None:
    """The MLX quantisation settings of a ``config.json``, if it has any.

    Raises:
        CheckpointError: the checkpoint is quantised in another way; names it.
    """
    found = config.get("quantization") or config.get("quantization_config")
    if found is None:
        return None
    if not isinstance(found, dict):
        raise CheckpointError("config field quantization is not an object")
    method = found.get("quant_method")
    if method is not None:
        raise CheckpointError(
            f"quantisation {method!r} is not supported yet; supported: unquantised "
            "BF16, F16 or F32, and MLX affine"
        )
    return found


def unpack_codes(words: npt.NDArray[np.uint32], bits: int) -> Codes:
    """uint32 [rows, words] of a bit stream to codes uint8 [rows, words * 32 / bits]."""
    data = np.ascontiguousarray(words).view(np.uint8)
    rows = len(data)
    if bits == 8:
        return data.reshape(rows, -1)
    if bits in (2, 4):
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        return ((data[:, :, None] >> shifts) & np.uint8(2**bits - 1)).reshape(rows, -1)
    stream = np.unpackbits(data, axis=1, bitorder="little").reshape(rows, -1, bits)
    codes = stream[:, :, 0].copy()
    for bit in range(1, bits):
        codes |= stream[:, :, bit] << np.uint8(bit)
    return codes


def _divided(scales: npt.NDArray[np.uint16], packing: Packing, what: str) -> npt.NDArray[np.uint16]:
    if not packing.shift:
        return scales
    exact = to_float(scales, packing.half) / np.float32(2**packing.shift)
    divided = from_float(exact, packing.half)
    if not np.array_equal(to_float(divided, packing.half), exact):
        raise CheckpointError(
            f"{what} has scales too small to express its {packing.bits}-bit codes in 8 bits"
        )
    return divided


def _sibling(weight: str, part: str) -> str:
    return weight.removesuffix("weight") + part
