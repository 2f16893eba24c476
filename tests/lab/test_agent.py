"""`headgate lab agent` with a scripted stand-in that proposes good, bad, broken, cheating
and hanging changes to a throw-away repository."""

from __future__ import annotations

import os
import subprocess
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from headgate.errors import ResourceError, UsageError
from headgate.lab.agent import Agent, Limits
from headgate.lab.brief import brief
from headgate.lab.build import Builder, forbidden_paths
from headgate.lab.command import MARK, run_command
from headgate.lab.experiment import Code, Experiment, Protocol, Sample, Subject
from headgate.lab.git import Git, code_of_patch, code_of_ref
from headgate.lab.lab import Lab
from headgate.lab.ledger import Ledger
from headgate.store import Store
from tests.conftest import DemoStore

#: What the throw-away program is: how fast, and what it says.
FILES = {
    "src/headgate/engine.txt": "speed 100\nsays 7\n",
    "src/headgate/measure/bench.txt": "honest\n",
    "tests/test_it.txt": "strict\n",
    "README.md": "hello\n",
    ".gitignore": "ignored\n",
}
ENGINE = "src/headgate/engine.txt"

#: Each round's proposal, and the verdict that it must get.
ROUNDS = [
    ("good", "sed -i 's/speed 100/speed 110/' {engine}", "kept", "lies above"),
    ("slower", "sed -i 's/speed 110/speed 100/' {engine}", "discarded", "does not|cannot reach"),
    ("wrong answer", "printf 'speed 300\\nsays 8\\n' > {engine}", "discarded", "its text is not"),
    ("does not build", "rm {engine}", "discarded", "cannot be built"),
    ("fails the tests", "printf 'speed 150\\nsays 7\\nbug\\n' > {engine}", "discarded",
     "the tests fail: there is a bug"),
    ("edits the benchmark", "echo 'speed x 9' > src/headgate/measure/bench.txt", "discarded",
     "changes what judges it: src/headgate/measure/bench.txt"),
    ("edits the tests", "sed -i 's/110/200/' {engine}; rm tests/test_it.txt", "discarded",
     "changes what judges it: tests/test_it.txt"),
    ("hangs", "sed -i 's/110/200/' {engine}; (setsid sleep 600 &) ; sleep 600", "discarded",
     "took longer than"),
    ("crashes", "sed -i 's/110/200/' {engine}; echo oh no; exit 3", "discarded",
     "failed with status 3: oh no"),
    ("does nothing", "true", "discarded", "changed nothing"),
    ("writes main", "sed -i 's/110/200/' {engine}; git commit -qam x; git branch -f main HEAD; "
     "git update-ref refs/heads/main HEAD", "kept", "lies above"),
    ("good again", "sed -i 's/speed 200/speed 230/' {engine}", "kept", "lies above"),
    ("moves main by its path", "sed -i 's/230/400/' {engine}; "
     "git -C {repo} update-ref refs/heads/main HEAD~1", "discarded",
     "changed meanwhile; it had refs/heads/main "),
]  # fmt: skip


@dataclass
class Bed:
    """A repository, and what measures it."""

    git: Git
    lab: Lab
    folder: Path

    def agent(self, command: str, rounds: int, **more: float) -> Agent:
        limits = Limits(rounds, more.pop("seconds", 60.0), more.pop("command_s", 20.0), 20.0)
        return Agent(
            self.lab, self.git, command, Protocol(pairs=6), campaign="agent", start="main",
            folder=self.folder / "rounds", build=self.build, limits=limits,
            test="! grep -q bug src/headgate/engine.txt || { echo there is a bug; exit 1; }",
        )  # fmt: skip

    def build(self, candidate: Code, baseline: Code) -> Path:
        if ENGINE not in self.git("ls-tree", "-r", "--name-only", candidate.tree):
            raise ResourceError("it cannot be built")
        return self.folder

    def measure(self, subject: Subject, protocol: Protocol, seed: int) -> Sample:
        assert subject.code is not None
        text = self.git("show", f"{subject.code.tree}:{ENGINE}").split()
        return Sample(float(text[1]) + seed % 2, [[int(text[3]), seed]])

    def branches(self) -> dict[str, str]:
        found = self.git("for-each-ref", "--format=%(refname:short) %(objectname)", "refs/heads")
        return dict(line.split() for line in found.splitlines())


@pytest.fixture
def bed(tmp_path: Path, demo_store: DemoStore) -> Bed:
    repo = tmp_path / "repo"
    for name, text in FILES.items():
        (repo / name).parent.mkdir(parents=True, exist_ok=True)
        (repo / name).write_text(text)
    git = Git(repo)
    git("init", "--quiet", "--initial-branch", "main")
    git("add", "--all")
    git("commit", "--quiet", "-m", "older")
    git("commit", "--quiet", "--allow-empty", "-m", "begin")
    found = Bed(git, None, tmp_path)  # type: ignore[arg-type]
    found.lab = Lab(
        Ledger(tmp_path / "ledger"), Store.open(demo_store(4)), measure=found.measure,
        folder=lambda code: tmp_path,
    )  # fmt: skip
    return found


def script(folder: Path, repo: Path, rounds: list[tuple[str, str]]) -> str:
    """A command that proposes something else in each round."""
    lines = ["case $HEADGATE_LAB_ROUND in"]
    for number, (hypothesis, change) in enumerate(rounds, 1):
        lines.append(f"{number}) echo '{hypothesis}' > \"$HEADGATE_LAB_HYPOTHESIS\"")
        lines.append(f"   {change.format(engine=ENGINE, repo=repo)};;")
    path = folder / "stand-in.sh"
    path.write_text("\n".join([*lines, "esac"]) + "\n")
    return f"sh {path}"


def test_every_verdict_is_right_and_main_is_never_written(bed: Bed) -> None:
    main = bed.branches()["main"]
    files = {p: p.read_bytes() for p in bed.git.where.rglob("*")
             if p.is_file() and ".git" not in p.parts}  # fmt: skip
    rounds = ROUNDS[:-1]
    command = script(bed.folder, bed.git.where, [(name, change) for name, change, *_ in rounds])
    found = bed.agent(command, len(rounds), command_s=2.0).run()
    assert [e.proposal.hypothesis for e in found] == [name for name, *_ in rounds]
    check(found, rounds)
    branches = bed.branches()
    assert branches.pop("main") == main
    assert set(branches) == {"lab/1-good", "lab/11-writes-main", "lab/12-good-again"}
    assert files == {p: p.read_bytes() for p in bed.git.where.rglob("*")
                     if p.is_file() and ".git" not in p.parts}  # fmt: skip
    assert bed.git("status", "--porcelain") == ""
    # Kept ones are chained, and nothing else is in them.
    assert bed.git("rev-parse", "lab/11-writes-main^") == branches["lab/1-good"]
    assert bed.git("rev-parse", "lab/12-good-again^") == branches["lab/11-writes-main"]
    assert bed.git("show", f"lab/12-good-again:{ENGINE}") == "speed 230\nsays 7"
    assert [e.proposal.parent for e in found][-2:] == [1, 11]
    assert list((bed.folder / "rounds").iterdir()) == []


def check(found: list[Experiment], rounds: list[tuple[str, str, str, str]]) -> None:
    import re

    for e, (name, _, verdict, why) in zip(found, rounds, strict=True):
        assert e.verdict == verdict, (name, e.why)
        assert re.search(why, e.why), (name, e.why)


def test_branch_that_is_moved_by_its_path_costs_the_round(bed: Bed) -> None:
    command = script(bed.folder, bed.git.where, [ROUNDS[-1][:2]])
    found = bed.agent(command.replace("230", "100"), 1).run()
    check(found, [ROUNDS[-1]])


def test_patch_of_a_round_is_in_the_ledger_and_applies(bed: Bed) -> None:
    [found] = bed.agent(script(bed.folder, bed.git.where, [ROUNDS[0][:2]]), 1).run()
    code = found.proposal.candidate.code
    assert code is not None and "+speed 110" in code.patch
    again = code_of_patch(bed.git, code_of_ref(bed.git, "main"), code.patch.encode())
    assert again.tree == code.tree


def test_campaign_goes_on_from_its_best_state(bed: Bed) -> None:
    bed.agent(script(bed.folder, bed.git.where, [ROUNDS[0][:2]]), 1).run()
    agent = bed.agent(script(bed.folder, bed.git.where, [("more", ROUNDS[0][1].replace(
        "speed 100/speed 110", "speed 110/speed 130"))]), 1)  # fmt: skip
    assert agent.best()[1] == 1
    [found] = agent.run()
    assert found.verdict == "kept" and found.proposal.parent == 1
    assert found.ratio == pytest.approx(130 / 110, rel=0.01)


def test_killed_round_is_void_and_never_counted(bed: Bed) -> None:
    def killed(*_: object) -> Path:
        raise KeyboardInterrupt

    agent = bed.agent(script(bed.folder, bed.git.where, [ROUNDS[0][:2]]), 1)
    agent._build = killed
    with pytest.raises(KeyboardInterrupt):
        agent.run()
    [left] = bed.lab.ledger.open_ones()
    [found] = bed.agent(script(bed.folder, bed.git.where, [ROUNDS[0][:2]]), 1).run()
    assert bed.lab.ledger.get(left.id).verdict == "void"
    assert found.proposal.parent is None and found.verdict == "kept"


def test_time_bounds_the_rounds(bed: Bed) -> None:
    began = time.monotonic()
    found = bed.agent("sleep 30", 50, seconds=0.6).run()
    assert 1 <= len(found) <= 3 and time.monotonic() - began < 15
    assert all("took longer" in e.why for e in found)


def test_command_gets_a_brief(bed: Bed) -> None:
    out = bed.folder / "seen"
    bed.agent(f'cp "$HEADGATE_LAB_BRIEF" {out}; env > {out}.env', 2).run()
    text, env = out.read_text(), (bed.folder / "seen.env").read_text()
    assert "more tokens per second" in text and "`src/headgate/measure`" in text
    assert "- 1 **discarded**: round 1: the command changed nothing" in text
    assert "HEADGATE_LAB_ROUND=2" in env and f"HEADGATE_LAB_LEDGER={bed.folder}" in env
    assert "roofline of it" in brief("g", Protocol(), [], "roofline of it", "t")


@pytest.mark.parametrize(
    ("path", "forbidden"),
    [
        ("src/headgate/measure/bench.py", True),
        ("src/headgate/lab/verdict.py", True),
        ("src/headgate/evals/run.py", True),
        ("tests/ops/test_cpu.py", True),
        ("benchmarks/goals.py", True),
        ("pyproject.toml", True),
        ("src/headgate/ops/conftest.py", True),
        ("sitecustomize.py", True),
        ("src/headgate/ops/cpu.py", False),
        ("native/kernels/avx2.cpp", False),
        ("src/headgate/measured.py", False),
    ],
)
def test_what_judges_a_change_may_not_be_part_of_it(path: str, forbidden: bool) -> None:
    assert bool(forbidden_paths([path])) == forbidden


def test_nothing_that_a_command_starts_outlives_it(tmp_path: Path) -> None:
    if not Path("/proc/self/environ").exists():
        pytest.skip("needs /proc")
    started = "sleep 300 & setsid sleep 300 & (setsid sh -c 'sleep 300 & sleep 300' &)"
    for end, late in (("", False), ("; sleep 300", True)):
        marker = f"T{os.getpid()}{late}"
        ended = run_command(f"{started}{end}", tmp_path, {"WHO": marker}, 1.0, tmp_path / "log")
        assert ended.late == late
        left = [p for p in Path("/proc").glob("[0-9]*") if f"WHO={marker}" in environ(p)]
        assert left == []
    assert MARK not in os.environ


def environ(process: Path) -> str:
    try:
        return (process / "environ").read_text(errors="replace")
    except OSError:
        return ""


def test_output_of_a_command_is_kept(tmp_path: Path) -> None:
    ended = run_command("echo one; echo two >&2; exit 4", tmp_path, {}, 10, tmp_path / "log")
    assert (ended.status, ended.tail) == (4, "one\ntwo\n")


# -- building


@pytest.fixture
def package(tmp_path: Path) -> Git:
    """A repository that holds a package of the same name."""
    repo = tmp_path / "package"
    (repo / "src/headgate").mkdir(parents=True)
    (repo / "src/headgate/__init__.py").write_text("which = 'first'\n")
    git = Git(repo)
    git("init", "--quiet", "--initial-branch", "main")
    git("add", "--all")
    git("commit", "--quiet", "-m", "one")
    return git


def test_build_is_what_processes_import_though_another_is_installed(
    package: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = Builder(package, tmp_path / "builds")
    # As if the installed native module had been built from the same sources.
    monkeypatch.setattr(builder, "_installed_key", lambda: builder._native_key("main^{tree}"))
    patch = textwrap.dedent("""\
        --- a/src/headgate/__init__.py
        +++ b/src/headgate/__init__.py
        @@ -1 +1 @@
        -which = 'first'
        +which = 'second'
        """).encode()
    first = code_of_ref(package, "main")
    second = code_of_patch(package, first, patch)
    builder.compare(first, second)
    import sys

    for code, expected in ((first, "first"), (second, "second")):
        folder = builder(code)
        assert folder == builder(code)
        program = "import headgate, headgate._native as n; print(headgate.which, n.__file__)"
        done = subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(folder)},
            capture_output=True, text=True, check=True, cwd=tmp_path,
        )  # fmt: skip
        which, native = done.stdout.split()
        assert which == expected and native.startswith(str(folder))
    assert package("status", "--porcelain") == "" and package("diff", "HEAD") == ""


def test_tree_without_a_package_and_patch_that_does_not_fit_are_refused(
    package: Git, tmp_path: Path
) -> None:
    base = code_of_ref(package, "main")
    for patch in (b"no patch", b"\xff\xfe", b"--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n"):
        with pytest.raises(UsageError):
            code_of_patch(package, base, patch)
    with pytest.raises(UsageError, match="no commit"):
        code_of_ref(package, "--help")
    package("rm", "-q", "-r", "src")
    package("commit", "--quiet", "-m", "two", "--allow-empty")
    with pytest.raises(ResourceError, match="holds no src/headgate"):
        Builder(package, tmp_path / "builds")(code_of_ref(package, "HEAD"))
