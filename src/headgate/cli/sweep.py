"""``headgate sweep``: quality, speed and bytes over a grid of lossy knobs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from headgate.convert import ConvertOptions, convert
from headgate.demo import CHECKPOINT
from headgate.engine import parse_size
from headgate.engine.expert_bits import ExpertBits
from headgate.errors import ResourceError, UsageError
from headgate.evals import gate, report
from headgate.evals.point import DIVERGENCE, Plan
from headgate.evals.suites import find_suite
from headgate.evals.sweep import Knobs, Point, Sweep, grid, parse_bits
from headgate.evals.target import MAX_TOKENS
from headgate.store import Store

#: Experts are read from the store of the least of these that holds their bits.
STORED_BITS = (4, 8, 16)


def sweep(
    store: Annotated[
        Path | None,
        typer.Argument(help="A store; without one, a checkpoint is converted as needed."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="To be converted; the embedded demo's if not given."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for results; the same command resumes there.")
    ] = Path("sweep"),
    expert_bits: Annotated[
        str | None,
        typer.Option(
            help="Such as 8,4,3,2 or 4,2:4,2:4@-1; of a given store 2:4@each is every layer in "
            "turn. All that the store can be read at if not given."
        ),
    ] = None,
    experts_per_token: Annotated[
        str | None, typer.Option(help="Such as 8,4,2; from the trained number to 1.")
    ] = None,
    dense_bits: Annotated[
        str | None, typer.Option(help="8, 16 or both, with --checkpoint. Default 16.")
    ] = None,
    group_size: Annotated[
        str | None, typer.Option(help="Of 32,64,128, with --checkpoint. Default 64.")
    ] = None,
    one_at_a_time: Annotated[
        bool, typer.Option("--one-at-a-time", help="Change one knob only, from the first values.")
    ] = False,
    suites: Annotated[
        str, typer.Option(help="Which suites to run.")
    ] = "tools,schema,recall,divergence",
    limit: Annotated[int | None, typer.Option(help="Prompts of each kind.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = MAX_TOKENS,
    text: Annotated[Path | None, typer.Option(help="Measure divergence on this text.")] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Store of the full model, for divergence.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Questions asked at a time.")] = 4,
    memory: Annotated[str | None, typer.Option(help="Memory of each process, such as 8G.")] = None,
    context: Annotated[int | None, typer.Option(help="Longest sequence in tokens.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of each process.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes at a time.")] = 1,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on a Ray cluster; `auto` finds one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure every point of a grid; write OUT/report.html and OUT/report.md.

    A point that is finished is not measured again. Figures are also kept beside the store,
    for `headgate run` to name when it is asked for the same settings.
    """
    if jobs < 1 or batch < 1 or (limit is not None and limit < 1):
        raise UsageError("jobs, batch and limit are at least 1")
    names = tuple(word.strip() for word in suites.split(","))
    for name in names:
        if name != DIVERGENCE:
            find_suite(name)
    plan = Plan(names, limit, max_tokens=max_tokens, text=None if text is None else str(text))
    if store is None:
        stores = Stores(checkpoint or CHECKPOINT, out)
        full = stores.make(16, 16, None)
        dense, groups = _numbers(dense_bits or "16"), _numbers(group_size or "64")
        bits = parse_bits(expert_bits or "16,8,4,3,2")
        knobs = grid(bits, _experts(full, experts_per_token), dense, groups,
                     one_at_a_time=one_at_a_time)  # fmt: skip
        points = [Point(each, stores.of(each)) for each in knobs]
    else:
        if checkpoint or dense_bits or group_size:
            raise UsageError("a store is given: --checkpoint and what belongs to it are not")
        full = store
        points = _points(full, expert_bits, experts_per_token, one_at_a_time)
    run = Sweep(
        out,
        points,
        reference or full,
        plan,
        batch,
        parse_size(memory) if memory else None,
        threads,
        context,
    )
    run.run(jobs, _note, ray)
    _finish(run, as_json)


def _points(path: Path, bits: str | None, k: str | None, one: bool) -> list[Point]:
    """The grid of a store, checked before anything is run."""
    store = Store.open(path)
    readable = store.manifest.experts.readable_bits
    chosen = list(reversed(readable)) if bits is None else parse_bits(_each(store, bits))
    for each in chosen:
        # Refuses bits and layers that the store does not have.
        ExpertBits.parse(each).of(store.layout, store.manifest.layers)
    knobs = grid(chosen, _experts(path, k), one_at_a_time=one)
    return [Point(each, path) for each in knobs]


def _each(store: Store, text: str) -> str:
    """With ``2:4@each`` written out as one mode for each layer."""
    words = [word.strip() for word in text.split(",")]
    layers = store.manifest.layers
    return ",".join(
        f"{word.removesuffix('each')}{layer}"
        for word in words
        for layer in (layers if word.endswith("@each") else [""])
    )


def _experts(store: Path, text: str | None) -> list[int]:
    """Numbers of experts per token: those given, or from the trained one to 1."""
    trained = int(Store.open(store).manifest.config.get("num_experts_per_tok", 1))
    found = list(range(trained, 0, -1)) if text is None else _numbers(text)
    if max(found) > trained:
        raise UsageError(f"the model was trained with {trained} experts per token")
    return found


def _numbers(text: str) -> list[int]:
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f"{text!r} cannot be: give numbers, such as 8,4,2") from None
    if min(found) < 1:
        raise UsageError(f"{text!r} cannot be: numbers are at least 1")
    return found


class Stores:
    """Stores of a checkpoint in OUT/stores, converted when they are first needed."""

    def __init__(self, checkpoint: Path, out: Path) -> None:
        self._checkpoint, self._folder = checkpoint, out / "stores"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(f"cannot use {self._folder}: {error.strerror}") from None

    def of(self, knobs: Knobs) -> Path:
        """The store that a point is measured on."""
        bits = stored_bits(knobs.expert_bits)
        return self.make(bits, knobs.dense_bits or 16, knobs.group_size)

    def make(self, bits: int, dense: int, group: int | None) -> Path:
        """A store of these bits; a conversion that was killed is resumed."""
        group = None if bits == 16 else group
        name = f"e{bits}-d{dense}" + (f"-g{group}" if group else "")
        path = self._folder / f"{name}.headgate"
        if not path.exists():
            _note(f"converting {self._checkpoint} to {path}")
            convert(self._checkpoint, path, ConvertOptions(bits, dense, group))
        return path


def stored_bits(bits: int | str | None) -> int:
    """Bits of the store to read ``bits`` from: 2 and 3 are prefixes of 4, as they are in
    the store that `headgate convert` makes by default."""
    wanted = ExpertBits.parse(bits or 16).high
    found = next((stored for stored in STORED_BITS if stored >= wanted), None)
    if found is None:
        raise UsageError(f"there are no {wanted}-bit experts")
    return found


def _finish(run: Sweep, as_json: bool) -> None:
    """Reports, and figures beside the stores."""
    results = run.results()
    title = f"headgate sweep: {run.reference.name}"
    markdown = report.markdown(results)
    _write(run.out / "report.html", report.page(results, title))
    _write(run.out / "report.md", f"# {title}\n\n{markdown}")
    by_store: dict[Path, list[dict[str, object]]] = {}
    for point, result in zip(run.points, results, strict=True):
        by_store.setdefault(point.store, []).append(result)
    for path, found in by_store.items():
        _keep(path, found)
    print(json.dumps(results, ensure_ascii=False) if as_json else markdown)
    _note(f"{run.out / 'report.html'} and {run.out / 'report.md'} are written")


def _keep(store: Path, results: list[dict[str, object]]) -> None:
    """A store that cannot be written is no reason to lose the reports."""
    try:
        gate.record(Store.open(store), results)
    except ResourceError as error:
        _note(f"note: figures are not kept beside the store: {error}")


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from None


def _note(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
