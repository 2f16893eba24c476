"""Random expert records, put together without the converter."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headgate.quant import pack, quantize
from headgate.quant.halves import from_float
from headgate.store.layout import MATRICES, RecordLayout


def random_record(layout: RecordLayout, seed: int) -> npt.NDArray[np.uint8]:
    """uint8 [stride] with random weights of any layout."""
    rng = np.random.default_rng(seed)
    record = np.zeros(layout.stride, np.uint8)
    f = layout.format
    for matrix in MATRICES:
        w = rng.standard_normal(f.shape(matrix), dtype=np.float32) * np.float32(0.1)
        pieces: dict[str, npt.NDArray[np.generic]]
        if f.bits == 16:
            pieces = {"weights": from_float(w, f.half)}
        else:
            m = quantize(w, f.bits, f.group_size)
            pieces = {"scales": m.scales, "biases": m.biases}
            pieces.update(pack(m.codes, f.bits).items())
        for name, data in pieces.items():
            offset, nbytes = layout.pieces[matrix, name]
            raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
            assert raw.nbytes == nbytes
            record[offset : offset + nbytes] = raw
    return record
