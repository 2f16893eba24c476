"""Git, as a program. Nothing here writes to a branch, the index or the files of the
repository that it is given; see the notes at each function."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from headgate.errors import ResourceError, UsageError
from headgate.lab.experiment import Code

#: Hooks and file monitors of a repository are somebody's programs; none is run.
QUIET = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "gc.auto=0")
NOBODY = {"GIT_AUTHOR_NAME": "headgate lab", "GIT_AUTHOR_EMAIL": "lab@localhost",
          "GIT_COMMITTER_NAME": "headgate lab",
          "GIT_COMMITTER_EMAIL": "lab@localhost"}  # fmt: skip


class GitError(ResourceError):
    """Git refused."""


class Git:
    """A repository.

    Args:
        where: its folder, or a bare repository.
        env: further environment.
    """

    def __init__(self, where: Path, env: dict[str, str] | None = None) -> None:
        self.where, self._env = where, env or {}

    def __call__(
        self, *words: str, data: bytes | None = None, env: Mapping[str, str] | None = None
    ) -> str:
        """What a git command prints.

        Raises:
            GitError: it failed.
        """
        return self.raw(*words, data=data, env=env).decode(errors="replace").strip()

    def raw(
        self, *words: str, data: bytes | None = None, env: Mapping[str, str] | None = None
    ) -> bytes:
        """The same, byte for byte."""
        # What a caller's own environment says of repositories is not about this one.
        kept = {name: v for name, v in os.environ.items() if not name.startswith("GIT_")}
        try:
            done = subprocess.run(
                ["git", "-C", str(self.where), *QUIET, *words],
                input=data if data is not None else b"",
                capture_output=True,
                env={**kept, **NOBODY, "GIT_TERMINAL_PROMPT": "0", **self._env, **(env or {})},
            )
        except OSError as error:
            raise ResourceError(f"cannot run git: {error.strerror}") from None
        if done.returncode:
            why = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise GitError(f"git {words[0]}: {why[-1][:300]}")
        return done.stdout

    def refs(self) -> str:
        """Every branch, tag and HEAD with its commit, to see whether any was moved."""
        return self("for-each-ref", "--format=%(refname) %(objectname)") + "\n" + self.head()

    def head(self) -> str:
        """What is checked out, by branch and commit."""
        return self("rev-parse", "--symbolic-full-name", "HEAD", "HEAD^{commit}")


def find_repository(path: Path) -> Git:
    """The repository that holds ``path``.

    Raises:
        UsageError: there is none.
    """
    try:
        return Git(Path(Git(path)("rev-parse", "--show-toplevel")))
    except GitError:
        raise UsageError(f"{path} is in no git repository: give --repo") from None


def code_of_ref(git: Git, ref: str) -> Code:
    """A committed state.

    Raises:
        UsageError: there is no such commit.
    """
    try:
        commit = git("rev-parse", "--verify", "--end-of-options", f"{ref}^{{commit}}")
    except GitError:
        raise UsageError(f"{git.where} has no commit {ref!r}") from None
    return Code(commit, git("rev-parse", f"{commit}^{{tree}}"))


def code_of_patch(git: Git, base: Code, patch: bytes) -> Code:
    """A patch on top of a commit. It is applied in an index of its own, so that the
    repository gains objects and nothing else.

    Raises:
        UsageError: it is not a patch, or does not fit.
    """
    try:
        text = patch.decode()
    except UnicodeDecodeError:
        raise UsageError("the patch is not UTF-8 text") from None
    with tempfile.TemporaryDirectory(prefix="headgate-lab-") as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        git("read-tree", base.commit, env=index)
        try:
            git("apply", "--cached", "-", data=patch, env=index)
        except GitError as error:
            raise UsageError(f"the patch does not fit {base}: {error}") from None
        return Code(base.commit, git("write-tree", env=index), text)


def changed_paths(git: Git, before: str, after: str) -> list[str]:
    """Paths that differ between two trees or commits, old names of moved files too."""
    found = git.raw("diff-tree", "-r", "-z", "--no-renames", "--name-only", before, after)
    return [name.decode(errors="surrogateescape") for name in found.split(b"\0") if name]


def diff(git: Git, before: str, after: str) -> str:
    """The difference as a patch."""
    return git.raw("diff-tree", "-p", "--binary", "--no-renames", before, after).decode(
        errors="replace"
    )


def is_under(path: str, folders: Sequence[str]) -> bool:
    """Whether a path is one of ``folders`` or lies in one."""
    return any(path == f or path.startswith(f.rstrip("/") + "/") for f in folders)
