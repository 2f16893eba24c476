"""Whether verdicts can be trusted on this machine: experiments whose truth is known.

Real processes on the embedded demo model, with short runs:

* A/A: both sides are the same. At most 5 of 100 may be kept.
* a candidate 5 % slower than it was measured: discarded; a baseline 10 % slower than it was
  measured, so that the candidate gains as much: kept. Both sides are the same engine; what
  is planted is a factor on the speeds of one of them.
* a candidate twice as fast as it was measured that answers something else: discarded.
* a program that measures and is killed: resumed, and its half pair not counted.

    python benchmarks/lab_checks.py                  # 100 A/A experiments of 6 pairs
    python benchmarks/lab_checks.py --experiments 3  # to see it work

Nothing else may run on the machine. The ledger is kept (--ledger) and can be shown with
`headgate lab report --ledger FILE`. The same claims on a simulated machine are tests
(tests/lab/test_verdicts.py).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from headgate.demo import demo_store
from headgate.lab.experiment import Experiment, Protocol, Sample, Subject
from headgate.lab.lab import Lab
from headgate.lab.ledger import Ledger
from headgate.lab.process import Processes
from headgate.lab.verdict import pairs_of
from headgate.store import Store

PROTOCOL = Protocol(prompt_tokens=16, generated_tokens=192, warm=False)
A_A_PAIRS = 6  # what is kept by chance does not depend on how many
#: Knobs that stand for sides; no engine is told of them.
A, B = Subject(), Subject({"planted": True})
MOST_KEPT = 0.05


@dataclass(frozen=True)
class Planted:
    """What is added to real measurements.

    Attributes:
        a_waits, b_waits: share by which the runs of a side count as longer than they were.
        wrong: B answers something else.
    """

    a_waits: float = 0.0
    b_waits: float = 0.0
    wrong: bool = False


class Planter:
    """Real processes, of which one side is given a known fault or merit."""

    def __init__(self, store: Store, planted: Planted, kill_at: int | None = None) -> None:
        self._processes, self._planted = Processes(store), planted
        self._left = kill_at

    def measure(self, subject: Subject, protocol: Protocol, seed: int) -> Sample:
        """As :meth:`Processes.measure`, of the same engine on both sides."""
        if self._left is not None:
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)
            self._left -= 1
        sample = self._processes.measure(A, protocol, seed)
        is_b = subject == B
        waits = self._planted.b_waits if is_b else self._planted.a_waits
        sample = replace(sample, value=sample.value / (1 + waits))
        if is_b and self._planted.wrong:
            tokens = [[*sample.tokens[0][:-1], sample.tokens[0][-1] ^ 1], *sample.tokens[1:]]
            sample = replace(sample, value=2 * sample.value, tokens=tokens)
        return sample


def experiment(
    ledger: Ledger,
    store: Store,
    name: str,
    planted: Planted,
    seed: int,
    pairs: int = PROTOCOL.pairs,
) -> Experiment:
    """One, entered and measured."""
    lab = Lab(ledger, store, measure=Planter(store, planted).measure)
    protocol = replace(PROTOCOL, pairs=pairs, seed=1000 * seed)
    found = lab.runner.start(lab.propose("run", name, A, B, protocol, campaign=name))
    print(f"{name} {seed}: {found.verdict}: {found.why}", file=sys.stderr, flush=True)
    return found


def killed(path: Path, store: Store) -> bool:
    """Whether an experiment whose program was killed goes on, its half pair not counted."""
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_be_killed, args=(path, store))
    child.start()
    child.join()
    ledger = Ledger(path)
    [left] = ledger.open_ones()
    lab = Lab(ledger, store, measure=Planter(store, Planted(a_waits=0.5)).measure)
    done = lab.resume(left)
    measured = ledger.measurements(left.id)
    half = [m for m in measured if not m.counted]
    print(f"killed: {done.verdict}: {done.why}; {len(half)} runs not counted", file=sys.stderr)
    whole = len(pairs_of(measured)) == done.result.get("pairs")
    return child.exitcode == -signal.SIGKILL and bool(done.verdict) and whole and len(half) == 1


def _be_killed(path: Path, store: Store) -> None:
    ledger = Ledger(path)
    planter = Planter(store, Planted(a_waits=0.5), kill_at=5)
    lab = Lab(ledger, store, measure=planter.measure)
    protocol = replace(PROTOCOL, pairs=6)
    lab.runner.start(lab.propose("run", "killed", A, B, protocol, campaign="killed"))


def main() -> int:
    """Run all of it; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=100, help="A/A; 3 to see it work")
    parser.add_argument("--ledger", type=Path, help="a temporary one if not given")
    options = parser.parse_args()
    store, began = Store.open(demo_store()), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="headgate-lab-") as folder:
        path = options.ledger or Path(folder) / "ledger.sqlite"
        ledger = Ledger(path)
        count = options.experiments
        verdicts = [
            experiment(ledger, store, "A/A", Planted(), seed, A_A_PAIRS).verdict
            for seed in range(count)
        ]
        kept, most = verdicts.count("kept"), max(1, round(MOST_KEPT * count))
        planted = {
            "5 % slower": ("discarded", Planted(b_waits=0.05)),
            "10 % faster": ("kept", Planted(a_waits=0.10)),
            "wrong answer, twice as fast": ("discarded", Planted(wrong=True)),
        }
        rows = [("A/A kept", f"{kept} of {count}", f"at most {most}", kept <= most)]
        for seed, (name, (expected, what)) in enumerate(planted.items(), count):
            verdict = str(experiment(ledger, store, name, what, seed).verdict)
            rows.append((name, verdict, expected, verdict == expected))
        good = killed(path.with_name(path.name + ".killed"), store)
        rows.append(("killed", "resumed" if good else "not resumed", "resumed", good))
    for name, found, bar, reached in rows:
        print(f"{name:30} {found:14} bar: {bar:14} {'reached' if reached else 'MISSED'}")
    print(f"{time.monotonic() - began:.0f} s")
    return 0 if all(row[-1] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
