"""The page against the server itself and the demo model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from headgate.assistant import Assistant
from headgate.engine import Engine
from headgate.server.app import create_app
from tests.conftest import DemoStore
from tests.server.fake_backend import serving
from tests.server.page.browsing import Watched, ask, button, content, done, open_setup
from tests.server.samples import REPORT, RESULT

REQUEST = "Please get the weather forecast in Paris."

#: The model writes faster than a test can look: the page's own button is pressed in the page.
STOP_AT_FIRST_WORDS = """() => new MutationObserver((_, observer) => {
    const answers = document.querySelectorAll(".answer .content");
    if (answers.length < 2 || !answers[1].textContent) return;
    observer.disconnect();
    document.querySelector("#stop").click();
}).observe(document.querySelector("#messages"), { childList: true, subtree: true })"""


@pytest.fixture(scope="module")
def server(demo_store: DemoStore) -> Iterator[str]:
    assistant = Assistant(Engine.load(demo_store(), sequences=2), sequences=2, name="demo")
    try:
        with serving(create_app(assistant)) as url:
            yield url
    finally:
        assistant.close()


def test_ask_stop_call_a_tool_and_reload(browser: Browser, server: str) -> None:
    with Watched(browser, server) as tab:
        page = tab.page
        page.goto(server)
        open_setup(page, "settings")
        page.get_by_label("Temperature").fill("0")
        expect(page.locator("#live-model")).to_have_text("demo")
        expect(content(done(ask(page, "Which country is Oslo in?")))).to_contain_text("Norway")
        in_memory = re.compile("^8 layers of 64 experts: [1-9][0-9]* of 512 in memory")
        expect(page.locator("#heat-map")).to_have_attribute("aria-label", in_memory)

        page.evaluate(STOP_AT_FIRST_WORDS)
        answer = ask(page, "Tell me a short story about Jonas and Havana.")
        expect(done(answer).locator(".figures")).to_contain_text("stopped")
        expect(content(answer)).not_to_be_empty()

        button(page, "New").click()
        open_setup(page, "tools")
        button(page, "Insert an example").click()
        answer = done(ask(page, REQUEST))
        call = answer.locator(".call")
        expect(call.locator(".function")).to_have_text("get_weather")
        assert json.loads(call.locator(".arguments").text_content() or "") == {"city": "Paris"}
        page.get_by_label("Result of get_weather").fill(RESULT)
        page.keyboard.press("Enter")
        expect(page.locator(".answer")).to_have_count(2)
        said = content(done(page.locator(".answer").last)).text_content()
        assert said == REPORT

        page.reload()
        expect(page.locator(".user .text")).to_have_text(REQUEST)
        expect(page.locator(".call .result")).to_have_text(RESULT)
        expect(content(page.locator(".answer").last)).to_have_text(said)
