"""Stores of the demo checkpoint, converted once per test run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from headgate.convert import ConvertOptions, convert
from headgate.demo import CHECKPOINT

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


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests leave the user's cache alone."""
    import os

    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
