"""An assistant with the demo model, one per test file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from headgate.assistant import Assistant
from headgate.engine import Engine
from headgate.engine.prefix_cache import PrefixCache
from tests.conftest import DemoStore


@pytest.fixture(scope="module")
def assistant(demo_store: DemoStore) -> Iterator[Assistant]:
    engine = Engine.load(demo_store(), context=1024, prefix_bytes=32 << 20)
    cache = PrefixCache(engine, disk=0)
    assistant = Assistant(engine, sequences=1, prefix_cache=cache, name="demo")
    yield assistant
    assistant.close()
    cache.close()
