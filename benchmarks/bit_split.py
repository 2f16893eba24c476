"""Where further bits do most: in one matrix of every expert, or in every matrix of some layers.

From one calibrated 4-bit store of the demo model everything is read at 2 bits, but for a
part that is read at 3 or 4. A part is worth a format of its own if its divergence lies below
the line from 2 to 3 bits (in the logarithm) at the same mean bits: the last column is below 1.

    python benchmarks/bit_split.py                   # a Markdown table
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from lowbits import calibration_texts, read_experts
from nesting import Experts, encode_transcripts, load_experts, log_probabilities

from headgate.convert import ConvertOptions, convert
from headgate.convert.calibration import write_calibration
from headgate.demo import CHECKPOINT
from headgate.engine import Engine
from headgate.measure.moments import collect_moments

TOKENS = 60_000
#: (layer, matrix) -> bits
Choice = Callable[[int, str], int]


class Split:
    """The demo model with experts of several precisions.

    Args:
        folder: for stores.
    """

    def __init__(self, folder: Path) -> None:
        store, coded = folder / "exact", folder / "coded"
        convert(CHECKPOINT, store, ConvertOptions(expert_bits=16, dense_bits=16))
        self.engine = Engine.load(store)
        moments = collect_moments(self.engine, calibration_texts(self.engine, TOKENS))
        write_calibration(folder / "calibration", moments)
        options = ConvertOptions(expert_bits=4, dense_bits=16, calibration=folder / "calibration")
        convert(CHECKPOINT, coded, options)
        self.by_bits = {bits: read_experts(coded, bits) for bits in (2, 3, 4)}
        self.layers = sorted({layer for layer, _ in self.by_bits[2]})
        self.prompts = encode_transcripts(self.engine)
        original = load_experts(self.engine)
        self.expected = [log_probabilities(self.engine, original, p) for p in self.prompts]

    def measure(self, bits_of: Choice) -> tuple[float, float]:
        """(mean bits of a weight, mean KL in nats)."""
        experts: Experts = {}
        bits, weights = 0, 0
        for layer, expert in self.by_bits[2]:
            experts[layer, expert] = mine = {}
            for matrix in ("gate", "up", "down"):
                chosen = bits_of(layer, matrix)
                mine[matrix] = self.by_bits[chosen][layer, expert][matrix]
                bits += chosen * mine[matrix].size
                weights += mine[matrix].size
        kl = [
            (np.exp(p) * (p - log_probabilities(self.engine, experts, ids))).sum(-1)
            for p, ids in zip(self.expected, self.prompts, strict=True)
        ]
        return bits / weights, float(np.concatenate(kl).mean())


def matrices_at(bits: int, *names: str) -> Choice:
    """Some matrices of every expert."""
    return lambda _, matrix: bits if matrix in names else 2


def layers_at(bits: int, *numbers: int) -> Choice:
    """Every matrix of some layers."""
    return lambda layer, _: bits if layer in numbers else 2


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="headgate-split-") as name:
        split = Split(Path(name))
    print("| further bits | bits a weight | mean KL | of the line |")
    print("|---|---|---|---|")
    (_, two), (_, three) = (split.measure(lambda *_, b=bits: b) for bits in (2, 3))

    def row(name: str, choice: Choice) -> float:
        bits, kl = split.measure(choice)
        line = two * (three / two) ** (bits - 2)
        print(f"| {name} | {bits:.2f} | {kl:.5f} | {kl / line:.2f} |", flush=True)
        return kl

    row("none", matrices_at(2))
    row("3 bits everywhere", lambda *_: 3)
    for n in (1, 2):
        for names in itertools.combinations(("gate", "up", "down"), n):
            row(f"{' and '.join(names)} at 3", matrices_at(3, *names))
    alone = {x: row(f"layer {x} at 3", layers_at(3, x)) for x in split.layers}
    ranked = sorted(alone, key=lambda x: alone[x])
    for n in (2, 3, 4):
        row(f"the {n} layers that gain most at 3", layers_at(3, *ranked[:n]))
    for n in (1, 2):
        row(f"the {n} that gain most at 4", layers_at(4, *ranked[:n]))


if __name__ == "__main__":
    sys.exit(main())
