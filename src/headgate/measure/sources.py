"""Expert sources that stand before the stream: one counts, one switches sparsity off."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from headgate.models import ExpertSource


class CountedExperts:
    """Passes everything on, and notes which experts were asked for.

    Attributes:
        needed: bool [layers, experts]; to be cleared by whoever counts.
    """

    def __init__(self, source: ExpertSource, layers: tuple[int, ...], experts: int) -> None:
        self._source = source
        self._index_of = {layer: i for i, layer in enumerate(layers)}
        self.needed = np.zeros((len(layers), experts), np.bool_)

    def request(self, layer: int, ids: npt.NDArray[np.int32]) -> Any:
        """See :meth:`ExpertSource.request`."""
        self.needed[self._index_of[layer], ids] = True
        return self._source.request(layer, ids)

    def compute(self, request: Any, x: Any, weights: Any, base: Any) -> Any:
        """See :meth:`ExpertSource.compute`."""
        return self._source.compute(request, x, weights, base)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


class DenseLayer:
    """Uses every expert of one layer for each decoded token, as a dense model would.

    The experts that the router did not choose get weight zero, so the text stays the
    same. Prompts are left alone: a chunk of many tokens needs most experts anyway.
    """

    def __init__(self, source: ExpertSource, layer: int, experts: int) -> None:
        self._source, self._layer, self._experts = source, layer, experts

    def request(self, layer: int, ids: npt.NDArray[np.int32]) -> Any:
        """See :meth:`ExpertSource.request`."""
        if layer == self._layer and len(ids) == 1:
            rest = np.setdiff1d(np.arange(self._experts, dtype=np.int32), ids)
            ids = np.concatenate([ids, rest[None]], axis=1)
        return self._source.request(layer, ids)

    def compute(self, request: Any, x: Any, weights: Any, base: Any) -> Any:
        """See :meth:`ExpertSource.compute`; arrays of the CPU backend alone."""
        missing = request.shape[1] - weights.shape[1]
        if missing:
            weights = np.concatenate([weights, np.zeros((1, missing), np.float32)], axis=1)
        return self._source.compute(request, x, weights, base)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)
