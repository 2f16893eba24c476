"""One point of a sweep, measured in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from headgate.engine import Engine
from headgate.errors import UsageError
from headgate.evals.gate import store_identity
from headgate.evals.run import Outcome, run_suite, summarize
from headgate.evals.suites import divergence, find_suite
from headgate.evals.suites.items import Item, load_items, some, suite_file
from headgate.evals.target import MAX_TOKENS, Target

#: Measured without a target: distributions, not answers.
DIVERGENCE = "divergence"
#: Tokens of the answer whose speed is measured, and of its prompt at most.
SPEED_TOKENS, SPEED_PROMPT = 64, 64


@dataclass(frozen=True)
class Plan:
    """What is measured at every point alike.

    Attributes:
        suites: names; ``divergence`` may be among them.
        limit: prompts of each kind, None for all.
        modes: ``free``, ``constrained``.
        text: a file to measure divergence on instead of the suite's own text.
    """

    suites: tuple[str, ...] = ("tools", "schema", "recall", DIVERGENCE)
    limit: int | None = None
    modes: tuple[str, ...] = ("free", "constrained")
    max_tokens: int = MAX_TOKENS
    text: str | None = None

    def items(self, suite: str) -> list[Item]:
        """The prompts of a suite."""
        return some(load_items(suite_file(suite), find_suite(suite).check), self.limit)


@dataclass(frozen=True)
class Job:
    """A point to be measured; plain data, to be sent to another process or machine.

    Attributes:
        store: path.
        options: of :meth:`headgate.engine.Engine.load`.
        knobs: what tells this point from others, for the report.
        reference: file with the reference's log probabilities.
        batch: questions asked at a time.
        writes_reference: only writes that file.
    """

    store: str
    knobs: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    plan: Plan = field(default_factory=Plan)
    reference: str | None = None
    batch: int = 4
    writes_reference: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Job:
        """Of :meth:`to_dict`, through JSON or not."""
        plan = raw["plan"]
        lists = {name: tuple(plan[name]) for name in ("suites", "modes")}
        return cls(**{**raw, "plan": Plan(**{**plan, **lists})})


def measure(job: Job) -> dict[str, Any]:
    """All figures of a point, as plain data.

    Raises:
        HeadgateError: the store, its options or a suite cannot be used.
    """
    # Not above: commands that only plan points would load the grammar library for nothing.
    from headgate.evals.engine_target import engine_target

    begin = time.monotonic()
    engine = Engine.load(job.store, sequences=job.batch, **job.options)
    if job.writes_reference:
        if job.reference is None:
            raise UsageError("there is no place for the reference")
        divergence.write_reference(engine, passages(engine, job.plan), Path(job.reference))
        return {"seconds": time.monotonic() - begin}
    found: dict[str, Any] = {
        "knobs": job.knobs,
        "in_force": engine.knobs,
        "store": Path(job.store).name,
        "store_id": store_identity(engine.store),
        "lossy": engine.lossy,
    }
    if DIVERGENCE in job.plan.suites and job.reference is not None:
        texts = passages(engine, job.plan)
        rows = divergence.open_reference(Path(job.reference), texts, engine.config.vocab_size)
        found[DIVERGENCE] = divergence.summarize(divergence.compare(engine, texts, rows))
    found["alone"] = decode_speed(engine, passages(engine, job.plan)[0].ids)
    with engine_target(engine, job.batch) as target:
        found["suites"], found["outcomes"] = ask_all(job.plan, target, job.batch)
        found["speed"] = target.speed.to_dict()
    found["expert_bytes_per_token"] = expert_bytes_per_token(engine)
    return {**found, "seconds": time.monotonic() - begin}


def passages(engine: Engine, plan: Plan) -> list[divergence.Passage]:
    """The text that divergence is measured on."""
    if plan.text is not None:
        return divergence.text_passages(engine, Path(plan.text), plan.limit)
    return divergence.own_passages(engine, plan.limit)


def ask_all(plan: Plan, target: Target, batch: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every suite in every mode that it and the target know.

    Returns:
        suite -> mode -> figures; suite -> mode -> id -> whether it was right.
    """
    figures: dict[str, Any] = {}
    outcomes: dict[str, Any] = {}
    for name in plan.suites:
        if name == DIVERGENCE:
            continue
        suite, items = find_suite(name), plan.items(name)
        for mode in plan.modes:
            if mode not in suite.modes or (mode == "constrained" and not target.constrains):
                continue
            found = run_suite(suite, target, items, mode, batch=batch, max_tokens=plan.max_tokens)
            figures.setdefault(name, {})[mode] = summarize(found)
            outcomes.setdefault(name, {})[mode] = _right(found)
    return figures, outcomes


def _right(outcomes: list[Outcome]) -> dict[str, bool]:
    return {o.id: o.right for o in outcomes if o.right is not None}


def decode_speed(engine: Engine, prompt: Sequence[int]) -> dict[str, float]:
    """Decode speed of one answer, nothing else asked beside it, in tokens per second, its
    hit rate, and bytes read per token. The model goes on after it would have ended."""
    session = engine.new_session()
    room = max(1, min(SPEED_TOKENS, engine.context - SPEED_PROMPT - 1))
    for _ in session.generate(list(prompt[:SPEED_PROMPT]), room, stop=frozenset()):
        pass
    figures = session.generation
    assert figures is not None
    return {
        "decode_tokens_per_s": figures.tokens_per_s,
        "hit_rate": figures.hit_rate,
        "bytes_read_per_token": figures.bytes_read_per_token,
    }


def expert_bytes_per_token(engine: Engine) -> int:
    """Bytes of the routed experts that one token uses, before any cache: experts per
    token, in every layer that has experts, at the precision in force. Where that differs
    from token to token, the mean of all that the engine has processed."""
    stats = engine.experts.stats
    if (engine.experts.precision.mixed or engine.model.routing is not None) and stats.tokens:
        return round(stats.wanted_bytes / stats.tokens)
    record = engine.store.layout.prefix_bytes(engine.experts.bits)
    layers = len(engine.store.manifest.layers)
    return engine.model.experts_per_token * layers * record
