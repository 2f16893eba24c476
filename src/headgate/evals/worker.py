"""The process that measures one point: ``python -m headgate.evals.worker JOB OUT``.

A point has a process of its own, so that the memory of its engine is its own too and
nothing of one point is left to the next. OUT appears complete or not at all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from headgate import errors
from headgate.errors import HeadgateError, ResourceError
from headgate.evals.files import write_json
from headgate.evals.point import Job, measure

FAILED = 3


def run_job(job: Job, out: Path) -> dict[str, Any]:
    """Measure ``job`` in a process of its own, leave the result in ``out``, return it.

    Raises:
        HeadgateError: what the process raised; ResourceError if it died.
    """
    request = out.with_name(out.name + ".job")
    write_json(request, job.to_dict())
    command = [sys.executable, "-m", "headgate.evals.worker", str(request), str(out)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    finally:
        request.unlink(missing_ok=True)
    if done.returncode:
        raise _error(done)
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def _error(done: subprocess.CompletedProcess[str]) -> HeadgateError:
    """What a process that failed has to say."""
    if done.returncode == FAILED:
        name, _, message = done.stdout.strip().splitlines()[-1].partition(" ")
        kind = getattr(errors, name, ResourceError)
        try:
            found = kind(message)
        except TypeError:  # an error with more than a message
            found = ResourceError(message)
        assert isinstance(found, HeadgateError)
        return found
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return ResourceError(f"a point's process ended with status {done.returncode}: {last}")


def _die_with(parent: int) -> None:
    """End when the sweep has been killed: nobody waits for the figures."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    """Measure and write."""
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    request, out = map(Path, sys.argv[1:])
    job = Job.from_dict(json.loads(request.read_text(encoding="utf-8")))
    try:
        write_json(out, measure(job))
    except HeadgateError as error:
        print(type(error).__name__, " ".join(str(error).split()))
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
