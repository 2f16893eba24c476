"""Reading a route trace back, as far as it is whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headgate.errors import UsageError
from headgate.measure.trace import (
    ADVANCE,
    FORGET,
    FORMAT,
    LISTS,
    VERSION,
    checksum,
    require_pyarrow,
    schema,
)
from headgate.stream import POLICIES

Columns = dict[str, npt.NDArray[Any]]

_NUMBERS = ("experts", "bits", "record_bytes", "slots", "chunk_bytes", "depth", "lookahead")


@dataclass(frozen=True)
class Row:
    """One request: what one layer needed for ``tokens`` tokens.

    Attributes:
        layer: index among the layers that have experts.
        experts: uint16 [tokens, K].
        calls: uint32, see :mod:`headgate.measure.trace`.
    """

    layer: int
    tokens: int
    experts: npt.NDArray[np.uint16]
    calls: npt.NDArray[np.uint32]


class Trace:
    """A trace in memory.

    Attributes:
        about: what was recorded, and how; see docs/traces.md.
        columns: name -> one value per row; of lists the values of all rows.
        offsets: list -> [rows + 1], where each row's values begin.
        damage: what could not be read, with its offset; None if all was.
    """

    def __init__(self, about: dict[str, Any], batches: list[Columns], damage: str | None) -> None:
        self.about, self.damage = about, damage
        names = [field.name for field in schema({})]
        self.columns = {name: np.concatenate([b[name] for b in batches]) for name in names}
        self.offsets = {
            name: np.concatenate([[0], np.cumsum(np.concatenate([b["#" + name] for b in batches]))])
            for name in LISTS
        }

    def __len__(self) -> int:
        return len(self.columns["layer"])

    @property
    def layers(self) -> int:
        """Layers that have experts."""
        return len(self.about["layers"])

    @property
    def experts(self) -> int:
        """Experts of a layer."""
        return int(self.about["experts"])

    @property
    def decoding(self) -> npt.NDArray[np.bool_]:
        """[rows], those of single tokens."""
        single: npt.NDArray[np.bool_] = self.columns["tokens"] == 1
        return single

    def rows(self) -> Iterator[Row]:
        """In the order in which they were asked for."""
        tokens, layers = self.columns["tokens"].tolist(), self.columns["layer"].tolist()
        experts, calls = self.columns["experts"], self.columns["calls"]
        at, of = self.offsets["experts"].tolist(), self.offsets["calls"].tolist()
        for i, (layer, count) in enumerate(zip(layers, tokens, strict=True)):
            ids = experts[at[i] : at[i + 1]].reshape(count, -1)
            yield Row(layer, count, ids, calls[of[i] : of[i + 1]])

    def total(self, name: str) -> int:
        """Sum of a column of counts."""
        return int(self.columns[name].sum())


def load(path: Path | str) -> Trace:
    """Read a trace. Of a file that was cut or damaged the rows before the damage are
    kept, and :attr:`Trace.damage` says where it begins.

    Raises:
        UsageError: pyarrow or the file is missing, it is something else, or nothing of it
            could be read.
    """
    require_pyarrow()
    import pyarrow as pa

    path = Path(path)
    batches: list[Columns] = []
    damage = None
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            try:
                reader = pa.ipc.open_stream(file)
                about = _about(reader.schema)
            except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
                raise UsageError(f"{path} is not a route trace") from None
            good = file.tell()
            while True:
                try:
                    found = reader.read_next_batch_with_custom_metadata()
                    batches.append(_columns(found, about))
                except StopIteration:
                    break
                except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
                    why = str(error).partition("\n")[0][:120]
                    damage = f"damaged from byte {good} of {size} on ({why})"
                    break
                good = file.tell()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    if not batches:
        raise UsageError(f"{path} holds no requests" + (f": {damage}" if damage else ""))
    return Trace(about, batches, damage)


def _about(found: Any) -> dict[str, Any]:
    """Raises ValueError, KeyError or TypeError unless it is a trace's schema."""
    metadata = {key.decode(): value.decode() for key, value in (found.metadata or {}).items()}
    if metadata["format"] != FORMAT or not found.equals(schema({}), check_metadata=False):
        raise ValueError("another format")
    if int(metadata["version"]) > VERSION:
        raise UsageError(f"the trace has version {metadata['version']}: use a newer headgate")
    about = json.loads(metadata["about"])
    numbers = [about[name] for name in _NUMBERS] + about["layers"]
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("about holds no numbers")
    if not about["layers"] or min(about["experts"], about["slots"], about["record_bytes"]) < 1:
        raise ValueError("about holds no sizes")
    if about["policy"] not in POLICIES:
        raise ValueError("an unknown policy")
    return dict(about)


def _columns(found: Any, about: dict[str, Any]) -> Columns:
    """The arrays of a batch, checked; ``#NAME`` are the lengths of a list's rows.

    Raises:
        ValueError, pyarrow.ArrowException: something is wrong with them.
    """
    batch = found.batch
    batch.validate(full=True)
    values: Columns = {}
    lengths: Columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if column.null_count:
            raise ValueError(f"column {name} has nulls")
        if name in LISTS:
            lengths[name] = np.diff(column.offsets.to_numpy()).astype(np.int32)
            column = column.flatten()
        values[name] = column.to_numpy(zero_copy_only=False)
    expected = dict(found.custom_metadata or {}).get(b"crc32c", b"").decode()
    if f"{checksum(values, lengths):08x}" != expected:
        raise ValueError("its checksum does not match")
    _check(values, lengths, about)
    return {**values, **{f"#{name}": counts for name, counts in lengths.items()}}


def _check(values: Columns, lengths: Columns, about: dict[str, Any]) -> None:
    """Numbers that a replay uses as indices are in range; raises ValueError."""
    tokens, wanted = values["tokens"], lengths["experts"]
    if (tokens < 1).any() or (wanted < 1).any() or (wanted % tokens).any():
        raise ValueError("a request with no experts")
    calls = values["calls"]
    kinds = calls >> 28
    keyed = kinds[kinds != ADVANCE] <= FORGET
    layers = values["layer"].max(initial=0)
    if layers >= len(about["layers"]) or values["experts"].max(initial=0) >= about["experts"]:
        raise ValueError("a layer or expert that the model does not have")
    if not keyed.all():
        raise ValueError("an unknown call")
