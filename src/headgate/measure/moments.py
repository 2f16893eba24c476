"""Second moments of the routed experts' inputs, collected while a model reads text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from headgate.convert.calibration import LayerMoments
from headgate.engine import Engine
from headgate.errors import ResourceError, UsageError
from headgate.models import ExpertSource
from headgate.store import Store
from headgate.store.record import record_matrices

Floats = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]

#: Bytes that the moments of a model may take; beyond that they are coarser.
MOST_BYTES = 2 << 30
#: Bytes of gate and up matrices in float32 that are kept from one text to the next.
KEPT_BYTES = 512 << 20


class MomentExperts:
    """Passes everything on, and sums up what the experts are given. CPU backend alone.

    Attributes:
        layers: sums, to be divided by counts by :meth:`means`.
    """

    def __init__(self, source: ExpertSource, store: Store, most_bytes: int = MOST_BYTES) -> None:
        self._source, self._store = source, store
        f, experts = store.manifest.experts, store.manifest.num_experts
        inputs, hidden = moment_shapes(
            experts, f.hidden_size, f.intermediate_size, len(store.manifest.layers), most_bytes
        )
        self._ids = np.zeros((0, 0), np.int32)
        self._layer = 0
        self._kept: dict[tuple[int, int], tuple[Floats, Floats]] = {}
        self._room = KEPT_BYTES // (8 * f.hidden_size * f.intermediate_size)
        self.rows = dict.fromkeys(store.manifest.layers, 0)
        self.layers = {
            layer: LayerMoments(
                np.zeros(experts, np.int32),
                np.zeros(inputs, np.float32),
                np.zeros(hidden, np.float32),
            )
            for layer in store.manifest.layers
        }

    def request(self, layer: int, ids: npt.NDArray[np.int32]) -> Any:
        """See :meth:`ExpertSource.request`."""
        self._layer, self._ids = layer, np.array(ids)
        return self._source.request(layer, ids)

    def compute(self, request: Any, x: Any, *rest: Any) -> Any:
        """See :meth:`ExpertSource.compute`."""
        self._add(self._layer, self._ids, x)
        return self._source.compute(request, x, *rest)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def means(self) -> dict[int, LayerMoments]:
        """Layer -> means over what has been seen."""
        return {
            layer: LayerMoments(
                sums.tokens,
                _divided(sums.inputs, sums.tokens, self.rows[layer]),
                _divided(sums.hidden, sums.tokens, 0),
            )
            for layer, sums in self.layers.items()
        }

    def _add(self, layer: int, ids: npt.NDArray[np.int32], x: Floats) -> None:
        sums = self.layers[layer]
        self.rows[layer] += len(x)
        if sums.inputs.ndim == 1:
            sums.inputs += np.square(x).sum(0)
        elif sums.inputs.ndim == 2:
            sums.inputs += x.T @ x
        for expert in np.unique(ids).tolist():
            rows = x[(ids == expert).any(1)]
            sums.tokens[expert] += len(rows)
            if sums.inputs.ndim == 3:
                sums.inputs[expert] += rows.T @ rows
            inner = self._inner(layer, expert, rows)
            if sums.hidden.ndim == 3:
                sums.hidden[expert] += inner.T @ inner
            else:
                sums.hidden[expert] += np.square(inner).sum(0)

    def _inner(self, layer: int, expert: int, rows: Floats) -> Floats:
        """What an expert's down matrix is given."""
        gate_matrix, up_matrix = self._matrices(layer, expert)
        gate = rows @ gate_matrix.T
        with np.errstate(over="ignore"):
            silu = gate / (1 + np.exp(-gate))
        found: Floats = silu * (rows @ up_matrix.T)
        return found

    def _matrices(self, layer: int, expert: int) -> tuple[Floats, Floats]:
        """Gate and up of an expert."""
        if (layer, expert) in self._kept:
            return self._kept[layer, expert]
        layout = self._store.layout
        # The stream has read the record already, and compared its checksum.
        path = self._store.expert_path(layer)
        try:
            record = np.fromfile(path, np.uint8, layout.stride, offset=expert * layout.stride)
        except OSError as error:
            raise ResourceError(f"cannot read {path}: {error.strerror}") from None
        w = record_matrices(layout, record, layout.format.bits)
        found = w["gate"], w["up"]
        if len(self._kept) < self._room:
            self._kept[layer, expert] = found
        return found


def collect_moments(
    engine: Engine, texts: Sequence[Sequence[int]], progress: Progress = lambda *_: None
) -> dict[int, LayerMoments]:
    """Read ``texts``, token ids of a sequence each, and return each layer's moments.

    Raises:
        UsageError: there is no token, or a text does not fit the context.
    """
    total, done = sum(map(len, texts)), 0
    if not total:
        raise UsageError("there is no text to calibrate with")
    stream = engine.experts
    watched = MomentExperts(stream, engine.store)
    engine.experts = watched  # type: ignore[assignment]
    try:
        for ids in texts:
            session = engine.new_session()
            session.append(ids)
            session.close()
            done += len(ids)
            progress(done, total)
    finally:
        engine.experts = stream
    return watched.means()


def moment_shapes(
    experts: int, hidden: int, intermediate: int, layers: int, most_bytes: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of inputs and hidden for a layer, the finest that fit ``most_bytes``."""
    h, i = hidden, intermediate
    ways: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((experts, h, h), (experts, i, i)),
        ((h, h), (experts, i, i)),
        ((h, h), (experts, i)),
    ]
    for way in ways:
        if 4 * layers * sum(int(np.prod(shape)) for shape in way) <= most_bytes:
            return way
    return (h,), (experts, i)


def _divided(sums: Floats, tokens: npt.NDArray[np.int32], rows: int) -> Floats:
    if rows and sums.ndim < 3:
        return sums / np.float32(rows)
    counts = np.maximum(tokens, 1).astype(np.float32)
    return sums / counts.reshape(-1, *[1] * (sums.ndim - 1))
