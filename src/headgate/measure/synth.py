"""Stores of a real model's shape with random weights, for measuring without a download.

Codes are uniform, so a group's scale s and bias b give weights of mean zero and of
standard deviation ``s * sqrt((4**bits - 1) / 12)``; s is chosen so that this is
1 / sqrt(columns), which keeps activations of order one through any number of layers
(norms stand before every block). Routing is close to uniform then; see
:mod:`headgate.measure.routes` for routing like a trained model's.

Every piece of every record is a window at a random offset into one pool of random
bytes. That takes a copy where drawing afresh would take longer than the drive does.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headgate._native import AlignedBuffer
from headgate.convert.source import CodedTensor, ConvertOptions, PlainTensor
from headgate.errors import UsageError
from headgate.models import ModelConfig, TensorSpec, parse_config
from headgate.quant import padded_columns
from headgate.quant.halves import from_float, to_float
from headgate.store import ExpertFormat, Manifest, RecordLayout, StoreWriter, safetensors
from headgate.store.manifest import VERSION, DenseMatrix
from headgate.store.writer import check_free_space

Bytes = npt.NDArray[np.uint8]
Halves = npt.NDArray[np.uint16]

#: Raise it when the same options would give other bytes than before.
REVISION = 1
SHAPES_FILE = Path(__file__).with_name("shapes.json")
#: Weights of a dense tensor that are in memory at once.
BLOCK_WEIGHTS = 4 << 20
#: Bytes handed to the drive at once.
BATCH_BYTES = 8 << 20
#: Of random bytes and of random numbers; a window is at most half of it.
POOL_BYTES = 64 << 20
POOL_NUMBERS = 8 << 20

#: called with (bytes of the store done, bytes in all, what is being done)
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class SynthOptions:
    """What to write; None is what the shape has.

    Attributes:
        expert_bits: 2, 3, 4, 8, or 16 for bf16.
        dense_bits: 8, or 16 for bf16.
    """

    layers: int | None = None
    vocab: int | None = None
    expert_bits: int = 4
    dense_bits: int = 8
    group_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        ConvertOptions(self.expert_bits, self.dense_bits, self.group_size)  # the same limits
        for what, value in (("layers", self.layers), ("vocabulary", self.vocab)):
            if value is not None and value < 1:
                raise UsageError(f"{what} of {value} is less than 1")
        if self.seed < 0:
            raise UsageError(f"seed {self.seed} is negative")


@dataclass(frozen=True)
class SynthReport:
    """What was written; ``seconds`` include waiting for the drive to have it all."""

    out: Path
    like: str
    layers: int
    store_bytes: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        speed = {"bytes_per_s": self.store_bytes / self.seconds}
        return {**dataclasses.asdict(self), "out": str(self.out), **speed}


@cache
def catalogue() -> dict[str, dict[str, Any]]:
    """Name -> configuration of the shapes known by name."""
    shapes: dict[str, dict[str, Any]] = json.loads(SHAPES_FILE.read_bytes())
    return shapes


def shape_config(like: str, layers: int | None = None, vocab: int | None = None) -> dict[str, Any]:
    """The configuration of a shape in the catalogue, or in a ``config.json``.

    Raises:
        UsageError: ``like`` is neither.
    """
    raw = catalogue().get(like.lower())
    if raw is None:
        if not like.endswith(".json"):
            known = ", ".join(catalogue())
            raise UsageError(f"no shape {like!r}; known: {known}; or give a config.json")
        try:
            raw = json.loads(Path(like).read_bytes())
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read {like}: {error}") from None
        if not isinstance(raw, dict):
            raise UsageError(f"{like} is not a JSON object")
        raw = {"model_type": raw.get("model_type"), **raw.get("text_config", raw)}
    config = dict(raw)
    if layers is not None:
        config["num_hidden_layers"] = layers
        if isinstance(config.get("layer_types"), list):
            kinds = config["layer_types"]
            config["layer_types"] = [kinds[i % len(kinds)] for i in range(layers)]
    if vocab is not None:
        config["vocab_size"] = vocab
    return config


def synth(
    out: Path | str,
    config: dict[str, Any],
    options: SynthOptions | None = None,
    like: str = "config",
    progress: Progress = lambda *_: None,
) -> SynthReport:
    """Write a store with random weights; resumes as a conversion does.

    Args:
        config: as from :func:`shape_config`; ``options.layers`` and ``options.vocab`` are
            taken from it already.
        like: what ``config`` is the shape of, for people.

    Raises:
        CheckpointError: the engine cannot run such a model.
        StoreError: ``out`` exists, or was begun with other options.
        ResourceError: disk or permissions; the same call resumes.
    """
    begin = time.monotonic()
    job = _Synthesis(Path(out), config, options or SynthOptions(), like, progress)
    job.run()
    size = sum(p.stat().st_size for p in job.out.rglob("*") if p.is_file())
    layers = job.config.num_hidden_layers
    return SynthReport(job.out, like, layers, size, time.monotonic() - begin)


class _Synthesis:
    def __init__(
        self,
        out: Path,
        raw: dict[str, Any],
        options: SynthOptions,
        like: str,
        progress: Progress,
    ) -> None:
        self.out, self._raw, self._options = out, raw, options
        self._like, self._progress = like, progress
        self.config: ModelConfig = parse_config(raw)
        bits, group = options.expert_bits, options.group_size
        c = self.config
        self._format = ExpertFormat(
            c.hidden_size, c.moe_intermediate_size, bits, 0 if bits == 16 else group
        )
        self._layout = RecordLayout(self._format)
        self._specs = c.dense_tensors()
        self._kept = {name: self._keep(spec) for name, spec in self._specs.items()}
        parts = [(n, *p) for t, kept in self._kept.items() for n, p in kept.parts(t).items()]
        self._dense = safetensors.file_order(parts)
        head, header = safetensors.build_header(self._dense)
        dense_bytes = len(head) + sum(info.nbytes for info in header.tensors.values())
        self._total = dense_bytes + c.num_experts * len(c.moe_layers) * self._layout.stride
        self._done = 0
        self._weights = RandomWeights(options.seed)

    def run(self) -> None:
        names = dict.fromkeys(["", *self._dense], 2**32 - 1)
        # A store that this program would refuse to open is not begun.
        manifest = self._manifest(names).to_bytes()
        Manifest.parse(manifest)
        sums = 8 * len(self._layout.segments) * self.config.num_experts
        other = 2 * len(manifest) + sums * len(self.config.moe_layers)
        check_free_space(self.out, self._total + other)
        with StoreWriter(self.out, self._plan(), self._layout) as writer:
            if writer.complete:
                return
            for layer in self.config.moe_layers:
                self._write_layer(writer, layer)
            checksums = writer.write_dense(self._dense, self._dense_arrays())
            self._advance(self._total - self._done, "checksums")
            writer.finish(self._manifest(checksums))

    def _keep(self, spec: TensorSpec) -> PlainTensor | CodedTensor:
        if spec.role == "projection" and self._options.dense_bits == 8:
            rows, columns = spec.shape
            return CodedTensor(DenseMatrix((rows, columns), 8, self._options.group_size, "bf16"))
        return PlainTensor("F32" if spec.role in ("norm", "vector") else "BF16", spec.shape)

    # Experts ------------------------------------------------------------------

    def _write_layer(self, writer: StoreWriter, layer: int) -> None:
        found = writer.written_records(layer)
        self._advance(found * self._layout.stride, f"experts of layer {layer}")
        if found < self.config.num_experts:
            writer.write_layer(layer, self._records(layer, found), direct=True)

    def _records(self, layer: int, first: int) -> Iterator[Bytes]:
        """Records [first, ...) of a layer in batches that share one buffer."""
        stride, count = self._layout.stride, self.config.num_experts
        per_batch = max(1, BATCH_BYTES // stride)
        memory = AlignedBuffer(per_batch * stride).array().reshape(per_batch, stride)
        # One draw for the layer, so that a resumed one goes on with the same numbers.
        rng = np.random.default_rng([self._options.seed, 1, layer])
        where = rng.random((count, len(self._layout.pieces)))
        for start in range(first, count, per_batch):
            batch = memory[: min(per_batch, count - start)]
            for record, at in zip(batch, where[start:], strict=False):
                self._fill(record, at)
            yield batch
            self._advance(batch.nbytes, f"experts of layer {layer}")

    def _fill(self, record: Bytes, where: npt.NDArray[np.float64]) -> None:
        f, weights = self._format, self._weights
        windows = dict(zip(self._layout.pieces, where.tolist(), strict=True))
        for (matrix, piece), (offset, nbytes) in self._layout.pieces.items():
            std = f.shape(matrix)[1] ** -0.5
            at = windows[matrix, piece]
            target = record[offset : offset + nbytes]
            if piece == "weights":
                target.view(np.uint16)[:] = weights.halves(std, nbytes // 2, at)
            elif piece in ("scales", "biases"):
                at = windows[matrix, "scales"]  # scale and bias of a group belong together
                pair = weights.scales_and_biases(f.bits, std, nbytes // 2, at)
                target.view(np.uint16)[:] = pair[piece == "biases"]
            else:
                target[:] = weights.bytes(nbytes, at)

    # Dense tensors --------------------------------------------------------------

    def _dense_arrays(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        for number, (name, spec) in enumerate(self._specs.items()):
            rng = np.random.default_rng([self._options.seed, 2, number])
            if spec.role in ("norm", "vector"):
                yield name, vector(name, spec, rng)
                continue
            kept = self._kept[name]
            rows, columns = spec.shape
            # A row of an embedding is looked up; those of a matrix, or of an embedding that
            # is the output head as well, are multiplied.
            looked_up = spec.role == "embedding" and "lm_head.weight" in self._specs
            std = 1.0 if looked_up else columns**-0.5
            block = max(1, BLOCK_WEIGHTS // columns)
            for start in range(0, rows, block):
                for part, array in self._dense_parts(
                    name, kept, min(block, rows - start), std, rng
                ):
                    yield part, array
                    self._advance(array.nbytes, f"dense tensor {name}")

    def _dense_parts(
        self,
        name: str,
        kept: PlainTensor | CodedTensor,
        rows: int,
        std: float,
        rng: np.random.Generator,
    ) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        if isinstance(kept, PlainTensor):
            count = rows * kept.shape[1]
            yield name, self._weights.halves(std, count, rng.random())
            return
        e = kept.entry
        groups = rows * padded_columns(e.shape[1], e.group_size) // e.group_size
        pair = self._weights.scales_and_biases(e.bits, std, groups, rng.random())
        for part, (dtype, shape) in kept.parts(name).items():
            if dtype == "U8":
                yield part, self._weights.bytes(rows * shape[1], rng.random())
            else:
                yield part, pair[part.endswith(".biases")]

    # Manifest -------------------------------------------------------------------

    def _plan(self) -> dict[str, Any]:
        return {
            "format_version": VERSION,
            "synth_revision": REVISION,
            "like": self._like,
            "options": dataclasses.asdict(self._options),
            "config": self._raw,
        }

    def _manifest(self, dense_crc32c: dict[str, int]) -> Manifest:
        return Manifest(
            model_type=self._raw["model_type"],
            config=self._raw,
            experts=self._format,
            num_experts=self.config.num_experts,
            layers=self.config.moe_layers,
            dense_matrices={
                name: kept.entry
                for name, kept in self._kept.items()
                if isinstance(kept, CodedTensor)
            },
            dense_crc32c=dense_crc32c,
            files={},
            provenance={
                "source": "synthetic",
                "like": self._like,
                "seed": self._options.seed,
                "notes": ["weights are random: for measuring speed, not for use"],
            },
        )

    def _advance(self, nbytes: int, doing: str) -> None:
        self._done += nbytes
        self._progress(self._done, self._total, doing)


class RandomWeights:
    """Pools of random numbers and windows into them.

    A window is [start, start + count) with start chosen by ``at`` in [0, 1); it may be
    a view of the pool, and is not to be written to.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.Generator(np.random.SFC64([seed, 0]))
        self._rng = rng
        self._bytes: Bytes = rng.integers(0, 1 << 64, POOL_BYTES // 8, np.uint64).view(np.uint8)
        self._normal = rng.standard_normal(POOL_NUMBERS, np.float32)
        self._even = rng.random(POOL_NUMBERS // 8, np.float32)
        self._halves: dict[float, Halves] = {}
        self._pairs: dict[tuple[int, float], tuple[Halves, Halves]] = {}

    def bytes(self, count: int, at: float) -> Bytes:
        """Random bytes: planes of uniform codes."""
        return _window(self._bytes, count, at, unit=64)

    def halves(self, std: float, count: int, at: float) -> Halves:
        """bfloat16 numbers of a normal distribution."""
        if std not in self._halves:
            self._halves[std] = from_float(self._normal * np.float32(std), "bf16")
        return _window(self._halves[std], count, at)

    def scales_and_biases(
        self, bits: int, std: float, count: int, at: float
    ) -> tuple[Halves, Halves]:
        """bfloat16 scales and biases that make uniform codes weights of mean 0 and
        standard deviation ``std``; scales differ by up to a quarter from their mean."""
        if (bits, std) not in self._pairs:
            unit = std / math.sqrt((4**bits - 1) / 12)
            scales = from_float(np.float32(unit) * (self._even * 0.5 + np.float32(0.75)), "bf16")
            biases = from_float(to_float(scales, "bf16") * np.float32((2**bits - 1) / -2), "bf16")
            self._pairs[bits, std] = scales, biases
        scales, biases = self._pairs[bits, std]
        return _window(scales, count, at), _window(biases, count, at)


def _window(pool: npt.NDArray[Any], count: int, at: float, unit: int = 1) -> npt.NDArray[Any]:
    if 2 * count > len(pool):  # larger than any expert that fits a cache; repeats itself
        pool = np.tile(pool, -(-2 * count // len(pool)))
    start = int(at * ((len(pool) - count) // unit)) * unit
    return pool[start : start + count]


def vector(name: str, spec: TensorSpec, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """A small tensor with values as in trained models.

    A_log and dt_bias as Mamba 2 initialises them: A uniform in 1..16, the step
    softplus(dt_bias) log-uniform in 0.001..0.1.
    """
    if name.endswith("A_log"):
        values = np.log(rng.uniform(1, 16, spec.shape))
    elif name.endswith("dt_bias"):
        step = np.exp(rng.uniform(math.log(1e-3), math.log(0.1), spec.shape))
        values = step + np.log(-np.expm1(-step))
    elif spec.role == "norm":
        values = 1 + 0.1 * rng.standard_normal(spec.shape)
    else:
        values = rng.standard_normal(spec.shape) * spec.shape[-1] ** -0.5
    return values.astype(np.float32)
