"""A search over knobs, and the profile that it leaves."""

from __future__ import annotations

import builtins
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headgate.errors import UsageError
from headgate.lab.experiment import Protocol, Sample, Subject
from headgate.lab.knobs import KNOBS
from headgate.lab.lab import Lab
from headgate.lab.ledger import Ledger
from headgate.lab.search import Search, Space, best_trial, knob_space
from headgate.store import Store
from headgate.stream import StreamOptions
from headgate.stream.profile import (
    Profile,
    load_profile,
    profile_file,
    profile_options,
    save_profile,
)
from tests.conftest import DemoStore
from tests.lab.machines import Killed

SPACE: Space = {"depth": (0, 4, 8, 16, 32), "policy": ("lfu", "lru"), "lookahead": (0, 8)}
GIB = 1 << 30


@dataclass
class Truth:
    """What knobs are worth.

    Attributes:
        wrong: value of ``depth`` with which the text differs, however fast.
        kill_at: processes until the program is killed.
    """

    worth: dict[tuple[str, Any], float]
    wrong: int | None = None
    kill_at: int | None = None
    noise: float = 0.01
    runs: int = 0

    def measure(self, subject: Subject, protocol: Protocol, seed: int) -> Sample:
        if self.runs == self.kill_at:
            raise Killed
        self.runs += 1
        speed = 50 * float(np.exp(np.random.default_rng(self.runs).normal(0, self.noise)))
        for knob in subject.knobs.items():
            speed *= self.worth.get(knob, 1.0)
        wrong = self.wrong is not None and subject.knobs.get("depth") == self.wrong
        return Sample(speed, [[seed, 9 if wrong else 1]], {"budget_bytes": GIB})


@pytest.fixture
def store(demo_store: DemoStore) -> Store:
    return Store.open(demo_store(4))


def search(folder: Path, store: Store, truth: Truth, trials: int = 14) -> Search:
    lab = Lab(Ledger(folder / "l"), store, measure=truth.measure)
    return Search(lab, Protocol(pairs=6), SPACE, trials=trials, pairs=12, folder=folder)


WORTH = {("depth", 16): 1.2, ("depth", 4): 0.7, ("policy", "lru"): 0.9}


def test_search_finds_the_best_knob_and_saves_what_was_measured_afresh(
    tmp_path: Path, store: Store
) -> None:
    found = search(tmp_path, store, Truth(WORTH)).run()
    assert found.winner is not None and found.validation is not None
    assert found.winner.proposal.candidate.knobs["depth"] == 16
    assert found.validation.verdict == "kept" and found.validation.result["pairs"] == 12
    profile = load_profile(store, tmp_path)
    assert profile is not None
    assert profile.knobs["depth"] == 16 and profile.knobs.get("policy") != "lru"
    assert profile.experiment == found.validation.id and profile.budget_bytes == GIB
    assert 1.15 < profile.low < profile.gain < 1.25
    assert len(found.trials) == 14
    tried = [json.dumps(e.proposal.candidate.knobs) for e in found.trials]
    assert len(set(tried)) == 14 and "{}" not in tried


def test_the_winner_is_the_surest_and_not_the_luckiest(tmp_path: Path, store: Store) -> None:
    found = search(tmp_path, store, Truth(WORTH)).run().trials[:4]
    made = [(1.3, 0.9, {}), (1.1, 1.06, {}), (1.01, 1.009, {}), (2.0, 1.9, {"guard": "text"})]
    trials = [
        replace(e, result={"ratio": ratio, "low": low, **more})
        for e, (ratio, low, more) in zip(found, made, strict=True)
    ]
    assert best_trial(trials, Protocol()) is trials[1]
    assert best_trial(trials[2:], Protocol()) is None


def test_fast_setting_with_another_text_is_never_the_winner(tmp_path: Path, store: Store) -> None:
    found = search(tmp_path, store, Truth({("depth", 8): 2.0}, wrong=8)).run()
    assert any(e.proposal.candidate.knobs.get("depth") == 8 for e in found.trials)
    assert found.winner is None and load_profile(store, tmp_path) is None


def test_nothing_that_is_better_leaves_no_profile(tmp_path: Path, store: Store) -> None:
    found = search(tmp_path, store, Truth({}), trials=8).run()
    assert found.profile is None and load_profile(store, tmp_path) is None


def test_killed_search_goes_on_and_measures_nothing_twice(tmp_path: Path, store: Store) -> None:
    for kill_at in (5, 22):
        with pytest.raises(Killed):
            search(tmp_path, store, Truth(WORTH, kill_at=kill_at)).run()
    found = search(tmp_path, store, Truth(WORTH)).run()
    assert len(found.trials) == 14 and found.profile is not None
    assert all(e.verdict for e in found.trials)
    again = Truth(WORTH)
    assert search(tmp_path, store, again).run().validation == found.validation
    assert again.runs == 0


def test_space_that_is_used_up_ends_the_search(tmp_path: Path, store: Store) -> None:
    found = search(tmp_path, store, Truth({}), trials=1000).run()
    assert 10 <= len(found.trials) <= 19


def test_knobs_of_the_search_leave_the_output_as_it_is(store: Store) -> None:
    space = knob_space(store)
    assert {"chunk_bytes", "depth", "threads", "policy", "lookahead", "prompt_chunk"} == set(space)
    assert all(KNOBS[name].exact for name in space)
    assert min(c for c in space["prompt_chunk"] if c) >= 64
    assert list(knob_space(store, ["depth"])) == ["depth"]
    with pytest.raises(UsageError, match="expert_bits"):
        knob_space(store, ["expert_bits"])


def test_missing_optuna_is_said(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "optuna":
            raise ImportError
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install \"headgate\[lab\]\""):
        search(tmp_path, store, Truth({}))


# -- profiles


def profile(store: Store, folder: Path, **knobs: Any) -> Profile:
    store_key, machine = profile_file(store, folder).stem.split("-")
    return Profile(store_key, machine, knobs, GIB, "decode", 1.2, 1.1, 7, "/l")


def test_profile_is_what_the_engine_is_loaded_with(tmp_path: Path, store: Store) -> None:
    assert load_profile(store, tmp_path) is None
    assert profile_options(None, threads=3) == {"threads": 3}
    asked = profile(store, tmp_path, threads=2, prompt_chunk=128, depth=16, policy="lru")
    save_profile(asked, store, tmp_path)
    found = load_profile(store, tmp_path)
    assert found == asked
    stream = StreamOptions(depth=16, policy="lru")
    assert profile_options(found) == {"threads": 2, "prompt_chunk": 128, "stream": stream}
    # What is given comes first; a smaller budget decides on its prompt chunk itself.
    assert profile_options(found, threads=1, memory=GIB // 2) == {"threads": 1, "stream": stream}
    assert found.name == (
        "experiment 7, decode x 1.20 (threads 2, prompt_chunk 128, depth 16, policy lru)"
    )


@pytest.mark.parametrize(
    "knobs",
    [{"expert_bits": 2}, {"experts_per_token": 4}, {"refine": True}, {"throttle": 1.0},
     {"depth": -1}, {"depth": True}, {"threads": 0}, {"policy": "best"}, {"depth": "16"}],
)  # fmt: skip
def test_profile_holds_only_exact_knobs(
    tmp_path: Path, store: Store, knobs: dict[str, Any]
) -> None:
    bad = profile(store, tmp_path, **knobs)
    with pytest.raises(UsageError, match="cannot be a profile"):
        save_profile(bad, store, tmp_path)
    path = save_profile(profile(store, tmp_path, depth=4), store, tmp_path)
    path.write_text(json.dumps({"version": 1, **bad.to_dict()}))
    with pytest.raises(UsageError, match="--no-profile"):
        load_profile(store, tmp_path)


@pytest.mark.parametrize(
    "data", ["", "[]", "{}", "{", '{"version": 1}', '{"version": 2, "knobs": {}}', "null"]
)
def test_damaged_profile_is_refused_in_one_line(tmp_path: Path, store: Store, data: str) -> None:
    save_profile(profile(store, tmp_path), store, tmp_path).write_text(data)
    with pytest.raises(UsageError, match="delete it, or give --no-profile"):
        load_profile(store, tmp_path)


def test_profile_of_another_store_or_machine_is_not_followed(
    tmp_path: Path, store: Store, demo_store: DemoStore
) -> None:
    mine = profile(store, tmp_path, depth=4)
    path = save_profile(mine, store, tmp_path)
    assert load_profile(Store.open(demo_store(16)), tmp_path) is None
    path.write_text(json.dumps({"version": 1, **replace(mine, machine="0" * 16).to_dict()}))
    with pytest.raises(UsageError, match="another store or machine"):
        load_profile(store, tmp_path)
