"""Points of a sweep on a Ray cluster.

Stores and the sweep's folder must have the same path on every machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from headgate.errors import HeadgateError, ResourceError, UsageError
from headgate.evals.files import write_json
from headgate.evals.point import Job, measure


def run_on_ray(
    address: str,
    work: Sequence[tuple[Job, Path]],
    threads: int | None,
    note: Callable[[str], None],
) -> None:
    """Measure every job on the cluster at ``address``; results are written here.

    Args:
        threads: processors that a point asks for, 1 unless given.

    Raises:
        UsageError: Ray is not installed.
        ResourceError: the cluster cannot be reached.
        HeadgateError: a point failed; the others have been finished.
    """
    try:
        import ray  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise UsageError("--ray needs Ray: pip install ray") from None
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ResourceError(f"no Ray cluster at {address}: {error}") from None
    try:
        _run(ray, work, threads or 1, note)
    finally:
        ray.shutdown()


def _run(
    ray: Any, work: Sequence[tuple[Job, Path]], threads: int, note: Callable[[str], None]
) -> None:
    # One task to a process: engines do not share a budget.
    task = ray.remote(num_cpus=threads, max_calls=1, max_retries=1)(_measured)
    open_ = {task.remote(json.dumps(job.to_dict())): out for job, out in work}
    failed: HeadgateError | None = None
    while open_:
        ready, _ = ray.wait(list(open_), num_returns=1)
        for reference in ready:
            out = open_.pop(reference)
            try:
                found = ray.get(reference)
            except ray.exceptions.RayError as error:
                failed = ResourceError(f"{out.stem} failed on the cluster: {error}")
                continue
            if "error" in found:
                failed = ResourceError(f"{out.stem}: {found['error']}")
                continue
            write_json(out, found)
            note(f"{out.stem}: {found['seconds']:.0f} s")
    if failed is not None:
        raise failed


def _measured(job: str) -> dict[str, Any]:
    """A point's figures, or what went wrong as text, which travels anywhere."""
    try:
        return measure(Job.from_dict(json.loads(job)))
    except HeadgateError as error:
        return {"error": str(error)}
