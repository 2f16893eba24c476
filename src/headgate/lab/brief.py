"""What a command of `headgate lab agent` is told: a file, and its environment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headgate.lab.build import PROTECTED, PROTECTED_NAMES
from headgate.lab.experiment import Experiment, Protocol

BRIEF, HYPOTHESIS = "BRIEF.md", "HYPOTHESIS.txt"
#: Experiments that are listed in full.
MOST = 50


def brief(
    goal: str, protocol: Protocol, earlier: Sequence[Experiment], baseline: str, test: str
) -> str:
    """The brief of a round, in Markdown.

    Args:
        earlier: experiments of the campaign so far.
        baseline: report of the baseline: its roofline, and where its time goes.
        test: command that must succeed.
    """
    return f"""# One change that makes headgate faster

{goal}

## What to do

Change the source in the current directory, which is a fresh copy of the best state so far.
Make one change. Write what you expect of it, in one line, to the file that
`HEADGATE_LAB_HYPOTHESIS` names. Whatever lies in the directory when you end is the change;
you need not commit it, and what you do with git is not looked at.

## How it is judged

1. The tests must pass: `{test}`
2. It is measured against the best state so far, in pairs of fresh processes in random
   order: {protocol.metric}, prompt of {protocol.prompt_tokens} tokens,
   {protocol.generated_tokens} generated, {"warm" if protocol.warm else "cold"}.
3. It is kept only if the 95 % interval of the ratio lies above {1 + protocol.min_gain:.3f}.
4. In every measured generation the tokens must be those of the baseline.

## What may be touched

Anything but these, a change of which is discarded unmeasured:

{_items([f"`{path}`" for path in PROTECTED])}
- files named {", ".join(f"`{name}`" for name in PROTECTED_NAMES)}

## The baseline

```
{baseline.strip() or "(not measured)"}
```

## Experiments so far

{_experiments(earlier)}
"""


def _experiments(earlier: Sequence[Experiment]) -> str:
    if not earlier:
        return "None."
    left = len(earlier) - MOST
    lines = [f"- {left} earlier ones are left out"] if left > 0 else []
    lines += [
        f"- {e.id} **{e.verdict or 'open'}**: {_line(e.proposal.hypothesis)}: {_line(e.why)}"
        for e in earlier[-MOST:]
    ]
    return "\n".join(lines)


def _items(words: Sequence[str]) -> str:
    return "\n".join(f"- {word}" for word in words)


def _line(text: str) -> str:
    return " ".join(text.split())


def environment(
    folder: Path, goal: str, ledger: Path, number: int, round_number: int, python: str
) -> dict[str, str]:
    """Variables of a round's command.

    Args:
        folder: holds the brief, and is where the hypothesis is to be written.
        number: of the experiment.
    """
    return {
        "HEADGATE_LAB_BRIEF": str(folder / BRIEF),
        "HEADGATE_LAB_HYPOTHESIS": str(folder / HYPOTHESIS),
        "HEADGATE_LAB_GOAL": goal,
        "HEADGATE_LAB_LEDGER": str(ledger),
        "HEADGATE_LAB_EXPERIMENT": str(number),
        "HEADGATE_LAB_ROUND": str(round_number),
        "HEADGATE_LAB_PYTHON": python,
    }


def read_hypothesis(folder: Path, otherwise: str) -> str:
    """What the command wrote, its first line that is not empty."""
    try:
        text = (folder / HYPOTHESIS).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return otherwise
    return next((line.strip()[:200] for line in text.splitlines() if line.strip()), otherwise)
