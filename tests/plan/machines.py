"""A machine that is nobody's, as its file."""

from __future__ import annotations

from typing import Any

RATES = {"1": 20e9, "4": 40e9, "16": 60e9, "64": 60e9, "256": 60e9}


def document(**changes: Any) -> dict[str, Any]:
    """2 cores, 32 GB, 40 GB/s of memory, a drive of 2 GB/s."""
    samples = [0.5e-3, 0.51e-3, 0.49e-3]
    return {
        "machine": {"cpu": "Test", "cores": 2, "available_bytes": 32 << 30},
        "memory": [{"threads": 2, "samples": [39e9, 40e9, 41e9], "bytes_per_s": 40e9}],
        "reads": [{"mode": "direct", "nbytes": 1 << 20, "depth": 8, "samples": samples}],
        "cost_model": {
            "latency": 1e-4,
            "stream": 1.5e9,
            "overhead": 2e-5,
            "bandwidth": 2e9,
            "sharpness": 3.0,
        },
        "fit": {"median_error": 0.03},
        "quick": False,
        "calibration": {
            "experts": {
                str(bits): {t: rate * 4 / max(bits, 4) for t, rate in RATES.items()}
                for bits in (2, 3, 4, 8, 16)
            },
            "dense": {"8": RATES, "16": {t: rate / 2 for t, rate in RATES.items()}},
            "delta": {"1": 1e-10, "64": 4e-11},
            "layer_s": 2e-4,
            "hit_s": 4e-6,
            "wake_s": 5e-5,
            "miss_s": 2e-5,
            "token_s": 1e-4,
            "crc_bytes_per_s": 8e9,
        },
        **changes,
    }
