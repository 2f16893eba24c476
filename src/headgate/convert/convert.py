"""From a checkpoint to a store, in bounded memory and resumable at any moment.

One expert at a time is read, quantised and written; dense tensors go through in
blocks of rows. An exception or a kill leaves ``OUT.partial`` behind, from which the
same call goes on; the finished bytes do not depend on interruptions.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headgate._native import crc32c
from headgate.convert.checkpoint import Checkpoint
from headgate.convert.floats import FloatSource
from headgate.convert.mlx import MlxSource, quantization_settings
from headgate.convert.names import Names, Skipped, resolve
from headgate.convert.source import CodedTensor, ConvertOptions, Source
from headgate.errors import CheckpointError, UsageError
from headgate.models import ModelConfig, parse_config
from headgate.quant import AffineMatrix, Quantizer
from headgate.store import safetensors
from headgate.store.layout import RecordLayout
from headgate.store.manifest import VERSION, FileEntry, Manifest
from headgate.store.reader import CHECKSUM_FILE, PLAN_FILE
from headgate.store.record import build_record
from headgate.store.writer import StoreWriter, check_free_space

#: Raise it when the same checkpoint and options would give other bytes than before.
REVISION = 1
#: Weights of a dense tensor that are in memory at once.
BLOCK_WEIGHTS = 4 << 20

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "special_tokens_map.json",
)
CHAT_TEMPLATES = "additional_chat_templates"
#: Parts of ``config.json`` that do not describe the store.
_DROPPED = ("text_config", "vision_config", "quantization", "quantization_config")

#: called with (bytes of the store done, bytes in all, what is being done)
Progress = Callable[[int, int, str], None]


@dataclass
class ConvertReport:
    """What a conversion did.

    Attributes:
        source: format of the checkpoint.
        store_bytes: size of the store.
        written_bytes: of these, written by this call; less after a resume.
        skipped: kind -> tensors left out of the store.
        notes: what the user should know about the result.
    """

    out: Path
    source: str
    expert_bits: int
    group_size: int
    store_bytes: int = 0
    written_bytes: int = 0
    seconds: float = 0.0
    skipped: dict[str, Skipped] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "out": str(self.out)}


def convert(
    src: Path | str,
    out: Path | str,
    options: ConvertOptions | None = None,
    progress: Progress = lambda *_: None,
) -> ConvertReport:
    """Convert the checkpoint ``src`` to the store ``out``, or go on with it.

    Raises:
        CheckpointError: the checkpoint cannot be converted; nothing is written unless
            the fault is in the values of a tensor.
        StoreError: ``out`` exists, or was begun with other options.
        ResourceError: disk or permissions; the same call resumes.
    """
    begin = time.monotonic()
    options = options or ConvertOptions()
    checkpoint = Checkpoint.open(src)
    report = _Conversion(checkpoint, Path(out), options, progress).run()
    report.seconds = time.monotonic() - begin
    return report


def open_source(
    checkpoint: Checkpoint,
    names: Names,
    config: ModelConfig,
    options: ConvertOptions,
    quantizer: Quantizer,
) -> Source:
    """The :class:`Source` for the checkpoint's format.

    Raises:
        CheckpointError: the format is not supported, or tensors do not fit ``config``.
    """
    if quantization_settings(checkpoint.config) is not None:
        if options.calibration is not None:
            raise UsageError("a calibration is of no use to a checkpoint that is quantised already")
        return MlxSource(checkpoint, names, config, options)
    if any(name.endswith(".scales") for name in names.actual):
        raise CheckpointError("tensors have scales, but config.json has no quantization settings")
    return FloatSource(checkpoint, names, config, options, quantizer)


class _Conversion:
    def __init__(
        self, checkpoint: Checkpoint, out: Path, options: ConvertOptions, progress: Progress
    ) -> None:
        self._checkpoint = checkpoint
        self._out = out
        self._progress = progress
        self._config = parse_config(checkpoint.config)
        self._names = resolve(checkpoint.tensors, self._config.tie_word_embeddings)
        self._quantizer = Quantizer(options.thread_count)
        # A quantised source is refused by its name before its tensors are complained about.
        quantization_settings(checkpoint.config)
        self._source = open_source(checkpoint, self._names, self._config, options, self._quantizer)
        self._layout = RecordLayout(self._source.experts)
        self._files = dict(_tokenizer_files(checkpoint.path))
        parts = (
            (name, *part)
            for tensor, kept in self._source.dense.items()
            for name, part in kept.parts(tensor).items()
        )
        self._dense = safetensors.file_order(parts)
        self._dense_head, header = safetensors.build_header(self._dense)
        self._dense_bytes = len(self._dense_head) + sum(i.nbytes for i in header.tensors.values())
        self._plan = self._make_plan()
        self._total = self._dense_bytes + (
            len(self._config.moe_layers) * self._config.num_experts * self._layout.stride
        )
        self._done = 0
        self._found = 0

    def run(self) -> ConvertReport:
        source = self._source
        report = ConvertReport(
            self._out, source.kind, source.experts.bits, source.experts.group_size
        )
        report.skipped = self._names.skipped
        report.notes = list(source.notes)
        if "tokenizer.json" not in self._files:
            report.notes.append("the checkpoint has no tokenizer.json: the store takes no text")
        check_free_space(self._out, self._store_bytes_bound())
        with StoreWriter(self._out, self._plan, self._layout) as writer:
            if writer.complete:
                self._found = self._total
            else:
                for layer in self._config.moe_layers:
                    self._write_layer(writer, layer)
                self._write_rest(writer)
        report.store_bytes = sum(p.stat().st_size for p in self._out.rglob("*") if p.is_file())
        report.written_bytes = report.store_bytes - self._found
        return report

    def _write_layer(self, writer: StoreWriter, layer: int) -> None:
        count = self._config.num_experts
        doing = f"experts of layer {layer}"
        found = writer.written_records(layer)
        self._found += found * self._layout.stride
        self._advance(found * self._layout.stride, doing)
        if found < count:
            writer.write_layer(layer, self._records(layer, range(found, count), doing))

    def _records(self, layer: int, experts: range, doing: str) -> Iterator[npt.NDArray[np.uint8]]:
        for expert in experts:
            weights = self._source.expert(layer, expert)
            yield build_record(self._layout, weights, self._quantizer)
            self._advance(self._layout.stride, doing)

    def _write_rest(self, writer: StoreWriter) -> None:
        before = self._done
        checksums = writer.write_dense(self._dense, self._dense_arrays())
        if self._done == before:  # an earlier process has written them
            self._found += self._dense_bytes
        self._advance(self._total - self._done, "checksums")
        for name, data in self._files.items():
            writer.write_file(name, data)
        writer.finish(self._manifest(checksums))

    def _dense_arrays(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        for tensor, kept in self._source.dense.items():
            rows = kept.shape[0]
            block = max(1, BLOCK_WEIGHTS // max(1, math.prod(kept.shape[1:])))
            for start in range(0, rows, block):
                part = self._source.dense_rows(tensor, start, min(block, rows - start))
                for name, array in self._dense_parts(tensor, part):
                    yield name, array
                    self._advance(array.nbytes, f"dense tensor {tensor}")

    def _dense_parts(
        self, name: str, part: AffineMatrix | npt.NDArray[Any]
    ) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        if not isinstance(part, AffineMatrix):
            yield name, part
            return
        for plane, data in self._quantizer.pack(part.codes, part.bits).items():
            yield f"{name}.{plane}", data
        yield f"{name}.scales", part.scales
        yield f"{name}.biases", part.biases

    def _advance(self, nbytes: int, doing: str) -> None:
        self._done += nbytes
        self._progress(self._done, self._total, doing)

    def _manifest(self, dense_crc32c: dict[str, int]) -> Manifest:
        raw = _without_paths(self._checkpoint.config)
        text = raw.get("text_config", {})
        config = {key: value for key, value in {**raw, **text}.items() if key not in _DROPPED}
        return Manifest(
            model_type=raw["model_type"],
            config=config,
            experts=self._source.experts,
            num_experts=self._config.num_experts,
            layers=self._config.moe_layers,
            dense_matrices={
                name: kept.entry
                for name, kept in self._source.dense.items()
                if isinstance(kept, CodedTensor)
            },
            dense_crc32c=dense_crc32c,
            files={},
            provenance={
                "source": self._source.kind,
                "source_bytes": sum(f["nbytes"] for f in self._plan["source"].values()),
                "notes": self._source.notes,
            },
        )

    def _make_plan(self) -> dict[str, Any]:
        """Everything that determines the store: no times, no paths."""
        plan = {
            "format_version": VERSION,
            "converter_revision": REVISION,
            "experts": dataclasses.asdict(self._source.experts),
            "dense_header_crc32c": crc32c(self._dense_head),
            "config": _without_paths(self._checkpoint.config),
            "source": self._checkpoint.fingerprint(),
            "files": {name: crc32c(data) for name, data in self._files.items()},
        }
        if self._source.calibration is not None:
            plan["calibration_crc32c"] = self._source.calibration.crc32c
        return plan

    def _store_bytes_bound(self) -> int:
        """Size of the store; of the manifest, whose numbers are not known yet, the most."""
        names = [*self._files, CHECKSUM_FILE, PLAN_FILE]
        largest = 2**32 - 1
        manifest = dataclasses.replace(
            self._manifest(dict.fromkeys(["", *self._dense], largest)),
            files={name: FileEntry(largest, largest) for name in names},
        )
        sums = 4 * len(self._layout.segments) * self._config.num_experts
        # A store that this program would refuse to open is not begun.
        Manifest.parse(manifest.to_bytes())
        other = sum(map(len, self._files.values())) + 2 * len(repr(self._plan))
        return self._total + len(manifest.to_bytes()) + sums * len(manifest.layers) * 2 + other


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without where it was once loaded from."""
    return {
        key: _without_paths(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key != "_name_or_path"
    }


def _tokenizer_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name in the store -> contents of the small files that belong to a tokenizer."""
    found = {name: path / name for name in TOKENIZER_FILES if (path / name).is_file()}
    templates = sorted((path / CHAT_TEMPLATES).glob("*.jinja"))
    found |= {f"{CHAT_TEMPLATES}.{template.name}": template for template in templates}
    try:
        yield from ((name, file.read_bytes()) for name, file in found.items())
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from None
