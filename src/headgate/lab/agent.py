"""Rounds of changes to the code: a command proposes, this measures and decides."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from headgate.errors import HeadgateError, UsageError
from headgate.lab.brief import BRIEF, brief, environment, read_hypothesis
from headgate.lab.build import Builder, forbidden_paths
from headgate.lab.command import run_command
from headgate.lab.experiment import Code, Experiment, Protocol, Subject
from headgate.lab.git import Git, changed_paths, code_of_ref
from headgate.lab.lab import Lab
from headgate.lab.workplace import Workplace, branch_name

#: Python's fast tests of what decides speed.
TEST = '"$HEADGATE_LAB_PYTHON" -m pytest -q -x tests/ops tests/stream tests/store tests/engine'
GOAL = "Make it generate more tokens per second, with the same output and in the same memory."
#: Refuses a change, or says nothing; and builds one.
Build = Callable[[Code, Code], Path]


@dataclass(frozen=True)
class Limits:
    """When it ends, and how long each part may take, in seconds."""

    rounds: int = 10
    seconds: float = 8 * 3600.0
    command_s: float = 1800.0
    test_s: float = 1800.0

    def __post_init__(self) -> None:
        if self.rounds < 1 or min(self.seconds, self.command_s, self.test_s) <= 0:
            raise UsageError("rounds are at least 1, time limits more than 0 seconds")


class _Discard(Exception):
    """A round ends unmeasured; says why."""


class Agent:
    """A campaign. One of the same name goes on from its best state.

    Args:
        git: the repository; it gains branches ``lab/N-...`` and nothing else.
        command: for a shell, in a fresh worktree.
        start: commit that the first round starts from.
        folder: for worktrees and logs.
        build: (candidate, baseline) -> folder of the candidate's package; raises
            HeadgateError.
        describe: report of the baseline for the brief.
    """

    def __init__(
        self,
        lab: Lab,
        git: Git,
        command: str,
        protocol: Protocol,
        *,
        campaign: str,
        start: str,
        folder: Path,
        build: Build,
        goal: str = GOAL,
        test: str = TEST,
        limits: Limits | None = None,
        describe: Callable[[], str] = lambda: "",
    ) -> None:
        if not protocol.exact:
            raise UsageError("changes to the code must leave the output as it is")
        self.lab, self.git, self.command, self.protocol = lab, git, command, protocol
        self.campaign, self.folder = campaign, folder
        self.goal, self.test, self.limits = goal, test, limits or Limits()
        self._build, self._start = build, code_of_ref(git, start)
        self._describe = describe

    def run(self) -> list[Experiment]:
        """Rounds until the limits; returns those of now."""
        for experiment in self.lab.ledger.all(self.campaign):
            if experiment.verdict is None:
                self.lab.resume(experiment)
        baseline, began, done = self._describe(), time.monotonic(), []
        for number in range(1, self.limits.rounds + 1):
            left = self.limits.seconds - (time.monotonic() - began)
            if left <= 0:
                self.lab.runner.note("the time is over")
                break
            self.lab.runner.note(f"round {number} of {self.limits.rounds}")
            done.append(self._round(number, baseline, left))
        return done

    def best(self) -> tuple[Code, int | None]:
        """The state that the next round starts from, and the experiment that it is from."""
        kept = [e for e in self.lab.ledger.all(self.campaign) if e.verdict == "kept"]
        if not kept or kept[-1].proposal.candidate.code is None:
            return self._start, None
        code = kept[-1].proposal.candidate.code
        # By its own commit: the patch is for readers of the ledger.
        return Code(code.commit, code.tree), kept[-1].id

    def _round(self, number: int, baseline: str, left: float) -> Experiment:
        best, parent = self.best()
        earlier = self.lab.ledger.all(self.campaign)
        subject = Subject(code=best)
        # Entered before anything happens, so that a round that is killed is on record.
        id = self.lab.ledger.begin(
            self.lab.propose(
                "round", f"round {number}", subject, subject, self.protocol,
                campaign=self.campaign, parent=parent, repository=self.git.where,
            )
        )  # fmt: skip
        place = Workplace(self.git, self.folder / f"round-{id}", best.commit)
        try:
            (place.folder / BRIEF).write_text(
                brief(self.goal, self.protocol, earlier, baseline, self.test)
            )
            return self._try(place, id, number, best, left)
        except (_Discard, HeadgateError) as error:
            self.lab.ledger.finish(id, "discarded", str(error), {})
            self.lab.runner.note(f"experiment {id}: discarded: {error}")
            return self.lab.ledger.get(id)
        finally:
            place.close()

    def _try(self, place: Workplace, id: int, number: int, best: Code, left: float) -> Experiment:
        before = self.git.refs()
        env = environment(place.folder, self.goal, self.lab.ledger.path, id, number, sys.executable)
        log = place.folder / "command.log"
        limit = min(self.limits.command_s, left)
        ended = run_command(self.command, place.work, env, limit, log)
        hypothesis = read_hypothesis(place.folder, f"round {number}")
        code = place.collect(f"{hypothesis}\n\nExperiment {id} of {self.campaign}.")
        candidate = Subject(code=code or best)
        self.lab.ledger.change(id, candidate=candidate, hypothesis=hypothesis)
        if ended.late:
            raise _Discard(f"the command took longer than {limit:g} s and was ended")
        if ended.status:
            raise _Discard(f"the command failed with status {ended.status}: {_last(ended.tail)}")
        if moved := sorted({*before.splitlines()} - {*self.git.refs().splitlines()}):
            raise _Discard(f"the repository was changed meanwhile; it had {', '.join(moved[:5])}")
        if code is None:
            raise _Discard("the command changed nothing")
        if touched := forbidden_paths(changed_paths(self.git, best.tree, code.tree)):
            raise _Discard(f"it changes what judges it: {', '.join(touched[:5])}")
        built = self._build(code, best)
        self._test(place, code, built)
        experiment = self.lab.runner.run(id)
        if experiment.verdict == "kept":
            place.keep(branch_name(id, hypothesis), code.commit)
        return experiment

    def _test(self, place: Workplace, code: Code, built: Path) -> None:
        """Run the tests in a checkout of the commit, which holds nothing but the commit."""
        folder = place.folder / "checkout"
        Builder(self.git, place.folder).check_out(code.tree, folder)
        env = {"PYTHONPATH": str(built), "HEADGATE_LAB_PYTHON": sys.executable,
               "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
        log = place.folder / "test.log"
        ended = run_command(self.test, folder, env, self.limits.test_s, log)
        if ended.late:
            raise _Discard(f"the tests took longer than {self.limits.test_s:g} s")
        if ended.status:
            raise _Discard(f"the tests fail: {_last(ended.tail)}")


def _last(tail: str) -> str:
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    return (lines or ["no message"])[-1][:300]


def builder_build(builder: Builder) -> Build:
    """Build both sides in the same way; the candidate's folder."""

    def build(candidate: Code, baseline: Code) -> Path:
        plain = replace(candidate, patch="")
        builder.compare(plain, baseline)
        builder(baseline)
        return builder(plain)

    return build
