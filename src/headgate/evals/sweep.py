"""A grid of lossy knobs, measured point by point, resumable.

Every finished point is a file of its folder; what is finished is not measured again. A
folder belongs to one plan: another plan needs another folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from headgate.engine.expert_bits import ExpertBits
from headgate.errors import HeadgateError, ResourceError, UsageError
from headgate.evals.files import write_json
from headgate.evals.gate import store_identity
from headgate.evals.point import DIVERGENCE, Job, Plan
from headgate.evals.suites.items import suite_file
from headgate.evals.worker import run_job
from headgate.store import Store

PLAN_FILE, POINTS, REFERENCE = "sweep.json", "points", "reference.f32"
#: Raise it when the same plan would give other figures than before.
REVISION = 1

Note = Callable[[str], None]


@dataclass(frozen=True)
class Knobs:
    """One setting.

    Attributes:
        expert_bits: precision to read experts at, a number or a mode such as ``2:4``
            that the engine knows; None for the store's.
        experts_per_token: None for the trained number.
        dense_bits, group_size: of the conversion; None if the store is given.
    """

    expert_bits: int | str | None = None
    experts_per_token: int | None = None
    dense_bits: int | None = None
    group_size: int | None = None

    @property
    def key(self) -> str:
        """A file's name."""
        parts = zip("bkdg", asdict(self).values(), strict=True)
        return "-".join(
            f"{letter}{re.sub('[:@+]', '_', str(v))}" for letter, v in parts if v is not None
        )

    def engine_options(self) -> dict[str, Any]:
        """Those of :meth:`headgate.engine.Engine.load`."""
        options = {"expert_bits": self.expert_bits, "experts_per_token": self.experts_per_token}
        return {name: value for name, value in options.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what is set."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Point:
    """A setting and the store that it is measured on."""

    knobs: Knobs
    store: Path


@dataclass
class Sweep:
    """All points, what is measured at each, and where results go.

    Attributes:
        reference: the full model, for divergence.
        memory: bytes for each process; None shares what is free.
    """

    out: Path
    points: Sequence[Point]
    reference: Path
    plan: Plan = field(default_factory=Plan)
    batch: int = 4
    memory: int | None = None
    threads: int | None = None
    context: int | None = None

    def run(self, jobs: int = 1, note: Note = lambda _: None, ray: str | None = None) -> None:
        """Measure every point that is not finished.

        Args:
            jobs: processes at a time.
            note: told what happens.
            ray: address of a Ray cluster to run on instead of this machine.

        Raises:
            UsageError: the folder belongs to another plan, or Ray is not installed.
            HeadgateError: a point failed; the others have been finished.
        """
        self._claim()
        waiting = [point for point in self.points if self.result(point) is None]
        note(f"{len(self.points) - len(waiting)} of {len(self.points)} points are finished")
        if not waiting:
            return
        reference = self._reference(jobs, note)
        work = [(self._job(p, jobs, reference), self.file(p.knobs)) for p in waiting]
        if ray is not None:
            from headgate.evals.cluster import run_on_ray

            run_on_ray(ray, work, self.threads, note)
        else:
            run_here(work, jobs, note)
        if reference is not None:  # as large as its text times the vocabulary
            Path(reference).unlink(missing_ok=True)

    def file(self, knobs: Knobs) -> Path:
        """Where a finished point is."""
        return self.out / POINTS / f"{knobs.key}.json"

    def result(self, point: Point) -> dict[str, Any] | None:
        """A point's figures; None if it is not finished, or of another store."""
        try:
            found: dict[str, Any] = json.loads(self.file(point.knobs).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        same = found.get("store_id") == store_identity(Store.open(point.store))
        return found if same else None

    def results(self) -> list[dict[str, Any]]:
        """The finished points, in the grid's order."""
        return [found for point in self.points if (found := self.result(point)) is not None]

    def _claim(self) -> None:
        """Make the folder, or check that it is this sweep's."""
        wanted = {
            "revision": REVISION,
            "plan": json.loads(json.dumps(asdict(self.plan))),
            "prompts": _prompts_digest(self.plan),
            "context": self.context,
            "reference": store_identity(Store.open(self.reference)),
        }
        path = self.out / PLAN_FILE
        try:
            (self.out / POINTS).mkdir(parents=True, exist_ok=True)
            found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        except OSError as error:
            raise ResourceError(f"cannot use {self.out}: {error.strerror}") from None
        except ValueError:
            raise UsageError(f"{path} is damaged: delete it or choose another --out") from None
        if found is None:
            write_json(path, wanted)
            return
        differs = [name for name in wanted if found.get(name) != wanted[name]]
        if differs:
            raise UsageError(
                f"{self.out} holds a sweep with another {' and '.join(differs)}: "
                "choose another --out, or delete it"
            )

    def _reference(self, jobs: int, note: Note) -> str | None:
        """The file with the reference's log probabilities, made now if it is missing."""
        if DIVERGENCE not in self.plan.suites:
            return None
        path = self.out / REFERENCE
        if not path.exists():
            note("the reference's log probabilities")
            job = Job(str(self.reference), {}, self._options(jobs), self.plan, str(path),
                      1, writes_reference=True)  # fmt: skip
            done = self.out / "reference.json"
            run_job(job, done)
            done.unlink()
        return str(path)

    def _options(self, jobs: int) -> dict[str, Any]:
        options: dict[str, Any] = {"memory": self.memory, "context": self.context}
        options["threads"] = self.threads or max(1, (os.cpu_count() or 1) // jobs)
        return {name: value for name, value in options.items() if value is not None}

    def _job(self, point: Point, jobs: int, reference: str | None) -> Job:
        options = {**self._options(jobs), **point.knobs.engine_options()}
        return Job(
            str(point.store), point.knobs.to_dict(), options, self.plan, reference, self.batch
        )


def run_here(work: Sequence[tuple[Job, Path]], jobs: int, note: Note) -> None:
    """Processes on this machine, ``jobs`` at a time. After a failure none is started."""
    failed = threading.Event()

    def one(job: Job, out: Path) -> None:
        if failed.is_set():
            return
        try:
            found = run_job(job, out)
        except HeadgateError:
            failed.set()
            raise
        note(f"{out.stem}: {found['seconds']:.0f} s")

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(one, job, out) for job, out in work]
    for future in futures:
        future.result()


def _prompts_digest(plan: Plan) -> str:
    """Of everything that is asked: another version of headgate may ask something else."""
    digest = hashlib.sha256()
    for name in plan.suites:
        own = plan.text is None or name != DIVERGENCE
        path = suite_file("text" if name == DIVERGENCE else name) if own else Path(plan.text or "")
        try:
            digest.update(path.read_bytes())
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from None
    return digest.hexdigest()[:16]


def grid(
    expert_bits: Sequence[int | str | None],
    experts_per_token: Sequence[int | None],
    dense_bits: Sequence[int | None] = (None,),
    group_size: Sequence[int | None] = (None,),
    *,
    one_at_a_time: bool = False,
) -> list[Knobs]:
    """Every combination, or only those that differ from the first of each in one knob."""
    axes = (expert_bits, experts_per_token, dense_bits, group_size)
    if any(not axis for axis in axes):
        raise UsageError("every knob of a sweep needs a value")
    found = []
    for values in product(*axes):
        changed = sum(value != axis[0] for value, axis in zip(values, axes, strict=True))
        if not one_at_a_time or changed <= 1:
            bits, k, dense, group = values
            knobs = Knobs(bits, k, dense, None if bits == 16 else group)
            if knobs not in found:
                found.append(knobs)
    return found


def parse_bits(text: str) -> list[int | str]:
    """``16,8,4`` or with modes of the engine, ``4,2:4,2:4@-1``.

    Raises:
        UsageError: it is something else.
    """
    found: list[int | str] = []
    for word in (w.strip() for w in text.split(",")):
        bits = ExpertBits.parse(word)
        found.append(word if bits.mixed else bits.high)
    return found
