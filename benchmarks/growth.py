"""How the cost of a token grows with experts per token, bits, budget, context and layers.

    python benchmarks/growth.py [--rounds 3]

Stores of the shape of Qwen3.5-35B-A3B (4-bit experts, 8-bit dense weights, random) are made
and deleted. Every setting differs from the first one in one thing; all are measured in turn
in each round, each in a process of its own, and shown are medians. Prints Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from headgate.measure.bench_job import Job, Phase, PhaseResult
from headgate.measure.launch import Launcher
from headgate.measure.machine import describe_drive, describe_machine
from headgate.measure.synth import SynthOptions, shape_config, synth
from headgate.store import Store

GIB = 1 << 30
SHAPE, VOCABULARY = "qwen3.5-35b-a3b", 32768
LAYERS = (12, 8, 4)
#: Enough tokens for a cache of 2 GiB to settle, and those that are measured.
SETTLE, MEASURE = 24, 32


@dataclass
class Setting:
    """One row of the table."""

    what: str
    layers: int = LAYERS[0]
    memory: int = 2 * GIB
    experts_per_token: int | None = None
    expert_bits: int | None = None
    prompt: int = 8
    found: list[PhaseResult] = field(default_factory=list)

    def job(self, store: Store, seed: int) -> Job:
        """A process that measures it."""
        phases = (Phase("cold", self.prompt, SETTLE), Phase("warm", self.prompt, MEASURE))
        return Job(
            str(store.path),
            phases,
            memory=self.memory,
            experts_per_token=self.experts_per_token,
            expert_bits=self.expert_bits,
            context=max(512, 2 * (self.prompt + MEASURE)),
            seed=seed,
        )

    def row(self) -> str:
        """Of the table, in Markdown."""
        speed = statistics.median(phase.decode_tokens_per_s for phase in self.found)
        read = statistics.median(phase.token_bytes["drive"] for phase in self.found)
        hits = statistics.median(_hit_rate(phase) for phase in self.found)
        return f"| {self.what} | {1e3 / speed:.1f} | {speed:.1f} | {hits:.0%} | {read / 1e6:.1f} |"


def _hit_rate(phase: PhaseResult) -> float:
    hits, misses = phase.decode.stream["hits"], phase.decode.stream["misses"]
    return float(hits / (hits + misses))


def settings() -> Iterator[Setting]:
    """The first is what all others are compared with."""
    yield Setting("12 layers, 8 experts, 4 bits, 2 GiB, context 40")
    for k in (6, 4, 2, 1):
        yield Setting(f"{k} experts per token", experts_per_token=k)
    for bits in (3, 2):
        yield Setting(f"{bits} bits", expert_bits=bits)
    for memory in (1.5, 3.5, 8):
        yield Setting(f"{memory:g} GiB", memory=int(memory * GIB))
    for prompt in (1024, 4096):
        yield Setting(f"context {prompt}", prompt=prompt)
    for layers in LAYERS[1:]:
        yield Setting(f"{layers} layers", layers=layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to make the stores")
    args = parser.parse_args()
    rows = list(settings())
    with tempfile.TemporaryDirectory(prefix="headgate-growth-", dir=args.folder) as place:
        launchers = {}
        for layers in LAYERS:
            config = shape_config(SHAPE, layers, VOCABULARY)
            out = Path(place) / f"{layers}.headgate"
            launchers[layers] = Launcher(Store.open(synth(out, config, SynthOptions(), SHAPE).out))
        for number in range(args.rounds):
            for row in rows:
                print(f"round {number + 1}: {row.what}", file=sys.stderr, flush=True)
                launcher = launchers[row.layers]
                result = launcher.run(row.job(launcher.store, number)).result
                row.found.append(result.phases[-1])
        machine, drive = describe_machine(), describe_drive(Path(place))
    print(f"{machine['cpu']}, {machine['cores']} cores; {drive.get('device', 'unknown drive')}\n")
    print("| | ms per token | tokens/s | hit rate | MB read per token |\n|---|---|---|---|---|")
    print("\n".join(row.row() for row in rows))


if __name__ == "__main__":
    main()
