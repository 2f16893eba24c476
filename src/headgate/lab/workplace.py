"""Where a command changes the code: a worktree of a clone that has nothing to lose.

The clone shares the repository's objects and none of its branches, so nothing that the
command does with git reaches the repository. What it leaves is read from the files alone,
with a git directory that it has never seen.
"""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from pathlib import Path

from headgate.errors import ResourceError
from headgate.lab.experiment import Code
from headgate.lab.git import Git, diff


class Workplace:
    """A round's directory.

    Args:
        git: the repository; it gains objects, and a branch by :meth:`keep`.
        folder: made for the round, removed by :meth:`close`.
        base: commit that the round starts from.

    Attributes:
        work: the worktree.
    """

    def __init__(self, git: Git, folder: Path, base: str) -> None:
        self.git, self.folder, self.base = git, folder, base
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.work = folder / "work"
        theirs = self._clone("theirs.git")
        theirs("worktree", "add", "--quiet", "--detach", str(self.work), base)

    def _clone(self, name: str) -> Git:
        """A bare repository with the repository's objects and nothing else of it."""
        path = self.folder / name
        self.git("init", "--quiet", "--bare", str(path))
        objects = self.git("rev-parse", "--path-format=absolute", "--git-path", "objects")
        (path / "objects" / "info").mkdir(parents=True, exist_ok=True)
        (path / "objects" / "info" / "alternates").write_text(objects + "\n")
        return Git(path)

    def collect(self, message: str) -> Code | None:
        """What the command has left, as a commit on the base; None if nothing changed.

        Raises:
            ResourceError: its files cannot be read.
        """
        ours = self._clone("ours.git")
        place = {"GIT_DIR": str(ours.where), "GIT_WORK_TREE": str(self.work)}
        dot = self.work / ".git"  # the command may have made it anything
        if dot.is_dir() and not dot.is_symlink():
            shutil.rmtree(dot, ignore_errors=True)
        else:
            dot.unlink(missing_ok=True)
        inside = Git(self.work, place)
        inside("read-tree", self.base)
        inside("add", "--all")
        tree = inside("write-tree")
        if tree == inside("rev-parse", f"{self.base}^{{tree}}"):
            return None
        if any(line.startswith("160000") for line in inside("ls-tree", "-r", tree).splitlines()):
            raise ResourceError("it left a repository inside the source")
        commit = inside("commit-tree", tree, "-p", self.base, "-m", message)
        # Objects alone; no branch of the repository points to them.
        pack = inside.raw("pack-objects", "--stdout", "--revs", "--quiet",
                          data=f"{commit}\n^{self.base}\n".encode())  # fmt: skip
        self.git("unpack-objects", "-q", data=pack)
        return Code(commit, tree, diff(self.git, self.base, commit))

    def keep(self, branch: str, commit: str) -> None:
        """Make a branch of its own for a commit.

        Raises:
            ResourceError: there is one of this name already.
        """
        self.git("update-ref", f"refs/heads/{branch}", commit, "0" * 40)

    def close(self) -> None:
        """Remove the directory."""
        with suppress(OSError):
            shutil.rmtree(self.folder)


def branch_name(number: int, hypothesis: str) -> str:
    """``lab/7-read-ahead-further``."""
    words = re.findall(r"[a-z0-9]+", hypothesis.lower())
    slug = "-".join(words)[:40].strip("-")
    return f"lab/{number}-{slug or 'change'}"
