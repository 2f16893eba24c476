"""What this project promises of its speed, measured: one table of figure, bar, reached.

Makes a store of 12 layers of the shape of Qwen3.5-35B-A3B (4-bit experts, 8-bit dense
weights, random), or takes one, and measures each promise in several rounds, one after
the other in every round. A ratio is taken within a round, and shown is the median.

    python benchmarks/goals.py [--store STORE] [--llama-bench BINARY --gguf MODEL]
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import which
from typing import Any

from headgate.engine.budget import available_bytes
from headgate.measure.bandwidth import drive_bandwidth
from headgate.measure.bench import BUSY, settling
from headgate.measure.bench_job import Job, Phase
from headgate.measure.launch import Launcher, Measured
from headgate.measure.machine import core_count, describe_drive, describe_machine
from headgate.measure.memory import MemoryProbe
from headgate.measure.report import align
from headgate.measure.synth import SynthOptions, shape_config, synth
from headgate.store import Store
from headgate.stream import StreamOptions

GIB = 1 << 30
SHAPE, LAYERS, VOCABULARY = "qwen3.5-35b-a3b", 12, 32768
LIMIT = 2 * GIB
#: Slow enough for the drive to be the limit whatever is read, in bytes per second.
SLOW_DRIVE = 500e6
FIO_DEPTH = 32
FIO_SECONDS = 2.0
KERNEL_ROUNDS = 9
TOO_SMALL = "memory is too small"


@dataclass
class Goal:
    """A promise, and what was found in each round.

    Attributes:
        most: the bar is an upper one.
    """

    figure: str
    bar: float
    unit: str = "x"
    most: bool = False
    found: list[float] = field(default_factory=list)
    missing: str = "not measured"

    def row(self) -> list[str]:
        """Of the table."""
        sign = "<=" if self.most else ">="
        bar = f"{sign} {self.bar:g} {self.unit}"
        if not self.found:
            return [self.figure, "", "", bar, self.missing]
        low, high = min(self.found), max(self.found)
        spread = f"{low:.3g}..{high:.3g}"
        return [self.figure, f"{self.median:.3g}", spread, bar, "yes" if self.reached else "NO"]

    @property
    def median(self) -> float:
        return statistics.median(self.found)

    @property
    def reached(self) -> bool:
        """Whether the median is on the right side of the bar."""
        return self.median <= self.bar if self.most else self.median >= self.bar

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        verdict = {"median": self.median, "reached": self.reached} if self.found else {}
        return {**vars(self), **verdict}


class Goals:
    """Every promise, by a short name."""

    def __init__(self) -> None:
        self.all = {
            "limited": Goal("decode under 2 GiB, uniform routing, of the roofline", 0.85),
            "limited_llama": Goal("decode under 2 GiB, of llama.cpp under the same limit", 15),
            "cached": Goal("decode, all experts cached, of memory bandwidth", 0.8),
            "cached_llama": Goal("decode, all experts cached, of llama.cpp in memory", 1),
            "reads": Goal(f"reads of records at depth {FIO_DEPTH}, of fio", 0.95),
            "matvec4": Goal("4-bit matrix-vector, all threads, of read bandwidth", 0.8),
            "matvec8": Goal("8-bit matrix-vector, all threads, of read bandwidth", 0.8),
            "matvec2": Goal("2-bit matrix-vector, one core", 12, "Gweights/s"),
            "prompt": Goal("512-token prompt, of token by token", 4),
            "once": Goal("512-token prompt, bytes read of those of its experts", 1, most=True),
            "bits_bytes": Goal("bytes per token of 2 bits, of 4 bits", 0.56, most=True),
            "bits": Goal("decode at 2 bits, of 4 bits, slow drive", 1.6),
            "k4": Goal("decode with 4 experts of 8, slow drive", 1.7),
            "start": Goal("start-up beyond reading dense weights", 0.5, "s", most=True),
            "dense": Goal("dense weights read, of drive bandwidth", 0.9),
        }

    def add(self, name: str, value: float) -> None:
        """A round's figure."""
        self.all[name].found.append(value)

    def table(self) -> str:
        """One line for each."""
        rows = [["figure", "median", "low..high", "bar", "reached"]]
        rows += [goal.row() for goal in self.all.values()]
        width = max(len(row[0]) for row in rows)
        return align([[row[0].ljust(width), *row[1:]] for row in rows])


class Rounds:
    """Measures everything once per call."""

    def __init__(self, store: Store, goals: Goals, llama: Llama | None, say: Say) -> None:
        self.store, self.goals, self._llama, self._say = store, goals, llama, say
        self._launcher = Launcher(store)
        self.others_cpu: list[float] = []
        self._job = Job(str(store.path), (), memory=LIMIT)
        self._settling = settling(store, self._job)
        everything = store.dense_bytes + len(store.manifest.layers) * (
            store.manifest.expert_file_bytes
        )
        self._all_cached = everything + GIB
        if self._all_cached > available_bytes():
            for name in ("cached", "cached_llama"):
                goals.all[name].missing = TOO_SMALL

    def run(self, seed: int) -> None:
        """A round."""
        self._job = replace(self._job, seed=seed)
        self._decode_limited()
        self._decode_cached()
        self._prompts()
        self._slow_drive()
        self._reads(seed)
        self._against_llama()

    def _measure(self, what: str, *phases: Phase, **changes: Any) -> Measured:
        self._say(what)
        measured = self._launcher.run(replace(self._job, phases=phases, **changes))
        self.others_cpu.append(measured.others_cpu or 0.0)
        return measured

    def _decode_limited(self) -> None:
        phases = [Phase("cold", 8, 32), *self._settling, Phase("warm", 8, 48)]
        m = self._measure("decode under 2 GiB", *phases)
        last, result = m.result.phases[-1], m.result
        self.goals.add("limited", m.roofline(last).ratio)
        self.goals.add("start", result.ready_s - result.dense_s)
        self.goals.add("dense", result.dense_bytes / result.dense_s / m.bandwidth.drive)

    def _decode_cached(self) -> None:
        if self.goals.all["cached"].missing == TOO_SMALL:
            return
        # With 512 tokens all experts have been asked for but one in ten million.
        phases = [Phase("cold", 512, 2), *self._settling, Phase("warm", 8, 64)]
        m = self._measure("decode with all experts cached", *phases, memory=self._all_cached)
        last = m.result.phases[-1]
        self.goals.add("cached", m.roofline(last).memory_ratio)

    def _prompts(self) -> None:
        chunked = self._measure("512-token prompt", Phase("cold", 512, 2)).result.phases[0]
        single = self._measure("prompt token by token", Phase("cold", 96, 2), prompt_chunk=1)
        one_by_one = single.result.phases[0].prefill_tokens_per_s
        self.goals.add("prompt", chunked.prefill_tokens_per_s / one_by_one)
        needed = chunked.prompt.needed * self.store.layout.stride
        self.goals.add("once", chunked.prompt.stream["bytes_read"] / needed)

    def _slow_drive(self) -> None:
        # A drive that is always busy leaves no time to read ahead in.
        phases = Phase("cold", 16, 2), Phase("warm", 2, 20)
        slow = StreamOptions(throttle=SLOW_DRIVE, lookahead=0)
        four, two, half = (
            self._measure(f"slow drive, {what}", *phases, stream=slow, **changes).result.phases[-1]
            for what, changes in (
                ("4 bits", {}),
                ("2 bits", {"expert_bits": 2}),
                ("4 experts", {"experts_per_token": 4}),
            )
        )
        self.goals.add("bits_bytes", two.token_bytes["drive"] / four.token_bytes["drive"])
        self.goals.add("bits", two.decode_tokens_per_s / four.decode_tokens_per_s)
        self.goals.add("k4", half.decode_tokens_per_s / four.decode_tokens_per_s)

    def _against_llama(self) -> None:
        if self._llama is None:
            return
        for name, limit in (("limited_llama", LIMIT), ("cached_llama", None)):
            if self.goals.all[name].missing != TOO_SMALL:
                self._say("llama.cpp and headgate, " + ("2 GiB" if limit else "in memory"))
                self.goals.add(name, self._llama.times(self.store, limit))

    def _reads(self, seed: int) -> None:
        if which("fio") is None:
            self.goals.all["reads"].missing = "fio is not installed"
            return
        self._say("reads, and fio")
        record = self.store.layout.stride
        # Every record one read, in both.
        options = StreamOptions(chunk_bytes=record, depth=FIO_DEPTH)
        bits = self.store.manifest.experts.bits
        # Once before fio and once after it, so that a drift of the drive cancels.
        before = drive_bandwidth(self.store, bits, options, FIO_SECONDS, 2 * seed)
        theirs = fio_bandwidth(self.store, record)
        after = drive_bandwidth(self.store, bits, options, FIO_SECONDS, 2 * seed + 1)
        self.goals.add("reads", (before + after) / 2 / theirs)


def kernels(goals: Goals) -> None:
    """Matrix-vector products against what the same threads read."""
    probe = MemoryProbe(core_count(), available_bytes())
    for _ in range(KERNEL_ROUNDS):
        probe.measure()
        memory = max(rate.samples[-1] for rate in probe.memory)
        for kernel in probe.kernels:
            if kernel.cached and kernel.bits == 2:
                goals.add("matvec2", kernel.samples[-1] / 1e9)
            elif not kernel.cached and kernel.bits in (4, 8):
                rate = kernel.samples[-1] * kernel.nbytes / kernel.weights
                goals.add(f"matvec{kernel.bits}", rate / memory)


def fio_bandwidth(store: Store, nbytes: int) -> float:
    """Bytes per second that fio reads from the store's records in random order."""
    files = ":".join(str(store.expert_path(layer)) for layer in store.manifest.layers)
    command = [
        "fio", "--name=reads", "--readonly", "--rw=randread", "--direct=1", "--ioengine=io_uring",
        "--fixedbufs", "--registerfiles",
        f"--bs={nbytes}", f"--iodepth={FIO_DEPTH}", f"--filename={files}", "--time_based",
        "--file_service_type=random", f"--runtime={FIO_SECONDS:g}", "--output-format=json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["jobs"][0]["read"]["bw_bytes"])


@dataclass
class Llama:
    """llama.cpp on a model of the same shape; see ``benchmarks/peers``."""

    binary: Path
    model: Path

    def times(self, store: Store, limit: int | None) -> float:
        """How many times as fast as llama.cpp headgate decodes, both under a memory limit
        of the kernel."""
        sys.path.append(str(Path(__file__).parent / "peers"))
        compare = importlib.import_module("compare")

        threads = core_count()
        pair = (
            compare.Headgate(store.path, threads),
            compare.LlamaCpp(self.binary, self.model, threads),
        )
        ours, theirs = (compare.measure(contender, limit) for contender in pair)
        if error := ours.get("error") or theirs.get("error"):
            raise SystemExit(f"cannot compare with llama.cpp: {error}")
        return float(ours["tokens_per_s"] / theirs["tokens_per_s"])


#: called with what is being measured
Say = Callable[[str], None]


@contextmanager
def prepared(given: Path | None, folder: Path | None, say: Say) -> Iterator[Store]:
    """The store to measure: the one given, or a new one that is removed at the end."""
    if given is not None:
        yield Store.open(given)
        return
    with tempfile.TemporaryDirectory(prefix="headgate-goals-", dir=folder) as place:
        say("writing a store of 5.7 GiB")
        config = shape_config(SHAPE, LAYERS, VOCABULARY)
        report = synth(Path(place) / "store.headgate", config, SynthOptions(), SHAPE)
        yield Store.open(report.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--store", type=Path, help="measure this store instead of making one")
    parser.add_argument("--folder", type=Path, help="where to make the store")
    parser.add_argument("--rounds", type=int, default=5, help="at most (%(default)s)")
    parser.add_argument("--minutes", type=float, default=10, help="begin no round after")
    parser.add_argument("--llama-bench", type=Path, help="binary to compare with")
    parser.add_argument("--gguf", type=Path, help="its model, of the same shape")
    parser.add_argument("--json", action="store_true", help="end with one JSON document")
    args = parser.parse_args()
    begin = time.monotonic()
    goals, llama = Goals(), None
    if args.llama_bench and args.gguf:
        llama = Llama(args.llama_bench, args.gguf)
    else:
        for name in ("limited_llama", "cached_llama"):
            goals.all[name].missing = "needs --llama-bench and --gguf"

    def say(what: str) -> None:
        print(f"{time.monotonic() - begin:6.0f} s  {what} ...", file=sys.stderr, flush=True)

    say("kernels")
    kernels(goals)
    with prepared(args.store, args.folder, say) as store:
        machine, drive = describe_machine(), describe_drive(store.path)
        rounds = Rounds(store, goals, llama, say)
        for number in range(args.rounds):
            if number and time.monotonic() - begin > 60 * args.minutes:
                break
            say(f"round {number + 1} of {args.rounds}")
            rounds.run(number)
    print(f"{machine['cpu']}, {machine['cores']} cores; {drive.get('device', 'unknown drive')}")
    print(goals.table())
    if (busy := max(rounds.others_cpu)) > BUSY:
        print(f"others took up to {busy:.0%} of the processor: do not trust these figures")
    if args.json:
        found = [goal.to_dict() for goal in goals.all.values()]
        print(json.dumps({"machine": machine, "drive": drive, "goals": found}))


if __name__ == "__main__":
    main()
