"""``headgate lab``: experiments on speed, in a ledger."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from headgate.demo import demo_store
from headgate.engine import parse_size
from headgate.errors import ResourceError, UsageError
from headgate.lab.agent import GOAL, TEST, Agent, Limits, builder_build
from headgate.lab.build import Builder, forbidden_paths
from headgate.lab.chart import chart, series
from headgate.lab.experiment import Experiment, Metric, Protocol, Subject, claims_exactness
from headgate.lab.git import Git, changed_paths, code_of_patch, code_of_ref, find_repository
from headgate.lab.knobs import parse_knobs
from headgate.lab.lab import Lab, builds_folder, default_ledger, is_synthetic, open_experiments
from headgate.lab.ledger import Ledger
from headgate.lab.page import page
from headgate.lab.report import details, experiments_tsv, measurements_tsv, table
from headgate.lab.search import Outcome, Search, knob_space, require_optuna
from headgate.measure.bench import Matrix, bench
from headgate.measure.bench_job import Job
from headgate.measure.report import text
from headgate.paths import cache_folder
from headgate.store import Store
from headgate.stream.profile import ENGINE_KNOBS, STREAM_KNOBS

lab = typer.Typer(
    help="Try what is faster: interleaved experiments, a ledger of all of them, a search.",
    no_args_is_help=True,
)

LedgerFile = Annotated[
    Path | None, typer.Option("--ledger", help="File; one in the user's cache if not given.")
]
StorePath = Annotated[Path | None, typer.Option(help="A store; the embedded demo if not given.")]
MetricName = Annotated[
    str, typer.Option(help="decode, prompt, or answer: both together. Speeds, so more is better.")
]
PromptTokens = Annotated[int, typer.Option("--prompt-length", help="Tokens of the prompts.")]
GeneratedTokens = Annotated[int, typer.Option("--generation-length", help="Tokens generated.")]
Cold = Annotated[bool, typer.Option("--cold", help="New processes; else they settle first.")]
Memory = Annotated[str | None, typer.Option(help="Budget of each process, such as 8G.")]
Routes = Annotated[Path | None, typer.Option(help="Route by this trace, not by routers.")]
Greedy = Annotated[
    bool | None,
    typer.Option(help="Decode the model's own tokens, or random ones; random if weights are."),
]
Pairs = Annotated[int, typer.Option(help="Pairs of processes at most.")]
MinGain = Annotated[float, typer.Option(help="Share that the whole interval must exceed.")]
Seed = Annotated[int, typer.Option(help="Of prompts and of the order within pairs.")]
Repo = Annotated[Path, typer.Option(help="The project's git repository.")]


@lab.command()
def run(
    hypothesis: Annotated[str, typer.Option(help="What is expected, and why.")],
    store: StorePath = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KNOB=VALUE of the candidate; repeatable.")
    ] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="KNOB=VALUE that both sides have; repeatable.")
    ] = None,
    ref: Annotated[str | None, typer.Option(help="Commit that is the candidate.")] = None,
    patch: Annotated[Path | None, typer.Option(help="Patch that is the candidate.")] = None,
    base: Annotated[
        str, typer.Option(help="Commit that --ref or --patch is compared with.")
    ] = "HEAD",
    repo: Repo = Path(),
    metric: MetricName = "decode",
    prompt_length: PromptTokens = 128,
    generation_length: GeneratedTokens = 64,
    cold: Cold = False,
    memory: Memory = None,
    routes: Routes = None,
    greedy: Greedy = None,
    pairs: Pairs = 12,
    min_gain: MinGain = 0.02,
    max_loss: Annotated[
        float, typer.Option(help="Of a lossy candidate: share of right answers it may lose.")
    ] = 0.05,
    quality_limit: Annotated[
        int | None, typer.Option(help="Prompts of each kind of the quality suites; all otherwise.")
    ] = None,
    quality_suites: Annotated[
        str, typer.Option(help="Of the quality suites only these, such as tools,recall.")
    ] = "",
    lossy: Annotated[
        bool, typer.Option("--lossy", help="The code's text may differ: ask the quality suites.")
    ] = False,
    seed: Seed = 0,
    ledger: LedgerFile = None,
) -> None:
    """Measure one change against the baseline and give a verdict.

    The change is a setting (--set), a commit (--ref) or a patch. Lossy knobs, and code with
    --lossy, must hold the quality suites; everything else must give the same text.
    """
    if not set_ and ref is None and patch is None:
        raise UsageError("there is no change: give --set, --ref or --patch")
    if ref is not None and patch is not None:
        raise UsageError("--ref and --patch exclude each other")
    knobs = parse_knobs(baseline or [])
    before, after = Subject(knobs), Subject({**knobs, **parse_knobs(set_ or [])})
    builder = None
    if ref is not None or patch is not None:
        git = find_repository(repo)
        before, after = _with_code(git, before, after, base, ref, patch)
        builder = _builder(git, before, after)
    if before == after:
        raise UsageError("candidate and baseline are the same")
    opened = _open(store)
    protocol = _protocol(opened, metric, prompt_length, generation_length, cold, memory, routes,
                         greedy, pairs, min_gain, seed, max_loss=max_loss,
                         quality_suites=quality_suites, quality_limit=quality_limit,
                         exact=claims_exactness(before, after) and not lossy)  # fmt: skip
    book = Ledger(ledger or default_ledger(), _note)
    with book.measuring():
        place = Lab(book, opened, folder=builder, note=_note)
        where = None if builder is None else builder.git.where
        found = place.runner.start(
            place.propose("run", hypothesis, before, after, protocol, repository=where)
        )
    print(details(found, book.measurements(found.id)))


@lab.command("list")
def list_command(ledger: LedgerFile = None) -> None:
    """Every experiment with its verdict."""
    print(table(_ledger(ledger).all()))


@lab.command()
def show(
    number: Annotated[int, typer.Argument(help="Of the experiment.")], ledger: LedgerFile = None
) -> None:
    """One experiment: what was compared, every pair, the verdict and why."""
    book = _ledger(ledger)
    print(details(book.get(number), book.measurements(number)))


@lab.command()
def export(
    measurements: Annotated[
        bool, typer.Option("--measurements", help="Every measured process, not experiments.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="File; stdout if not given.")] = None,
    ledger: LedgerFile = None,
) -> None:
    """The ledger as tab-separated values; tabs and line ends inside are written \\t and \\n."""
    book = _ledger(ledger)
    lines = measurements_tsv(book.measurements()) if measurements else experiments_tsv(book.all())
    if out is None:
        for line in lines:
            print(line)
    else:
        _write(out, "".join(line + "\n" for line in lines))


@lab.command()
def report(
    html: Annotated[Path, typer.Option(help="Page to write.")] = Path("lab.html"),
    plot: Annotated[
        Path | None, typer.Option(help="Progress chart by itself, as SVG; the largest series.")
    ] = None,
    ledger: LedgerFile = None,
) -> None:
    """Write a page: progress over time, kept and discarded, best so far, every experiment."""
    if plot is not None and plot.suffix.lower() != ".svg":
        raise UsageError(f"the chart is SVG, so its file is to be named .svg, not {plot.name}")
    path = ledger or default_ledger()
    found = _ledger(ledger).all()
    _write(html, page(found, str(path)))
    if plot is not None:
        name, largest = max(series(found).items(), key=lambda s: len(s[1]), default=("empty", []))
        _write(plot, chart(name, largest) + "\n")
    print(f"wrote {html}" + (f" and {plot}" if plot else ""))


@lab.command()
def resume(
    number: Annotated[int | None, typer.Argument(help="One of them; all if not given.")] = None,
    ledger: LedgerFile = None,
) -> None:
    """Go on with experiments that were interrupted; those that cannot are marked void."""
    book = _ledger(ledger)
    with book.measuring():
        for experiment in open_experiments(book, number):
            found = _resume(book, experiment)
            print(f"experiment {found.id}: {found.verdict}: {found.why}")


@lab.command()
def search(
    store: StorePath = None,
    trials: Annotated[int, typer.Option(help="Experiments, those of before included.")] = 60,
    knobs: Annotated[
        str | None, typer.Option(help="Of these only, such as depth,threads; else all.")
    ] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="KNOB=VALUE that all have; repeatable.")
    ] = None,
    metric: MetricName = "decode",
    prompt_length: PromptTokens = 128,
    generation_length: GeneratedTokens = 64,
    cold: Cold = False,
    memory: Memory = None,
    routes: Routes = None,
    greedy: Greedy = None,
    pairs: Annotated[int, typer.Option(help="Pairs of a trial at most.")] = 6,
    validation_pairs: Annotated[int, typer.Option(help="Pairs of the winner's last run.")] = 12,
    min_gain: MinGain = 0.02,
    seed: Seed = 0,
    ledger: LedgerFile = None,
) -> None:
    """Search the run-time knobs of a store on this machine and keep the best as a profile.

    No knob of the search changes the output. The same command goes on after a kill. The
    profile is what `run` and `serve` then follow, unless told --no-profile.
    """
    require_optuna()
    opened = _open(store)
    before = Subject(parse_knobs(baseline or []))
    protocol = _protocol(opened, metric, prompt_length, generation_length, cold, memory, routes,
                         greedy, pairs, min_gain, seed)  # fmt: skip
    if unfit := sorted(set(before.knobs) - {*ENGINE_KNOBS, *STREAM_KNOBS}):
        raise UsageError(f"a profile cannot hold {unfit[0]}, so no baseline of a search has it")
    names = None if knobs is None else [word.strip() for word in knobs.split(",")]
    space = knob_space(opened, names)
    book = Ledger(ledger or default_ledger(), _note)
    with book.measuring():
        place = Lab(book, opened, note=_note)
        found = Search(
            place, protocol, space, trials=trials, pairs=validation_pairs,
            folder=cache_folder(), baseline=before,
        ).run()  # fmt: skip
    print(_outcome(found))


@lab.command()
def agent(
    command: Annotated[str, typer.Option(help="For a shell: changes the code of a worktree.")],
    store: StorePath = None,
    goal: Annotated[str, typer.Option(help="What the command is told to reach.")] = GOAL,
    campaign: Annotated[str, typer.Option(help="Name; one that exists goes on.")] = "agent",
    start: Annotated[str, typer.Option(help="Commit that it begins from.")] = "HEAD",
    repo: Repo = Path(),
    test: Annotated[str, typer.Option(help="Command that must succeed.")] = TEST,
    rounds: Annotated[int, typer.Option(help="At most.")] = 10,
    hours: Annotated[float, typer.Option(help="At most, all rounds together.")] = 8.0,
    minutes: Annotated[float, typer.Option(help="At most, for one run of the command.")] = 30.0,
    metric: MetricName = "decode",
    prompt_length: PromptTokens = 128,
    generation_length: GeneratedTokens = 64,
    cold: Cold = False,
    memory: Memory = None,
    routes: Routes = None,
    greedy: Greedy = None,
    pairs: Pairs = 12,
    min_gain: MinGain = 0.02,
    seed: Seed = 0,
    ledger: LedgerFile = None,
) -> None:
    """Have a command change the code, round by round, and keep what is faster.

    Each round is a fresh worktree with a brief (HEADGATE_LAB_BRIEF). A change that builds,
    passes the tests, gives the same text and is faster becomes a branch lab/N-...; the next
    round starts from it. No other branch is written. It is no sandbox: the command runs
    with your rights.
    """
    opened, git = _open(store), find_repository(repo)
    protocol = _protocol(opened, metric, prompt_length, generation_length, cold, memory, routes,
                         greedy, pairs, min_gain, seed)  # fmt: skip
    builder = Builder(git, builds_folder())
    book = Ledger(ledger or default_ledger(), _note)
    with book.measuring():
        found = Agent(
            Lab(book, opened, folder=builder, note=_note),
            git,
            command,
            protocol,
            campaign=campaign,
            start=start,
            folder=cache_folder() / "lab" / "rounds",
            build=builder_build(builder),
            goal=goal,
            test=test,
            limits=Limits(rounds, hours * 3600, minutes * 60),
            describe=lambda: _baseline(opened, protocol),
        ).run()
    print(table(found))


def _with_code(
    git: Git, before: Subject, after: Subject, base: str, ref: str | None, patch: Path | None
) -> tuple[Subject, Subject]:
    """Both sides with their code."""
    old = code_of_ref(git, base)
    if ref is not None:
        new = code_of_ref(git, ref)
    else:
        assert patch is not None
        try:
            new = code_of_patch(git, old, patch.read_bytes())
        except OSError as error:
            raise UsageError(f"cannot read {patch}: {error.strerror}") from None
    if touched := forbidden_paths(changed_paths(git, old.tree, new.tree)):
        raise UsageError(
            f"the change touches what would judge it: {', '.join(touched[:5])}; "
            "leave that out, so that both sides are measured alike"
        )
    return Subject(before.knobs, old), Subject(after.knobs, new)


def _builder(git: Git, before: Subject, after: Subject) -> Builder:
    builder = Builder(git, builds_folder())
    if before.code is not None and after.code is not None:
        builder.compare(before.code, after.code)
    return builder


def _resume(book: Ledger, experiment: Experiment) -> Experiment:
    p = experiment.proposal
    path, builder = Path(str(p.store.get("path", ""))), None
    try:
        opened = Store.open(path)
    except Exception as error:
        book.finish(experiment.id, "void", f"interrupted, and its store is gone: {error}", {})
        return book.get(experiment.id)
    if p.candidate.code is not None and p.kind != "round":
        git = find_repository(Path(str(p.machine.get("repository", "."))))
        builder = _builder(git, p.baseline, p.candidate)
    return Lab(book, opened, folder=builder, note=_note).resume(experiment)


def _protocol(
    store: Store,
    metric: str,
    prompt: int,
    generated: int,
    cold: bool,
    memory: str | None,
    routes: Path | None,
    greedy: bool | None,
    pairs: int,
    min_gain: float,
    seed: int,
    **more: Any,
) -> Protocol:
    name: Metric = metric  # type: ignore[assignment]  # it complains
    return Protocol(
        name,
        prompt,
        generated,
        not cold,
        parse_size(memory) if memory else None,
        None if routes is None else str(routes.resolve()),
        not is_synthetic(store) if greedy is None else greedy,
        pairs,
        min_gain,
        seed=seed,
        **more,
    )


def _baseline(store: Store, protocol: Protocol) -> str:
    """Roofline and time split of what is installed, for the brief."""
    _note("measuring the baseline for the brief")
    job = Job(str(store.path), (), trace=protocol.routes, greedy=protocol.greedy)
    matrix = Matrix(
        (protocol.prompt_tokens,),
        (protocol.generated_tokens,),
        (protocol.memory,),
        ("warm",) if protocol.warm else ("cold",),
        repeats=1,
    )
    return text(bench(store, job, matrix).to_dict())


def _outcome(found: Outcome) -> str:
    lines = [table(found.trials)]
    if found.winner is None:
        lines.append("no trial clears the minimum gain: there is no profile")
    elif found.validation is not None:
        lines.append(f"best trial: {found.winner.id}; measured afresh as {found.validation.id}: "
                     f"{found.validation.why}")  # fmt: skip
        kept = "it does not hold: there is no profile"
        lines.append(kept if found.profile is None else f"profile: {found.profile}")
    return "\n".join(lines)


def _open(store: Path | None) -> Store:
    return Store.open(demo_store() if store is None else store)


def _ledger(path: Path | None) -> Ledger:
    return Ledger.existing(path or default_ledger(), _note)


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from None


def _note(words: str) -> None:
    print(f"headgate: {words}", file=sys.stderr, flush=True)
