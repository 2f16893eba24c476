"""The machine to plan for: this one, one that was saved, or one that is for sale."""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headgate.errors import ResourceError, UsageError
from headgate.measure.bench import BUSY
from headgate.measure.probe import QUICK, probe
from headgate.paths import probe_file
from headgate.plan.calibrate import Calibration, calibration
from headgate.stream import CostModel

#: Relative uncertainty of bandwidths that were not measured in several rounds.
UNKNOWN_SPREAD = 0.1
#: Of figures taken from a data sheet.
CLAIMED_SPREAD = 0.25
LARGE_READ = 256 << 10

#: What a file for a machine that nobody has measured may say.
CLAIMS = ("drive_bytes_per_s", "memory_bytes_per_s", "cores", "memory_bytes")


@dataclass(frozen=True)
class Machine:
    """Rates of a machine, all threads.

    Attributes:
        memory_bytes: that a process could take.
        drive_spread, memory_spread: relative uncertainty of their speed.
    """

    name: str
    cores: int
    memory_bytes: int
    memory_bytes_per_s: float
    drive: CostModel
    rates: Calibration
    drive_spread: float = UNKNOWN_SPREAD
    memory_spread: float = UNKNOWN_SPREAD
    notes: tuple[str, ...] = ()

    def faster(self, drive: float = 1, memory: float = 1, cores: float = 1) -> Machine:
        """The same with a drive, a memory bus and cores so many times as fast. Of a
        product, the time that its bytes take follows the bus and the rest the cores."""
        d, r, bus = self.drive, self.rates, self.memory_bytes_per_s

        def seconds(whole: float, nbytes: float) -> float:
            moving = min(whole, nbytes / bus)
            return moving / memory + (whole - moving) / cores

        def rates(table: dict[int, dict[int, float]]) -> dict[int, dict[int, float]]:
            return {
                bits: {
                    tokens: 1 / seconds(1 / rate, weight_bytes(bits) / tokens)
                    for tokens, rate in by.items()
                }
                for bits, by in table.items()
            }

        return replace(
            self,
            memory_bytes_per_s=self.memory_bytes_per_s * memory,
            drive=replace(
                d,
                latency=d.latency / math.sqrt(drive),
                stream=d.stream * drive,
                overhead=d.overhead / drive,
                bandwidth=d.bandwidth * drive,
            ),
            rates=replace(
                r,
                experts=rates(r.experts),
                dense=rates(r.dense),
                # The state is read and written.
                delta={t: seconds(s, 2 / t) for t, s in r.delta.items()},
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """What a saved machine holds besides the probe, and what reports show."""
        return {
            "name": self.name,
            "cores": self.cores,
            "memory_bytes": self.memory_bytes,
            "memory_bytes_per_s": self.memory_bytes_per_s,
            "drive_bytes_per_s": self.drive.bytes_per_second(1 << 20, 32),
            "drive_spread": self.drive_spread,
            "memory_spread": self.memory_spread,
            "notes": list(self.notes),
        }


def weight_bytes(bits: int) -> float:
    """Of a weight with its share of scale and bias, in groups of 64."""
    return 2.0 if bits == 16 else (bits + 0.5) / 8


def this_machine(path: Path, progress: Callable[[str], None]) -> tuple[Machine, dict[str, Any]]:
    """The machine that this runs on, with the drive of ``path``, and the document to save
    of it. Measured now what has not been measured before.

    Raises:
        UsageError: ``path`` does not exist.
        ResourceError: it cannot be written to for a probe.
    """
    try:
        saved = probe_file(path)
    except OSError as error:
        raise UsageError(f"cannot plan for the drive of {path}: {error.strerror}") from None
    raw = _read(saved) if saved.exists() else None
    if raw is None or not _is_probe(raw):
        progress("this drive has not been probed: a quick probe, about 10 seconds")
        raw = probe(path, QUICK)[0].to_dict()
    document = {**raw, "calibration": calibration(progress).to_dict()}
    return from_document(document, "this machine"), document


def saved_machine(path: Path, progress: Callable[[str], None]) -> Machine:
    """The machine in a file: saved by `headgate plan --save-machine`, the output of
    `headgate probe --json`, or an object with some of :data:`CLAIMS`, the rest of which is
    taken from this machine.

    Raises:
        UsageError: it is none of these.
    """
    raw = _read(path)
    if raw is None:
        raise UsageError(f"{path} is not a JSON object")
    if _is_probe(raw):
        if "calibration" not in raw:
            raw = {**raw, "calibration": calibration(progress).to_dict()}
            note = "kernels and fixed times are those of this machine: the file has none"
            return replace(from_document(raw, path.name), notes=(note,))
        return from_document(raw, path.name)
    claims = {name: raw[name] for name in CLAIMS if name in raw}
    if not claims or set(raw) - {*CLAIMS, "name"}:
        raise UsageError(
            f"{path} describes no machine: give what `headgate plan --save-machine` or "
            f"`headgate probe --json` writes, or some of {', '.join(CLAIMS)}"
        )
    for name, value in claims.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e18:
            raise UsageError(f"{path}: {name} is {value!r}, expected a positive number")
    here, _ = this_machine(Path(), progress)
    return _claimed(here, claims, str(raw.get("name", path.name)))


def _claimed(here: Machine, claims: dict[str, float], name: str) -> Machine:
    drive = claims.get("drive_bytes_per_s", here.drive.bandwidth) / here.drive.bandwidth
    memory = claims.get("memory_bytes_per_s", here.memory_bytes_per_s) / here.memory_bytes_per_s
    cores = claims.get("cores", here.cores) / here.cores
    missing = [claim for claim in CLAIMS if claim not in claims]
    notes = ["arithmetic per core and fixed times are those of this machine"]
    notes += [f"{', '.join(missing)} are those of this machine"] if missing else []
    return replace(
        here.faster(drive, memory, cores),
        name=name,
        cores=int(claims.get("cores", here.cores)),
        memory_bytes=int(claims.get("memory_bytes", here.memory_bytes)),
        drive_spread=CLAIMED_SPREAD if "drive_bytes_per_s" in claims else here.drive_spread,
        memory_spread=CLAIMED_SPREAD if "memory_bytes_per_s" in claims else here.memory_spread,
        notes=tuple(notes),
    )


def from_document(raw: dict[str, Any], name: str) -> Machine:
    """A probe's document with a ``calibration``.

    Raises:
        UsageError: something in it is missing or unusable.
    """
    try:
        machine, memory = raw["machine"], max(raw["memory"], key=lambda rate: rate["bytes_per_s"])
        large = [r for r in raw["reads"] if r["mode"] == "direct" and r["nbytes"] >= LARGE_READ]
        rates = Calibration.from_dict(raw["calibration"])
        notes = []
        if raw.get("quick"):
            notes.append("its drive was probed quickly: `headgate probe` is more exact")
        if rates.others > BUSY:
            notes.append(
                f"others took {rates.others:.0%} of the processor while products were measured: "
                "do not trust these figures"
            )
        return Machine(
            name if name != "this machine" else f"{machine['cpu']}, {machine['cores']} cores",
            int(machine["cores"]),
            int(machine["available_bytes"]),
            float(memory["bytes_per_s"]),
            CostModel.from_dict(raw["cost_model"]),
            rates,
            max(_spread(r["samples"] for r in large), float(raw["fit"]["median_error"])),
            _spread([memory["samples"]]),
            tuple(notes),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{name} is not a whole machine file: {error}") from None


def save(document: dict[str, Any], path: Path) -> None:
    """Write a machine, to plan for it elsewhere.

    Raises:
        ResourceError: it cannot be written.
    """
    try:
        path.write_text(json.dumps(document, indent=1) + "\n")
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from None


def say(doing: str) -> None:
    """Progress on stderr."""
    print(f"headgate: {doing}", file=sys.stderr)


def _is_probe(raw: dict[str, Any]) -> bool:
    return {"cost_model", "machine", "memory", "reads"} <= set(raw)


def _spread(rounds: Iterable[list[float]]) -> float:
    """Typical relative deviation of a round from the median of its rounds."""
    found = []
    for samples in rounds:
        middle = statistics.median(samples)
        found += [abs(sample / middle - 1) for sample in samples if len(samples) > 2]
    return max(0.02, 1.5 * statistics.median(found)) if found else UNKNOWN_SPREAD


def _read(path: Path) -> dict[str, Any] | None:
    try:
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {os.strerror(error.errno or 0)}") from None
    except ValueError:
        return None
    return raw if isinstance(raw, dict) else None
