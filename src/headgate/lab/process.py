"""Measuring a subject in a fresh process, by the clock of this one.

The process only says where it is; that a candidate's code changes its own clock, or
leaves out what it is measured by, changes no figure. What it chose is compared with what
the baseline chose in the very generation that was timed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

from headgate import errors
from headgate.errors import HeadgateError, ResourceError
from headgate.lab.experiment import Code, Protocol, Sample, Subject
from headgate.lab.knobs import engine_options
from headgate.measure.drive import drop_cache
from headgate.measure.limit import memory_limit
from headgate.store import Store
from headgate.stream.lookahead import PATTERN, STRETCH

HERE = Path(__file__).parent
WORKER, QUALITY = HERE / "worker.py", HERE / "quality_worker.py"
#: Runs a file with nothing of its directory, nor of this one, on the path.
BOOT = "import runpy, sys; sys.path.pop(0); runpy.run_path(sys.argv[1], run_name='__main__')"
#: Folder of a package's build, to be put first on the path.
Folder = Callable[[Code], Path]


class Processes:
    """Measures subjects on one store.

    Args:
        folder: where the code of a subject has been built; needed for code alone.
    """

    def __init__(self, store: Store, folder: Folder | None = None) -> None:
        self.store, self._folder = store, folder

    def measure(self, subject: Subject, protocol: Protocol, seed: int) -> Sample:
        """One sample, see :data:`headgate.lab.experiment.Measure`.

        Raises:
            HeadgateError: what the process raised; ResourceError if it died, took too long
                or said something else than expected.
        """
        job = {
            **self._job(subject, protocol),
            "seed": seed,
            "lengths": self._lengths(protocol),
            "routes": protocol.routes,
            "greedy": protocol.greedy,
        }
        for path in self.store.path.rglob("*"):
            with suppress(OSError):
                drop_cache(path)
        seconds, result = self._run(WORKER, job, subject, protocol)
        return _sample(seconds, result, protocol, job["lengths"])

    def quality(self, subject: Subject, protocol: Protocol) -> dict[str, dict[str, bool | None]]:
        """Answers to the quality suites, see :data:`headgate.lab.experiment.Quality`.

        Raises:
            HeadgateError: as :meth:`measure`.
        """
        job = {
            **self._job(subject, protocol),
            "limit": protocol.quality_limit,
            "suites": protocol.quality_suites,
        }
        _, result = self._run(QUALITY, job, subject, protocol)
        found: dict[str, dict[str, bool | None]] = result["answers"]
        return found

    def _job(self, subject: Subject, protocol: Protocol) -> dict[str, Any]:
        engine, stream = engine_options(subject.knobs)
        return {"store": str(self.store.path.resolve()), "memory": protocol.memory,
                "engine": engine, "stream": stream}  # fmt: skip

    def _lengths(self, protocol: Protocol) -> list[tuple[int, int]]:
        """(prompt, generated) tokens of each prompt of a process. A warm one has had the
        same lengths before, and as many tokens as lookahead tries itself on."""
        measured = (protocol.prompt_tokens, protocol.generated_tokens)
        if not protocol.warm:
            return [measured]
        settle = 2 + len(PATTERN) * STRETCH // len(self.store.manifest.layers)
        return [measured, (1, settle), measured]

    def _run(
        self, worker: Path, job: Mapping[str, Any], subject: Subject, protocol: Protocol
    ) -> tuple[dict[str, float], dict[str, Any]]:
        env = dict(os.environ)
        if subject.code is not None:
            if self._folder is None:
                raise ResourceError("nothing has been built to measure code with")
            env["PYTHONPATH"] = str(self._folder(subject.code))
        with memory_limit(protocol.memory) as prefix, tempfile.TemporaryFile() as stderr:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-c", BOOT, str(worker)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=env,
                start_new_session=True,
            )
            late = threading.Event()
            timer = threading.Timer(protocol.timeout_s, _stop, (process, late))
            timer.start()
            try:
                seconds, result = _listen(process, job)
            finally:
                timer.cancel()
                _stop(process, None)
                _close(process)
            if late.is_set():
                raise ResourceError(f"it took longer than {protocol.timeout_s:g} s")
            if result is None:
                stderr.seek(0)
                raise ResourceError(_death(process.returncode, stderr.read()))
        if result["at"] == "error":
            raise _error(str(result["kind"]), str(result["message"]))
        return seconds, result


def _listen(
    process: subprocess.Popen[str], job: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, Any] | None]:
    """Seconds of each part, and the process's last word.

    A part begins when the process is told to go on, and ends when its next line is here.
    That this process is late can only make a part longer, never shorter. Stdin stays open:
    the process ends when that is closed.
    """
    assert process.stdin is not None and process.stdout is not None
    seconds: dict[str, float] = {}
    part, began = "", 0.0

    def send(words: str) -> None:
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.write(words + "\n")
            process.stdin.flush()

    send(json.dumps(job))
    for line in process.stdout:
        now = perf_counter()
        try:
            event = json.loads(line)
            at = str(event["at"])
        except (ValueError, KeyError, TypeError):
            continue  # something that a library prints
        if at in ("result", "error"):
            return seconds, event
        if part:
            seconds[part] = now - began
        part, began = at, perf_counter()
        send("")
    return seconds, None


def _stop(process: subprocess.Popen[str], late: threading.Event | None) -> None:
    """End the process and what it has started."""
    if late is not None:
        late.set()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _close(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # what it never read
                pipe.close()
    process.wait()


def _death(status: int, stderr: bytes) -> str:
    last = (stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
    return f"its process ended with status {status}: {last[:300]}"


def _error(kind: str, message: str) -> HeadgateError:
    found = getattr(errors, kind, ResourceError)
    try:
        error = found(message)
    except TypeError:  # it takes more than a message
        error = ResourceError(message)
    return error if isinstance(error, HeadgateError) else ResourceError(message)


def _sample(
    seconds: Mapping[str, float],
    result: Mapping[str, Any],
    protocol: Protocol,
    lengths: list[tuple[int, int]],
) -> Sample:
    """Speeds by this process's clock.

    Raises:
        ResourceError: the process left something out.
    """
    try:
        tokens: list[list[int]] = [[int(t) for t in chosen] for chosen in result["tokens"]]
        prompt_s, decode_s = seconds["prompt"], seconds["decode"]
    except (KeyError, TypeError, ValueError):
        raise ResourceError("its process did not report what was measured") from None
    if [len(chosen) for chosen in tokens] != [n for _, n in lengths]:
        raise ResourceError("its process did not generate all the tokens")
    if prompt_s <= 0 or decode_s <= 0:
        raise ResourceError("its process reported a prompt or an answer that took no time")
    speed = {
        "decode": (protocol.generated_tokens - 1) / decode_s,
        "prompt": protocol.prompt_tokens / prompt_s,
        "answer": 1 / (prompt_s + decode_s),
    }
    raw = {k: v for k, v in result.items() if k not in ("at", "tokens")}
    load = os.getloadavg()[0]
    return Sample(
        speed[protocol.metric],
        tokens,
        {**raw, "speed": speed, "prompt_s": prompt_s, "decode_s": decode_s, "load": load},
    )
