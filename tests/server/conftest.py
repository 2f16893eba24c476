"""A server on a loopback port, one per test file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import pytest
from fastapi import FastAPI

from headgate.assistant import Assistant
from headgate.engine import Engine
from headgate.engine.prefix_cache import PrefixCache
from headgate.engine.ticket import Ticket
from headgate.server import BackgroundServer, ServerOptions, create_app
from tests.conftest import DemoStore

MODEL = "demo"


@dataclass
class Served:
    """A running server.

    Attributes:
        tickets: of all requests that the scheduler has taken.
    """

    url: str
    app: FastAPI
    assistant: Assistant
    tickets: list[Ticket] = field(default_factory=list)

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)  # type: ignore[arg-type]


def record_tickets(assistant: Assistant) -> list[Ticket]:
    """All tickets that the assistant gets from now on."""
    tickets: list[Ticket] = []
    submit = assistant.scheduler.submit

    def recorded(*args: object, **options: object) -> Ticket:
        tickets.append(submit(*args, **options))  # type: ignore[arg-type]
        return tickets[-1]

    assistant.scheduler.submit = recorded  # type: ignore[method-assign]
    return tickets


@pytest.fixture(scope="module")
def engine(demo_store: DemoStore) -> Engine:
    return Engine.load(demo_store(), sequences=4, context=4096, prefix_bytes=64 << 20)


@pytest.fixture(scope="module")
def served(engine: Engine) -> Iterator[Served]:
    cache = PrefixCache(engine, disk=0)
    assistant = Assistant(engine, prefix_cache=cache, name=MODEL)
    app = create_app(assistant, ServerOptions())
    with BackgroundServer(app) as server:
        yield Served(server.url, app, assistant, record_tickets(assistant))
    assistant.close()
    cache.close()


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client
