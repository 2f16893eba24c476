"""All suites on one target: what `headgate eval` does."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import headgate
from headgate.engine import Engine
from headgate.errors import UsageError
from headgate.evals import gate
from headgate.evals.engine_target import engine_target
from headgate.evals.point import DIVERGENCE, expert_bytes_per_token
from headgate.evals.run import run_suite, summarize
from headgate.evals.suites import SUITES, divergence, find_suite
from headgate.evals.suites.items import Item, load_items, some, suite_file
from headgate.evals.target import MAX_TOKENS, Target

Note = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        suites: names of generating suites.
        file: prompts of the one suite instead of its own.
        limit: prompts of each kind.
        batch: questions asked at a time.
        text: measure divergence on this file.
    """

    suites: Sequence[str] = tuple(SUITES)
    modes: Sequence[str] = ("free", "constrained")
    file: Path | None = None
    limit: int | None = None
    batch: int = 4
    max_tokens: int = MAX_TOKENS
    text: Path | None = None
    note: Note = field(default=lambda _: None)

    def __post_init__(self) -> None:
        for name, value in (("limit", self.limit), ("batch", self.batch)):
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}, it must be at least 1")
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}, it must be at least 1")
        if self.file is not None and len(self.suites) != 1:
            raise UsageError("a file of prompts is for one suite: name it with --suite")

    def items(self, suite: str) -> list[Item]:
        """The prompts of a suite, checked."""
        path = self.file or suite_file(suite)
        return some(load_items(path, find_suite(suite).check), self.limit)


def evaluate(target: Target, request: Request) -> dict[str, Any]:
    """``{headgate, target, suites: {suite: {mode: figures}}, speed, seconds}``."""
    begin = time.monotonic()
    prompts = {name: request.items(name) for name in request.suites}  # complains first
    suites: dict[str, Any] = {}
    for name, items in prompts.items():
        suite = find_suite(name)
        for mode in request.modes:
            if mode in suite.modes and (mode == "free" or target.constrains):
                request.note(f"{name}, {mode}: {len(items)} prompts")
                found = run_suite(
                    suite,
                    target,
                    items,
                    mode,
                    batch=request.batch,
                    max_tokens=request.max_tokens,
                )
                suites.setdefault(name, {})[mode] = summarize(found)
    return {
        "headgate": headgate.__version__,
        "target": target.describe(),
        "suites": suites,
        "speed": target.speed.to_dict(),
        "seconds": time.monotonic() - begin,
    }


def evaluate_store(
    store: Path, options: dict[str, Any], request: Request, reference: Path | None, diverge: bool
) -> dict[str, Any]:
    """The same for an engine of this process, divergence included.

    Args:
        options: of :meth:`headgate.engine.Engine.load`.
        reference: store of the full model; ``store`` with all its bits unless given.
        diverge: measure divergence.
    """
    found: dict[str, Any] = {}
    for name in request.suites:
        request.items(name)  # a broken file is reported before the model is loaded
    if diverge:
        found[DIVERGENCE] = _divergence(store, options, request, reference or store)
    engine = Engine.load(store, sequences=request.batch, **options)
    with engine_target(engine, request.batch) as target:
        document = evaluate(target, request)
    bytes_ = expert_bytes_per_token(engine)
    return {**document, **found, "expert_bytes_per_token": bytes_}


def _divergence(
    store: Path, options: dict[str, Any], request: Request, reference: Path
) -> dict[str, Any]:
    """One engine after the other: both at once would halve each other's memory."""
    full = {name: value for name, value in options.items() if name not in gate.KNOBS}

    def passages(engine: Engine) -> list[divergence.Passage]:
        if request.text is not None:
            return divergence.text_passages(engine, request.text, request.limit)
        return divergence.own_passages(engine, request.limit)

    with tempfile.TemporaryDirectory(prefix="headgate-eval-") as folder:
        path = Path(folder) / "reference.f32"
        engine = Engine.load(reference, **full)
        texts = passages(engine)
        request.note(f"divergence: {sum(p.scored for p in texts)} tokens of the reference")
        divergence.write_reference(engine, texts, path)
        del engine
        engine = Engine.load(store, **options)
        if passages(engine) != texts:
            raise UsageError(f"{reference} has another tokenizer or template than {store}")
        request.note("divergence: the same with the settings asked for")
        rows = divergence.open_reference(path, texts, engine.config.vocab_size)
        found = divergence.summarize(divergence.compare(engine, texts, rows))
        del rows
    return found
