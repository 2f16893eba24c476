"""Run-time knobs that measured faster for one store on one machine.

`headgate lab search` writes a profile, `headgate run` and `headgate serve` follow it. It
holds nothing that changes what is computed: threads, the length of prompt chunks, and
fields of :class:`headgate.stream.StreamOptions`.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from headgate.errors import ResourceError, UsageError
from headgate.store import Store
from headgate.stream.options import StreamOptions
from headgate.stream.policies import POLICIES

VERSION = 1
#: Knobs of the engine that a profile may hold, and the most that they may be.
ENGINE_KNOBS = {"threads": 1024, "prompt_chunk": 4096}
#: Fields of StreamOptions that it may hold; a throttle is no improvement.
STREAM_KNOBS = tuple(f.name for f in fields(StreamOptions) if f.name != "throttle")
LARGEST = 1 << 30


@dataclass(frozen=True)
class Profile:
    """Knobs, and where they come from.

    Attributes:
        store, machine: identities that it is for, see :func:`store_key` and
            :func:`machine_key`.
        knobs: names of :data:`ENGINE_KNOBS` and :data:`STREAM_KNOBS` -> values.
        budget_bytes: memory of the process in which they were measured.
        metric: what became faster.
        gain, low: speed with it over speed without it, and the lower end of its interval.
        experiment: number in the ledger that holds the measurements.
        ledger: path of that ledger.
    """

    store: str
    machine: str
    knobs: Mapping[str, Any]
    budget_bytes: int
    metric: str
    gain: float
    low: float
    experiment: int
    ledger: str

    @property
    def name(self) -> str:
        """For summaries."""
        changes = ", ".join(f"{name} {value}" for name, value in self.knobs.items())
        return f"experiment {self.experiment}, {self.metric} x {self.gain:.2f} ({changes})"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def store_key(store: Store) -> str:
    """The same for the same bytes of a store, wherever it lies."""
    return hashlib.sha256(store.manifest.to_bytes()).hexdigest()[:16]


def machine_key(path: Path) -> str:
    """The same for the same processor, cores, memory, and drive that holds ``path``.
    Drives are told apart by their device number, which another boot may change."""
    match = re.search(r"^model name\s*:\s*(.+)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    cpu = match[1] if match else platform.processor()
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    gib = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    about = (platform.system(), platform.machine(), cpu, cores, gib, path.stat().st_dev)
    return hashlib.sha256(repr(about).encode()).hexdigest()[:16]


def profile_file(store: Store, folder: Path) -> Path:
    """Where the profile of ``store`` on this machine is, whether or not there is one.

    Args:
        folder: headgate's cache directory.
    """
    return folder / "profiles" / f"{store_key(store)}-{machine_key(store.path)}.json"


def load_profile(store: Store, folder: Path) -> Profile | None:
    """The profile of ``store`` on this machine, or None.

    Args:
        folder: headgate's cache directory.

    Raises:
        UsageError: there is one, but it is damaged, or holds something that a profile
            may not change.
    """
    path = profile_file(store, folder)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"cannot read the profile {path}: {error.strerror}") from None
    try:
        raw = json.loads(data)
        if raw.pop("version") != VERSION:
            raise ValueError("another version wrote it")
        found = Profile(**raw)
        _check(found)
        if (found.store, found.machine) != (store_key(store), machine_key(store.path)):
            raise ValueError("it is of another store or machine")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"the profile {path} cannot be used ({error}): delete it, or give --no-profile"
        ) from None
    return found


def save_profile(profile: Profile, store: Store, folder: Path) -> Path:
    """Write a profile where :func:`load_profile` finds it, in place of an older one.

    Raises:
        UsageError: a knob is not one that a profile may hold.
        ResourceError: it cannot be written.
    """
    try:
        _check(profile)
    except ValueError as error:
        raise UsageError(f"this cannot be a profile: {error}") from None
    path = profile_file(store, folder)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"version": VERSION, **profile.to_dict()}, indent=1) + "\n")
        partial.replace(path)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from None
    return path


def profile_options(
    profile: Profile | None, *, threads: int | None = None, memory: int | None = None
) -> dict[str, Any]:
    """Options for :meth:`headgate.engine.Engine.load`; what is given comes first.

    Args:
        threads: asked for on the command line.
        memory: likewise. A prompt chunk is left to the engine if there is less of it than
            where it was measured, so that a profile never makes a budget too small.
    """
    if profile is None:
        return {"threads": threads}
    knobs = dict(profile.knobs)
    stream = {name: knobs.pop(name) for name in STREAM_KNOBS if name in knobs}
    if memory is not None and memory < profile.budget_bytes:
        knobs.pop("prompt_chunk", None)
    if threads is not None:
        knobs["threads"] = threads
    return {**knobs, "stream": StreamOptions(**stream)}


def _check(profile: Profile) -> None:
    """Raises ValueError for a knob that is lossy, unknown or out of range."""
    numbers = (profile.gain, profile.low, profile.budget_bytes, profile.experiment)
    if any(isinstance(n, bool) or not isinstance(n, (int, float)) for n in numbers):
        raise ValueError("a figure of it is no number")
    defaults = asdict(StreamOptions())
    for name, value in profile.knobs.items():
        if name in ENGINE_KNOBS:
            good = type(value) is int and 1 <= value <= ENGINE_KNOBS[name]
        elif name == "policy":
            good = value in POLICIES
        elif name in STREAM_KNOBS:
            good = type(value) is type(defaults[name])
            good = good and (type(value) is not int or 0 <= value <= LARGEST)
        else:
            raise ValueError(f"{name} is not a knob that leaves the output as it is")
        if not good:
            raise ValueError(f"{name} is {value!r}")


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
