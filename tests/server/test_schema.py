"""Requests made from the server's own OpenAPI document, valid and invalid ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from headgate.assistant import Assistant
from headgate.engine import Engine
from headgate.server import BackgroundServer, create_app
from tests.conftest import DemoStore

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
#: Requests per operation; scripts/api_fuzz.sh asks for more.
EXAMPLES = int(os.environ.get("HEADGATE_API_EXAMPLES", "10"))


@pytest.fixture(scope="module")
def api(demo_store: DemoStore) -> Iterator[Any]:
    # A short context: nobody wants to wait for what random requests are answered.
    engine = Engine.load(demo_store(4, 8), context=96, sequences=2)
    assistant = Assistant(engine, sequences=2, queue=64)
    with BackgroundServer(create_app(assistant)) as server:
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    assistant.close()


@pytest.mark.parametrize("mode", GenerationMode)
def test_nothing_makes_the_server_fail(api: Any, mode: GenerationMode) -> None:
    operations = [result.ok() for result in api.get_all_operations()]
    assert len(operations) > 10
    for operation in operations:

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: Any) -> None:
            case.call_and_validate(checks=CHECKS)

        if mode == GenerationMode.POSITIVE or operation.body:
            check()
