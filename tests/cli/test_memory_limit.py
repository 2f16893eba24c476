"""The budget is a promise: under a kernel limit of that size the process lives."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from headgate.convert import ConvertOptions, convert
from headgate.demo import CHECKPOINT
from tests.cgroups import memory_limit, run_in
from tests.checkpoints import tiny_checkpoint


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("limited")
    src = tiny_checkpoint(
        folder / "src",
        vocab_size=4096,
        hidden_size=256,
        moe_intermediate_size=256,
        num_experts=128,
        max_position_embeddings=1024,
        num_experts_per_tok=4,
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (src / name).write_bytes((CHECKPOINT / name).read_bytes())
    convert(src, folder / "store.headgate", ConvertOptions(expert_bits=16, dense_bits=16))
    return folder / "store.headgate"


@pytest.mark.parametrize("beyond", [0, 30, 60])
def test_run_lives_under_a_kernel_limit_of_its_budget(store: Path, beyond: int) -> None:
    command = [sys.executable, "-m", "headgate", "run", str(store), "Tell me a story. " * 20]
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
