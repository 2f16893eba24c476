"""``store.json``: what a store holds, how it is laid out, and its checksums.

Every limit is checked before anything is allocated by the numbers in the file.
The manifest carries a checksum of itself: the CRC-32C of its bytes with the
checksum's own eight digits replaced by zeros.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headgate._native import crc32c
from headgate.errors import DamagedStore, NewerStore, StoreError
from headgate.quant import Half
from headgate.store.layout import ExpertFormat, RecordLayout

FORMAT = "headgate expert store"
VERSION = 1

MAX_MANIFEST = 64 << 20
MAX_LAYERS = 4096
MAX_EXPERTS = 1 << 16

_CHECKSUM = re.compile(rb'"checksum": "crc32c:([0-9a-f]{8})"')
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


@dataclass(frozen=True)
class FileEntry:
    """Size and CRC-32C of a file of the store."""

    nbytes: int
    crc32c: int


@dataclass(frozen=True)
class DenseMatrix:
    """A dense matrix kept as affine codes: planes ``NAME.q2`` ..., ``NAME.scales``
    and ``NAME.biases`` in ``dense.safetensors``."""

    shape: tuple[int, int]
    bits: int
    group_size: int
    half: Half


@dataclass(frozen=True)
class Manifest:
    """The contents of ``store.json``.

    Attributes:
        model_type: the architecture, a name of :mod:`headgate.models`.
        config: the model's configuration as in the source checkpoint (text part).
        experts: shape and precision of the experts.
        num_experts: records in each file.
        layers: the decoder layers that have experts, in file order.
        dense_matrices: the dense tensors that are quantised.
        dense_crc32c: CRC-32C of each tensor's bytes in ``dense.safetensors``;
            the key ``""`` is that of the header.
        files: the other files.
        provenance: where the store came from; no paths of the machine.
    """

    model_type: str
    config: dict[str, Any]
    experts: ExpertFormat
    num_experts: int
    layers: tuple[int, ...]
    dense_matrices: dict[str, DenseMatrix]
    dense_crc32c: dict[str, int]
    files: dict[str, FileEntry]
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def layout(self) -> RecordLayout:
        return RecordLayout(self.experts)

    @property
    def expert_file_bytes(self) -> int:
        return self.layout.stride * self.num_experts

    def to_bytes(self) -> bytes:
        """The file, with its checksum."""
        body = {
            "format": FORMAT,
            "version": VERSION,
            "checksum": "crc32c:00000000",
            "model_type": self.model_type,
            "config": self.config,
            "experts": dataclasses.asdict(self.experts),
            "num_experts": self.num_experts,
            "layers": list(self.layers),
            "record": {
                "stride": self.layout.stride,
                "segments": [dataclasses.asdict(s) for s in self.layout.segments],
            },
            "dense_matrices": {k: dataclasses.asdict(v) for k, v in self.dense_matrices.items()},
            "dense_crc32c": self.dense_crc32c,
            "files": {k: dataclasses.asdict(v) for k, v in self.files.items()},
            "provenance": self.provenance,
        }
        text = (json.dumps(body, indent=1, ensure_ascii=True) + "\n").encode()
        return text.replace(b"crc32c:00000000", b"crc32c:%08x" % crc32c(text), 1)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Parse ``store.json``.

        Raises:
            DamagedStore: the checksum does not match.
            NewerStore: the version is not known to this program.
            StoreError: anything else.
        """
        try:
            size = path.stat().st_size
            if size > MAX_MANIFEST:
                raise StoreError(f"{path.name} has {size} bytes, more than {MAX_MANIFEST}")
            data = path.read_bytes()
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}") from None
        return cls.parse(data)

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """Parse the bytes of a manifest; raises as :meth:`read`."""
        raw = _checked_json(data)
        try:
            return _Parser().manifest(raw)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise StoreError(f"store.json is malformed: {error}") from None


def _checked_json(data: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        raise DamagedStore("store.json is damaged: it is not valid JSON") from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise StoreError("store.json is damaged or not the manifest of an expert store")
    found = _CHECKSUM.search(data)
    zeroed = _CHECKSUM.sub(b'"checksum": "crc32c:00000000"', data, count=1)
    if found is None or int(found[1], 16) != crc32c(zeroed):
        raise DamagedStore("store.json is damaged: its checksum does not match")
    version = raw.get("version")
    if type(version) is not int or version > VERSION:
        raise NewerStore(
            f"the store has format version {version}, this program reads up to {VERSION}: "
            "use a newer headgate"
        )
    return raw


class _Parser:
    """Typed access to the JSON; every failure is a ValueError that names the field."""

    def manifest(self, raw: Mapping[str, Any]) -> Manifest:
        experts = self.expert_format(self.mapping(raw, "experts"))
        manifest = Manifest(
            model_type=self.string(raw, "model_type"),
            config=dict(self.mapping(raw, "config")),
            experts=experts,
            num_experts=self.natural(raw, "num_experts", 1, MAX_EXPERTS),
            layers=self.layers(raw),
            dense_matrices={
                name: self.dense_matrix(name, entry)
                for name, entry in self.mapping(raw, "dense_matrices").items()
            },
            dense_crc32c=self.checksums(raw, "dense_crc32c"),
            files={
                self.file_name(name): FileEntry(
                    self.natural(entry, "nbytes", 0, 1 << 50),
                    self.natural(entry, "crc32c", 0, 2**32 - 1),
                )
                for name, entry in self.mapping(raw, "files").items()
            },
            provenance=dict(self.mapping(raw, "provenance")),
        )
        declared = self.mapping(raw, "record")
        segments = [dataclasses.asdict(s) for s in manifest.layout.segments]
        if declared.get("stride") != manifest.layout.stride or declared["segments"] != segments:
            raise ValueError("the record layout does not follow from the expert format")
        return manifest

    def expert_format(self, raw: Mapping[str, Any]) -> ExpertFormat:
        numbers = ("hidden_size", "intermediate_size", "bits", "group_size")
        # JSON's 4.0 and true would pass for numbers in comparisons, and fail much later.
        return ExpertFormat(**{**raw, **{k: self.natural(raw, k, 0, 1 << 20) for k in numbers}})

    def layers(self, raw: Mapping[str, Any]) -> tuple[int, ...]:
        layers = raw["layers"]
        if not isinstance(layers, list) or not 1 <= len(layers) <= MAX_LAYERS:
            raise ValueError(f"layers is not a list of 1..{MAX_LAYERS} numbers")
        if any(type(x) is not int or not 0 <= x < MAX_LAYERS for x in layers):
            raise ValueError("layers holds something else than layer numbers")
        if sorted(set(layers)) != layers:
            raise ValueError("layers is not strictly ascending")
        return tuple(layers)

    def dense_matrix(self, name: str, raw: Mapping[str, Any]) -> DenseMatrix:
        rows, columns = raw["shape"]
        # The same limits as for an expert's matrix.
        fmt = ExpertFormat(
            self.natural({name: rows}, name, 1, 1 << 20),
            self.natural({name: columns}, name, 1, 1 << 20),
            self.natural(raw, "bits", 0, 16),
            self.natural(raw, "group_size", 0, 1 << 20),
            raw["half"],
        )
        return DenseMatrix((rows, columns), fmt.bits, fmt.group_size, fmt.half)

    def checksums(self, raw: Mapping[str, Any], key: str) -> dict[str, int]:
        entries = self.mapping(raw, key)
        return {name: self.natural(entries, name, 0, 2**32 - 1) for name in entries}

    def mapping(self, raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        value = raw[key]
        if not isinstance(value, dict):
            raise ValueError(f"{key} is not an object")
        return value

    def string(self, raw: Mapping[str, Any], key: str) -> str:
        value = raw[key]
        if not isinstance(value, str):
            raise ValueError(f"{key} is not a string")
        return value

    def natural(self, raw: Mapping[str, Any], key: str, low: int, high: int) -> int:
        value = raw[key]
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"{key} is {value!r}, not a number in {low}..{high}")
        return value

    def file_name(self, name: str) -> str:
        if not _NAME.fullmatch(name) or name.startswith("."):
            raise ValueError(f"file name {name!r} is not allowed")
        return name
