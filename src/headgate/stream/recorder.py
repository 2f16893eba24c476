"""What may watch an expert stream: every request, and every call to its residency."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from headgate.stream.policies import Policy
from headgate.stream.residency import Residency

if TYPE_CHECKING:
    from headgate.stream.experts import ExpertStream


class Recorder(Protocol):
    """Given to one stream; it may look at everything and change nothing."""

    def residency(self, slots: int, policy: Policy) -> Residency:
        """The residency that the stream is to use."""

    def begin(self, stream: ExpertStream) -> None:
        """The stream is complete, and has not been asked for anything."""

    def requested(self, index: int, ids: npt.NDArray[np.int32]) -> None:
        """A request begins; nothing has been looked up for it. The request before is
        over, even if it was not computed.

        Args:
            index: of the layer's file.
            ids: [T, K].
        """

    def computed(self, weights: Any) -> None:
        """The request is complete; ``weights`` [T, K] are an array of the backend."""
