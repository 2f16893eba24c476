"""A suite over a server and its users' SDK scores what it scores in process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCORES = Path(__file__).parent.parent.parent / "benchmarks" / "serving" / "same_scores.py"


def test_suite_scores_the_same_over_the_sdk() -> None:
    command = [sys.executable, str(SCORES), "--limit", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("yes") == 2 and "over the SDK" in done.stdout
