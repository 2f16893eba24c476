"""Settings, the API key, storage, themes, narrow screens."""

from __future__ import annotations

import json
import re

from playwright.sync_api import Browser, Page, expect

from tests.server.fake_backend import Backend, call, text
from tests.server.page.browsing import Watched, ask, button, content, done, open_setup, prompt


def test_settings_are_sent_and_exported(page: Page, backend: Backend) -> None:
    backend.answers = [[*text("ok"), "stop"]]
    open_setup(page, "system")
    page.locator("#system").fill("Be brief.")
    open_setup(page, "settings")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Max tokens").fill("9")
    page.get_by_label("Thinking").select_option("off")
    done(ask(page, "hello"))
    request = backend.requests[0]
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (request["temperature"], request["max_tokens"]) == (0.5, 9)
    assert request["chat_template_kwargs"] == {"enable_thinking": False}

    with page.expect_download() as download:
        button(page, "Export").click()
    exported = json.loads(download.value.path().read_text())
    assert exported.pop("messages") == [
        *request["messages"],
        {"role": "assistant", "content": "ok"},
    ]
    assert exported.items() <= request.items()


BAD_TOOLS = {
    "[": "not JSON",
    "{}": "a list of functions is needed",
    '[{"type": "function", "function": {}}]': "function 1 has no name",
    '[{"name": "a"}, {"name": "a"}]': "two functions are named a",
}


def test_bad_tools_are_named_and_not_sent(page: Page, backend: Backend) -> None:
    open_setup(page, "tools")
    for tools, says in BAD_TOOLS.items():
        page.locator("#tools").fill(tools)
        expect(page.locator("#tools-message")).to_contain_text(says)
        prompt(page).fill("hello")
        page.keyboard.press("Enter")
        expect(page.locator("#notice")).to_contain_text(says)
        expect(page.locator("#tools")).to_be_focused()
        expect(prompt(page)).to_have_value("hello")
    assert backend.requests == []


def test_key_is_asked_for_once_and_kept_for_the_tab(page: Page, backend: Backend) -> None:
    backend.key = "secret"
    backend.answers = [[*text("in"), "stop"], [*text("still in"), "stop"]]
    page.reload()
    dialog = page.get_by_role("dialog")
    field = dialog.get_by_label("API key")
    field.fill("guess")
    field.press("Enter")
    expect(dialog).to_contain_text("did not accept")
    field.fill("secret")
    field.press("Enter")
    expect(dialog).not_to_be_visible()
    expect(page.locator("#live-state")).to_have_text("live")
    expect(content(done(ask(page)))).to_have_text("in")
    page.reload()
    expect(content(done(ask(page)))).to_have_text("still in")
    assert "secret" not in page.evaluate("JSON.stringify(localStorage)")


def test_without_a_key_the_page_says_so(page: Page, backend: Backend) -> None:
    backend.key = "secret"
    page.reload()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#live-state")).to_have_text("needs the API key")
    answer = ask(page)
    page.get_by_role("button", name="Cancel").click()
    expect(done(answer).locator(".figures")).to_have_text("an API key is needed")


def test_theme_is_chosen_and_remembered(page: Page) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    button = page.get_by_role("button", name="Theme")
    button.click()
    assert page.evaluate(paper) == light
    button.click()
    expect(button).to_have_accessible_name("Theme: dark")
    dark = page.evaluate(paper)
    assert dark != light
    page.reload()
    assert page.evaluate(paper) == dark
    page.emulate_media(color_scheme="dark")
    button.click()
    expect(button).to_have_accessible_name("Theme: system")
    assert page.evaluate(paper) == dark


def test_narrow_screen_shows_everything(browser: Browser, backend: Backend, url: str) -> None:
    wide = "| " + " | ".join(["a wide column of words"] * 6) + " |\n" + "|---" * 6 + "|\n"
    long = f"{'x' * 300}\n\n{wide}\n```\n{'y' * 300}\n```\n"
    called = call("f" * 80, json.dumps({"a": "z" * 200}))
    backend.answers = [[*text(long), *called, "tool_calls"]]
    with Watched(browser, url, 360, 640) as tab:
        page = tab.page
        page.goto(url)
        expect(page.locator("#strip-text")).to_have_text(re.compile("12.3 tokens/s.*87 % hits"))
        done(ask(page, "w" * 200))
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.evaluate("document.querySelector('#scroll').scrollWidth") <= 360
        for name in ("New", "Export", "Theme", "Send"):
            box = page.get_by_role("button", name=name, exact=name != "Theme").bounding_box()
            assert box
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 360
        expect(page.locator("#panel")).not_to_be_visible()
        page.locator("#strip").click()
        expect(page.locator("#heat-map")).to_be_visible()
        assert page.evaluate("document.querySelector('#panel').scrollWidth") <= 360
        page.keyboard.press("Escape")
        expect(page.locator("#panel")).not_to_be_visible()


def test_every_field_has_a_name_and_focus_is_visible(page: Page) -> None:
    unnamed = page.evaluate(
        """[...document.querySelectorAll("textarea, input, select, button")]
            .filter(e => !e.labels?.length && !e.ariaLabel && !e.textContent.trim()).length"""
    )
    assert unnamed == 0
    # It has no size, and takes no focus, before the first figures have come.
    expect(page.locator("#heat-map")).to_be_visible()
    page.get_by_role("button", name="Theme").focus()
    for wanted in ("prompt", "send", "heat-map", None, None, None):
        page.keyboard.press("Tab")
        focused = page.evaluate("document.activeElement.id")
        assert wanted in (None, focused)
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", focused


def test_foreign_storage_is_ignored(page: Page) -> None:
    for stored in ("{", "[]", "null", '{"messages": [{"role": "x"}], "settings": {}}'):
        page.evaluate("text => localStorage.setItem('headgate.conversation', text)", stored)
        page.reload()
        expect(page.locator("#hint")).to_be_visible()
        expect(page.locator(".message")).to_have_count(0)
