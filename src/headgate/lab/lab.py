"""One store, one ledger, one machine: entering, measuring and resuming experiments."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import headgate
from headgate import _native
from headgate.errors import UsageError
from headgate.lab.experiment import (
    Experiment,
    Kind,
    Measure,
    Proposal,
    Protocol,
    Quality,
    Subject,
)
from headgate.lab.ledger import Ledger
from headgate.lab.process import Folder, Processes
from headgate.lab.runner import Runner
from headgate.measure.machine import describe_drive, describe_machine
from headgate.paths import cache_folder
from headgate.store import Store
from headgate.stream.profile import machine_key, store_key

Note = Callable[[str], None]


def default_ledger() -> Path:
    """Where the ledger is unless another is named."""
    return cache_folder() / "lab" / "ledger.sqlite"


def builds_folder() -> Path:
    """Where builds of candidates are kept."""
    return cache_folder() / "lab" / "builds"


def program_key() -> str:
    """The same for the same files of the installed package."""
    digest = hashlib.sha256()
    root = Path(headgate.__file__).parent
    for path in [*sorted(root.rglob("*.py")), Path(_native.__file__)]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class Lab:
    """Experiments on one store.

    Args:
        folder: where the code of a subject is built; needed for code alone.
        measure, quality: instead of processes of this machine.
    """

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        *,
        folder: Folder | None = None,
        measure: Measure | None = None,
        quality: Quality | None = None,
        note: Note = lambda _: None,
    ) -> None:
        processes = Processes(store, folder)
        self.ledger, self.store = ledger, store
        self.runner = Runner(
            ledger, measure or processes.measure, quality or processes.quality, note
        )
        self.store_about = describe_store(store)
        self.machine_about = describe_here(store.path)

    def propose(
        self,
        kind: Kind,
        hypothesis: str,
        baseline: Subject,
        candidate: Subject,
        protocol: Protocol,
        *,
        campaign: str = "",
        parent: int | None = None,
        repository: Path | None = None,
    ) -> Proposal:
        """An experiment on this store and machine, to be begun."""
        machine = dict(self.machine_about)
        if repository is not None:
            machine["repository"] = str(repository)
        return Proposal(
            kind,
            hypothesis,
            baseline,
            candidate,
            protocol,
            self.store_about,
            machine,
            campaign,
            parent,
        )

    def resume(self, experiment: Experiment) -> Experiment:
        """Go on with an experiment that was interrupted, or find it void."""
        why = self._unlike(experiment.proposal)
        if experiment.verdict is None and why is not None:
            self.ledger.finish(experiment.id, "void", f"interrupted, and {why}", {})
            return self.ledger.get(experiment.id)
        return self.runner.run(experiment.id)

    def _unlike(self, proposal: Proposal) -> str | None:
        """Why measurements of now do not belong to an experiment; None if they do."""
        if proposal.kind == "round":
            return "what its command was about to do is not known"
        if proposal.store.get("key") != self.store_about["key"]:
            return "the store has changed"
        if proposal.machine.get("key") != self.machine_about["key"]:
            return "this is another machine"
        if proposal.machine.get("program") != self.machine_about["program"]:
            return "headgate has changed"
        return None


def describe_store(store: Store) -> dict[str, Any]:
    """Identity, path and shape."""
    manifest = store.manifest
    return {
        "key": store_key(store),
        "path": str(store.path.resolve()),
        "model_type": manifest.model_type,
        "layers": len(manifest.layers),
        "experts": manifest.num_experts,
        "expert_bits": manifest.experts.bits,
    }


def describe_here(path: Path) -> dict[str, Any]:
    """Identity of this machine and of the program, and what people call them."""
    return {
        "key": machine_key(path),
        "program": program_key(),
        "headgate": headgate.__version__,
        **describe_machine(),
        "drive": describe_drive(path),
    }


def is_synthetic(store: Store) -> bool:
    """Whether the weights are random: such a model soon repeats itself."""
    return store.manifest.provenance.get("source") == "synthetic"


def open_experiments(ledger: Ledger, number: int | None) -> list[Experiment]:
    """Interrupted experiments, or the one asked for.

    Raises:
        UsageError: the one asked for has a verdict already.
    """
    if number is None:
        return ledger.open_ones()
    found = ledger.get(number)
    if found.verdict is not None:
        raise UsageError(f"experiment {number} has its verdict: {found.verdict}")
    return [found]
