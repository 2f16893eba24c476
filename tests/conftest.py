"""Stores of the demo checkpoint, converted once per test run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from headgate.convert import ConvertOptions, convert
from headgate.demo import CHECKPOINT
from tests.checkpoints import tiny_checkpoint

# Fresh random inputs for developers; the same ones each time where a failure would only
# be repeated by chance.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

DemoStore = Callable[..., Path]


@pytest.fixture(scope="session")
def demo_store(tmp_path_factory: pytest.TempPathFactory) -> DemoStore:
    """(expert bits, dense bits) -> path of a store of the demo checkpoint; not to be changed."""
    folder = tmp_path_factory.mktemp("demo")

    def make(bits: int = 16, dense: int = 16) -> Path:
        store = folder / f"{bits}-{dense}.headgate"
        if not store.exists():
            convert(CHECKPOINT, store, ConvertOptions(expert_bits=bits, dense_bits=dense))
        return store

    return make


@pytest.fixture(scope="session")
def large_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose experts, 144 MiB, are most of what a process could take; its weights
    are random, its tokenizer the demo's."""
    folder = tmp_path_factory.mktemp("large")
    src = tiny_checkpoint(
        folder / "src",
        vocab_size=4096,
        hidden_size=256,
        moe_intermediate_size=256,
        num_experts=128,
        num_experts_per_tok=4,
        max_position_embeddings=1024,
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (src / name).write_bytes((CHECKPOINT / name).read_bytes())
    convert(src, folder / "large.headgate", ConvertOptions(expert_bits=16, dense_bits=16))
    return folder / "large.headgate"


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests leave the user's cache alone."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
