"""Building a state of the source so that a process can import it instead of what is
installed."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import headgate
from headgate import _native
from headgate.errors import ResourceError
from headgate.lab.experiment import Code
from headgate.lab.git import Git, GitError, is_under

PACKAGE = "src/headgate"
#: What the native module is made of.
NATIVE = ("native", "CMakeLists.txt", "pyproject.toml")
#: What judges a change may not be part of it: the benchmark, the tests, the suites, the
#: laboratory, and whatever decides how they are run.
PROTECTED = (
    "src/headgate/measure", "src/headgate/lab", "src/headgate/evals", "src/headgate/demo",
    "src/headgate/cli/lab.py", "src/headgate/cli/bench.py", "src/headgate/cli/eval.py",
    "src/headgate/stream/profile.py", "benchmarks", "tests", "demo", "pyproject.toml",
    "Makefile", "scripts", ".github", ".gitattributes",
)  # fmt: skip
#: Files that change how Python or pytest runs, wherever they lie.
PROTECTED_NAMES = ("conftest.py", "sitecustomize.py", "usercustomize.py", "pytest.ini",
                   "tox.ini", "setup.cfg", ".coveragerc")  # fmt: skip

#: Python runs this before anything else, from the path; an editable installation would
#: come before the path otherwise.
CUSTOMIZE = """\
import sys

def _editable(finder):
    names = (getattr(finder, "__module__", ""), getattr(type(finder), "__module__", ""))
    return any("editable" in name and "headgate" in name for name in names)

sys.meta_path[:] = [finder for finder in sys.meta_path if not _editable(finder)]
"""
#: Seconds for a native build.
BUILD_S = 3600.0


def forbidden_paths(paths: Sequence[str]) -> list[str]:
    """Those of ``paths`` that a change may not touch."""
    return [
        path
        for path in paths
        if is_under(path, PROTECTED) or path.rpartition("/")[2] in PROTECTED_NAMES
    ]


class Builder:
    """Makes folders that hold a package, one for each tree. What has been built is used
    again.

    Args:
        git: the repository that has the trees.
        folder: for the builds.
    """

    def __init__(self, git: Git, folder: Path) -> None:
        self.git, self._folder = git, folder
        self._reuse = False

    def compare(self, a: Code, b: Code) -> None:
        """Say what will be compared: both sides then get their native modules in the same
        way, from what is installed if that is the same for both."""
        key = self._native_key(a.tree)
        self._reuse = key == self._native_key(b.tree) == self._installed_key()

    def __call__(self, code: Code) -> Path:
        """The folder to put first on Python's path.

        Raises:
            ResourceError: the tree holds no package, or its native module cannot be built.
        """
        reuse = self._reuse
        module_from = "installed" if reuse else "built"
        target = self._folder / f"{code.tree[:16]}-{module_from}-{sys.implementation.cache_tag}"
        if target.exists():
            return target
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=self._folder) as temporary:
            made = Path(temporary) / "made"
            source = Path(temporary) / "source"
            self.check_out(code.tree, source)
            if not (source / PACKAGE / "__init__.py").is_file():
                raise ResourceError(f"{code} holds no {PACKAGE}")
            shutil.copytree(source / PACKAGE, made / "headgate")
            module = Path(_native.__file__) if reuse else _compile(source, Path(temporary))
            shutil.copy2(module, made / "headgate" / module.name)
            (made / "sitecustomize.py").write_text(CUSTOMIZE)
            with suppress(OSError):  # another process was faster
                made.rename(target)
        return target

    def check_out(self, tree: str, folder: Path) -> None:
        """The files of a tree, with nothing of git."""
        folder.mkdir(parents=True)
        with tarfile.open(fileobj=io.BytesIO(self.git.raw("archive", "--format=tar", tree))) as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extractall(folder, filter="data")
            else:
                tar.extractall(folder)

    def _native_key(self, tree: str) -> str:
        """The same for the same sources of the native module."""
        lines = self.git("ls-tree", tree, "--", *NATIVE)
        return hashlib.sha256(f"{sys.version_info[:2]}{lines}".encode()).hexdigest()[:12]

    def _installed_key(self) -> str:
        """Of the sources that the installed module was built from, if that can be told: it
        was installed in place from this repository, whose sources are as committed."""
        here = Path(headgate.__file__).resolve()
        root = self.git.where.resolve()
        if not here.is_relative_to(root):
            return "unknown"
        module = Path(_native.__file__).stat().st_mtime
        sources = [root / "CMakeLists.txt", *(root / "native").rglob("*")]
        if any(path.is_file() and path.stat().st_mtime > module for path in sources):
            return "unknown"
        try:
            if self.git("status", "--porcelain", "--", *NATIVE[:2]):
                return "unknown"
            return self._native_key("HEAD^{tree}")
        except GitError:
            return "unknown"


def _compile(source: Path, temporary: Path) -> Path:
    """The native module of a checkout, built by pip as an installation would."""
    target = temporary / "installed"
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
        "--disable-pip-version-check", "--target", str(target), str(source),
    ]  # fmt: skip
    env = {name: v for name, v in os.environ.items() if not name.startswith(("GIT_", "PIP_"))}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=BUILD_S, env=env,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ResourceError(f"the native module took longer than {BUILD_S:g} s to build") from None
    found = sorted((target / "headgate").glob("_native*"))
    if done.returncode or not found:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        errors = [line for line in lines if "error" in line.lower()] or lines
        raise ResourceError(f"the native module cannot be built: {errors[0].strip()[:300]}")
    return found[0]
