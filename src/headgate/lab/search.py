"""A search over run-time knobs: trials against the defaults, all of them in the ledger,
then the best one once more, and a profile if that holds."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headgate.engine.budget import PROMPT_CHUNKS
from headgate.engine.chunks import grid_of
from headgate.errors import UsageError
from headgate.lab.experiment import Experiment, Protocol, Subject
from headgate.lab.knobs import Knobs, describe_knobs
from headgate.lab.lab import Lab
from headgate.measure.machine import core_count
from headgate.store import Store
from headgate.stream import POLICIES, StreamOptions
from headgate.stream.profile import Profile, save_profile
from headgate.stream.tuning import CHUNKS, DEPTHS

#: 0 leaves a knob to the engine; so does None.
Space = dict[str, tuple[Any, ...]]
#: Times that a sampler may propose what has been measured before it is asked no more.
REPEATS = 50


def knob_space(store: Store, names: Sequence[str] | None = None) -> Space:
    """Knobs that leave the output as it is, and the values that are tried.

    Raises:
        UsageError: one of ``names`` is not among them.
    """
    record = store.layout.stride
    space: Space = {
        "chunk_bytes": (0, *(size for size in CHUNKS if size < 2 * record)),
        "depth": (0, *DEPTHS),
        "threads": (*range(1, core_count()), None),
        "policy": tuple(sorted(POLICIES)),
        "lookahead": (0, 2, 4, 8, 16),
        # Shorter ones than the model's grid are cut elsewhere, which changes bits. What a
        # chunk's activations do not take goes to the expert cache: this is how memory is
        # split.
        "prompt_chunk": (None, *sorted(c for c in PROMPT_CHUNKS if grid_of(c) == grid_of(512))),
    }
    if names is None:
        return space
    for name in names:
        if name not in space:
            raise UsageError(f"{name!r} is not searched over; there are {', '.join(space)}")
    return {name: space[name] for name in space if name in names}


@dataclass(frozen=True)
class Outcome:
    """What a search has found.

    Attributes:
        winner: :func:`best_trial` of those that hold the guard; None if none clears the
            minimum gain.
        validation: of the winner.
        profile: file of the profile; None if there is nothing to keep.
    """

    campaign: str
    trials: list[Experiment]
    winner: Experiment | None = None
    validation: Experiment | None = None
    profile: Path | None = None


class Search:
    """One search. The same arguments find the same search again and go on with it.

    Args:
        baseline: knobs that every candidate begins from.
        trials: experiments, those of an earlier run included.
        pairs: of the validation; a trial has the protocol's.
        folder: headgate's cache directory, for the profile.
        sampler: of Optuna, instead of TPE.
    """

    def __init__(
        self,
        lab: Lab,
        protocol: Protocol,
        space: Space,
        *,
        trials: int,
        pairs: int,
        folder: Path,
        baseline: Subject | None = None,
        sampler: Any = None,
    ) -> None:
        if trials < 1:
            raise UsageError(f"trials is {trials}, it must be at least 1")
        require_optuna()
        self.lab, self.protocol = lab, protocol
        self.trials, self.pairs, self.folder = trials, pairs, folder
        self.baseline = baseline or Subject()
        # What the baseline has must be among what is tried.
        self.space = {
            name: values if self._default(name) in values else (*values, self._default(name))
            for name, values in space.items()
        }
        self._sampler = sampler
        replace(protocol, pairs=pairs)  # complains
        about = [lab.store_about["key"], lab.machine_about["key"], lab.machine_about["program"],
                 self.baseline.to_dict(), protocol.to_dict(), self.space]  # fmt: skip
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        self.campaign = f"search-{digest[:8]}"

    def run(self) -> Outcome:
        """Measure what is missing of it."""
        for experiment in self.lab.ledger.all(self.campaign):
            if experiment.verdict is None:
                self.lab.resume(experiment)
        self._measure_trials()
        trials = self._done("trial")
        winner = best_trial(trials, self.protocol)
        if winner is None:
            return Outcome(self.campaign, trials)
        validation = self._validate(winner)
        if validation.verdict != "kept":
            return Outcome(self.campaign, trials, winner, validation)
        return Outcome(self.campaign, trials, winner, validation, self._save(validation))

    def _done(self, kind: str) -> list[Experiment]:
        return [e for e in self.lab.ledger.all(self.campaign) if e.proposal.kind == kind]

    def _measure_trials(self) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        done = self._done("trial")
        study = optuna.create_study(
            direction="maximize",
            sampler=self._sampler
            or optuna.samplers.TPESampler(seed=self.protocol.seed + len(done)),
        )
        known: dict[str, Experiment | None] = {"{}": None}
        for experiment in done:
            study.add_trial(self._as_trial(experiment))
            known[_key(self._changes(experiment))] = experiment
        count, repeats = len(done), 0
        while count < self.trials and repeats < REPEATS:
            trial = study.ask()
            knobs = self._suggest(trial)
            if _key(knobs) in known:
                repeats += 1
                _tell(study, trial, known[_key(knobs)])
                continue
            count, repeats = count + 1, 0
            self.lab.runner.note(f"trial {count} of {self.trials}: {describe_knobs(knobs)}")
            known[_key(knobs)] = found = self._measure(knobs)
            _tell(study, trial, found)
        if count < self.trials:
            self.lab.runner.note("every setting that is proposed has been measured")

    def _measure(self, knobs: Knobs) -> Experiment:
        candidate = replace(self.baseline, knobs={**self.baseline.knobs, **knobs})
        hypothesis = f"{describe_knobs(knobs)} is faster"
        return self.lab.runner.start(
            self.lab.propose(
                "trial", hypothesis, self.baseline, candidate, self.protocol,
                campaign=self.campaign,
            )
        )  # fmt: skip

    def _validate(self, winner: Experiment) -> Experiment:
        """The winner of many is partly lucky; this one measurement is not chosen."""
        candidate = winner.proposal.candidate
        for found in self._done("validation"):
            if found.proposal.candidate == candidate and found.verdict != "void":
                return found
        protocol = replace(self.protocol, pairs=self.pairs, seed=self.protocol.seed + 1_000_000)
        hypothesis = f"the best of {len(self._done('trial'))} trials, experiment {winner.id}, holds"
        return self.lab.runner.start(
            self.lab.propose(
                "validation", hypothesis, self.baseline, candidate, protocol,
                campaign=self.campaign, parent=winner.id,
            )
        )  # fmt: skip

    def _save(self, validation: Experiment) -> Path:
        samples = [m for m in self.lab.ledger.measurements(validation.id) if m.side == "B"]
        budget = max(int(m.sample.raw.get("budget_bytes", 0)) for m in samples)
        profile = Profile(
            self.lab.store_about["key"],
            self.lab.machine_about["key"],
            dict(validation.proposal.candidate.knobs),
            budget,
            self.protocol.metric,
            float(validation.result["ratio"]),
            float(validation.result["low"]),
            validation.id,
            str(self.lab.ledger.path.resolve()),
        )
        return save_profile(profile, self.lab.store, self.folder)

    # -- knobs as Optuna's parameters: places in the lists of the space

    def _suggest(self, trial: Any) -> Knobs:
        knobs: Knobs = {}
        for name, values in self.space.items():
            if name == "policy":
                value = trial.suggest_categorical(name, values)
            else:
                value = values[trial.suggest_int(name, 0, len(values) - 1)]
            if value != self._default(name):
                knobs[name] = value
        return knobs

    def _as_trial(self, experiment: Experiment) -> Any:
        import optuna

        changes, parameters, distributions = self._changes(experiment), {}, {}
        for name, values in self.space.items():
            value = changes.get(name, self._default(name))
            if name == "policy":
                parameters[name] = value
                distributions[name] = optuna.distributions.CategoricalDistribution(values)
            else:
                parameters[name] = values.index(value)
                distributions[name] = optuna.distributions.IntDistribution(0, len(values) - 1)
        value = objective(experiment)
        state = optuna.trial.TrialState.FAIL if value is None else None
        return optuna.trial.create_trial(
            params=parameters, distributions=distributions, value=value,
            state=state or optuna.trial.TrialState.COMPLETE,
        )  # fmt: skip

    def _changes(self, experiment: Experiment) -> Knobs:
        """Knobs that a trial had other than the baseline."""
        before = self.baseline.knobs
        knobs = experiment.proposal.candidate.knobs
        return {n: v for n, v in knobs.items() if n not in before or before[n] != v}

    def _default(self, name: str) -> Any:
        if name in self.baseline.knobs:
            return self.baseline.knobs[name]
        return getattr(StreamOptions(), name, None)


def objective(experiment: Experiment | None) -> float | None:
    """What a search maximises: the ratio; None where the guard did not hold or nothing could
    be measured. The baseline itself (None) is 1."""
    if experiment is None:
        return 1.0
    if experiment.verdict == "void" or "low" not in experiment.result:
        return None
    return None if experiment.result.get("guard") else experiment.ratio


def best_trial(trials: Sequence[Experiment], protocol: Protocol) -> Experiment | None:
    """Of the trials whose ratio is above the minimum gain the one whose interval begins
    highest: among many that differ by chance, the highest ratio is likely to be chance."""
    good = [e for e in trials if (objective(e) or 0.0) > 1 + protocol.min_gain]
    return max(good, key=lambda e: float(e.result["low"]), default=None)


def require_optuna() -> None:
    """Raise :class:`UsageError` unless Optuna is installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import optuna  # noqa: F401
    except ImportError:
        raise UsageError('a search needs Optuna: pip install "headgate[lab]"') from None


def _tell(study: Any, trial: Any, experiment: Experiment | None) -> None:
    import optuna

    value = objective(experiment)
    if value is None:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    else:
        study.tell(trial, value)


def _key(knobs: Knobs) -> str:
    return json.dumps(knobs, sort_keys=True)
