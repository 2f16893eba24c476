"""One process that answers the quality suites: a job on stdin, one line of JSON. Run as a
file, as :mod:`headgate.lab.worker` is."""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

from headgate.engine import Engine
from headgate.errors import HeadgateError
from headgate.evals.engine_target import engine_target
from headgate.evals.run import run_suite
from headgate.evals.suites import SUITES
from headgate.evals.suites.items import load_items, some, suite_file
from headgate.stream import StreamOptions

#: Questions asked at a time; it changes no answer.
BATCH = 4


def answers(job: dict[str, Any]) -> dict[str, dict[str, bool | None]]:
    """``{suite and mode: {prompt: right}}``, None where there is no answer."""
    engine = Engine.load(
        job["store"],
        memory=job["memory"],
        sequences=BATCH,
        stream=StreamOptions(**job["stream"]),
        **job["engine"],
    )
    found = {}
    with engine_target(engine, BATCH) as target:
        for name in filter(None, job["suites"].split(",")) if job["suites"] else SUITES:
            suite = SUITES[name]
            items = some(load_items(suite_file(name), suite.check), job["limit"])
            for mode in suite.modes:
                outcomes = run_suite(suite, target, items, mode, batch=BATCH)
                found[f"{name} {mode}"] = {o.id: o.right for o in outcomes}
    return found


def end_with_parent() -> None:
    """The other end of stdin is closed when the process that measures is gone."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def main() -> None:
    """Do the job on stdin."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        event: dict[str, Any] = {"at": "result", "answers": answers(job)}
    except HeadgateError as error:
        event = {"at": "error", "kind": type(error).__name__, "message": str(error)}
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    main()
