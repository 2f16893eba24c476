"""The budget is a promise: under a kernel limit of that size the process lives."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.cgroups import memory_limit, run_in


@pytest.mark.parametrize("beyond", [0, 30, 60])
def test_run_lives_under_a_kernel_limit_of_its_budget(large_store: Path, beyond: int) -> None:
    command = [sys.executable, "-m", "headgate", "run", str(large_store), "Tell me a story. " * 20]
    options = ["--json", "--max-tokens", "64", "--context", "512", "--memory"]
    with memory_limit(4 << 30) as group:
        refused = run_in(group, [*command, *options, "1M"])
    match = re.search(r"smallest that works is (\d+)M", refused.stderr)
    assert match, refused.stderr
    budget = int(match[1]) + 4 + beyond
    with memory_limit(budget << 20) as group:
        done = run_in(group, [*command, *options, f"{budget}M"])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["peak_memory_bytes"] <= budget << 20
