"""What calibration knows of a matrix's input: second moments, ready for a solver.

The output error of a quantised matrix W' is ``sum over rows of (w - w') H (w - w')``
with ``H = mean of x x^T`` over inputs x. Rows are independent of each other and share H.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headgate.quant.planes import padded_columns

Floats = npt.NDArray[np.float32]

#: Added to the diagonal, as a share of its mean: moments are estimates, and inputs that
#: calibration has never seen must not be free.
DAMPING = 0.01
_TINY = 1e-30


@dataclass(frozen=True)
class Moments:
    """Damped second moments of the inputs of a matrix with C padded columns.

    Attributes:
        diagonal: float32 [C], in the order of columns.
        matrix: float32 [C, C] in the order of columns; None where only the diagonal is
            known, and then columns do not correct each other.
        order: columns in the order in which they are quantised, heaviest first.
        feedback: float32 [C, C], upper triangular, in that order: row j divided by its
            diagonal is what an error of column j adds to the columns after it.
    """

    diagonal: Floats
    matrix: Floats | None
    order: npt.NDArray[np.int64]
    feedback: Floats | None

    @classmethod
    def prepare(cls, moments: Floats, group_size: int) -> Moments:
        """Pad, damp and factor.

        Args:
            moments: float32 [columns, columns], symmetric and positive semidefinite, or
                [columns], its diagonal; finite.
        """
        columns = moments.shape[0]
        size = padded_columns(columns, group_size)
        diagonal = np.zeros(size, np.float64)
        diagonal[:columns] = moments if moments.ndim == 1 else np.diagonal(moments)
        diagonal = np.maximum(diagonal, 0) + max(DAMPING * diagonal[:columns].mean(), _TINY)
        order = np.argsort(-diagonal, kind="stable")
        single = diagonal.astype(np.float32)
        if moments.ndim == 1:
            return cls(single, None, order, None)
        full = np.zeros((size, size))
        full[:columns, :columns] = moments
        full = (full + full.T) / 2
        np.fill_diagonal(full, diagonal)
        feedback = _feedback(full[np.ix_(order, order)])
        return cls(single, full.astype(np.float32), order, feedback.astype(np.float32))


def _feedback(h: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The upper Cholesky factor U of the inverse: ``inv(h) = U^T U``.

    Found without the inverse: with the rows and columns of h in reverse ``h = L L^T``, and
    U is the inverse of L in the order of h.
    """
    reverse = h[::-1, ::-1]
    scale = float(np.mean(np.diagonal(h)))
    for extra in (0.0, 0.01, 0.1, 1.0):
        # Statistics may be anything symmetric: more damping, until it is positive definite.
        try:
            lower = np.linalg.cholesky(reverse + extra * scale * np.eye(len(h)))
        except np.linalg.LinAlgError:
            continue
        return np.triu(np.linalg.inv(lower)[::-1, ::-1])  # below is rounding
    return np.diag(1 / np.sqrt(np.diagonal(h)))
