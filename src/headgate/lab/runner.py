"""Measuring an experiment: pairs in random order, until there is a verdict."""

from __future__ import annotations

import time
from collections.abc import Callable

from headgate.errors import HeadgateError
from headgate.lab.experiment import (
    Experiment,
    Measure,
    Measurement,
    Proposal,
    Quality,
    Sample,
    Side,
    Subject,
)
from headgate.lab.ledger import Ledger
from headgate.lab.statistics import orders
from headgate.lab.verdict import Decision, judge, judge_quality, pairs_of

Note = Callable[[str], None]


class _SideFailed(Exception):
    """One of the subjects cannot be measured."""

    def __init__(self, side: Side, error: HeadgateError) -> None:
        super().__init__(str(error))
        self.side = side


class Runner:
    """Measures experiments of a ledger.

    Args:
        measure: a subject in a fresh process.
        quality: answers of a subject; needed for lossy candidates alone.
        note: told what is being measured.
    """

    def __init__(
        self,
        ledger: Ledger,
        measure: Measure,
        quality: Quality | None = None,
        note: Note = lambda _: None,
    ) -> None:
        self.ledger, self.note = ledger, note
        self._measure, self._quality = measure, quality

    def start(self, proposal: Proposal) -> Experiment:
        """Enter an experiment, measure it, and give its verdict."""
        return self.run(self.ledger.begin(proposal))

    def run(self, id: int) -> Experiment:
        """Measure what is missing of an experiment and give its verdict.

        Pairs that were completed before an interruption count; a half one does not.
        """
        experiment = self.ledger.get(id)
        if experiment.verdict is None:
            decision = self._decide(experiment)
            self.ledger.finish(id, decision.verdict, decision.why, decision.result)
            experiment = self.ledger.get(id)
            self.note(f"experiment {id}: {decision.verdict}: {decision.why}")
        return experiment

    def _decide(self, experiment: Experiment) -> Decision:
        p = experiment.proposal
        measured = self.ledger.measurements(experiment.id)
        pairs = pairs_of(measured)
        for pair in {m.pair for m in measured if m.counted} - set(pairs):
            self.ledger.discount(experiment.id, pair)
        decision = judge(pairs, p.protocol)
        for number, order in enumerate(orders(p.protocol.pairs, p.protocol.seed)):
            if decision is not None:
                break
            if number in pairs:
                continue
            self.note(f"experiment {experiment.id}: pair {number + 1} of {p.protocol.pairs}")
            try:
                self._pair(experiment, number, order)
            except _SideFailed as error:
                return self._failed(experiment, error)
            pairs = pairs_of(self.ledger.measurements(experiment.id))
            decision = judge(pairs, p.protocol)
        assert decision is not None  # the last pair leads to one
        if decision.verdict != "kept" or p.protocol.exact:
            return decision
        return self._judge_quality(experiment, decision)

    def _pair(self, experiment: Experiment, number: int, order: str) -> None:
        for position, side in enumerate(order):
            name: Side = "A" if side == "A" else "B"
            began = time.time()
            sample = self._one(experiment, name, number)
            self.ledger.add(Measurement(experiment.id, number, position, name, began, sample))

    def _one(self, experiment: Experiment, side: Side, number: int) -> Sample:
        p = experiment.proposal
        subject = p.baseline if side == "A" else p.candidate
        try:
            # Another prompt in each pair, the same one on both sides.
            return self._measure(subject, p.protocol, p.protocol.seed + number)
        except HeadgateError as error:
            raise _SideFailed(side, error) from None

    def _failed(self, experiment: Experiment, failed: _SideFailed) -> Decision:
        """Void if the baseline cannot be measured either, for then it says nothing."""
        measured = self.ledger.measurements(experiment.id)
        if failed.side == "B" and not any(m.side == "A" for m in measured):
            try:
                self._one(experiment, "A", 0)
            except _SideFailed as other:
                failed = other
        if failed.side == "A":
            return Decision("void", f"the baseline cannot be measured: {failed}")
        return Decision("discarded", f"the candidate cannot be measured: {failed}")

    def _judge_quality(self, experiment: Experiment, faster: Decision) -> Decision:
        p = experiment.proposal
        if self._quality is None:
            return Decision("void", "there is nothing to measure its quality with", faster.result)
        answers = []
        for side, subject in (("baseline", p.baseline), ("candidate", p.candidate)):
            self.note(f"experiment {experiment.id}: quality of the {side}")
            try:
                answers.append(self._ask(subject, experiment))
            except HeadgateError as error:
                verdict = "void" if side == "baseline" else "discarded"
                why = f"the quality of the {side} cannot be measured: {error}"
                return Decision(verdict, why, faster.result)  # type: ignore[arg-type]
        quality = judge_quality(answers[0], answers[1], p.protocol.max_loss)
        why = faster.why + "; " + quality.why if quality.verdict == "kept" else quality.why
        return Decision(quality.verdict, why, {**faster.result, **quality.result})

    def _ask(self, subject: Subject, experiment: Experiment) -> dict[str, dict[str, bool | None]]:
        assert self._quality is not None
        return self._quality(subject, experiment.proposal.protocol)
