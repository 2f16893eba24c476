"""A conversation on the page, against answers written in advance."""

from __future__ import annotations

import json

from playwright.sync_api import Page, expect

from tests.server.fake_backend import DROP, WAIT, Backend, Step, call, text, thought
from tests.server.page.browsing import ask, button, content, done, open_setup, prompt

TOOLS = [{"name": "get_weather", "parameters": {"type": "object"}}]


def test_answer_is_shown_while_it_is_generated(page: Page, backend: Backend) -> None:
    backend.answers = [[*text("One **two"), WAIT, *text("** three"), "stop"]]
    answer = ask(page, "Count!")
    expect(content(answer)).to_have_text("One two")
    expect(content(answer).locator("strong")).to_have_text("two")  # though not closed yet
    expect(answer).to_have_attribute("aria-busy", "true")
    expect(page.locator("#messages")).to_have_attribute("aria-live", "polite")
    backend.proceed.set()
    done(answer)
    expect(content(answer)).to_have_text("One two three")
    expect(answer.locator(".figures")).to_contain_text("56 tokens")
    request = backend.requests[0]
    assert request["messages"] == [{"role": "user", "content": "Count!"}]
    assert request["stream"] is True
    assert request["model"] == "demo"
    assert not {"tools", "temperature", "max_tokens", "chat_template_kwargs"} & request.keys()


def test_reasoning_is_folded_and_sent_back(page: Page, backend: Backend) -> None:
    backend.answers = [
        [*thought("Hm, ", "<b>so</b>"), WAIT, *text("Yes"), "stop"],
        [*text("!"), "stop"],
    ]
    answer = ask(page)
    details = answer.locator("details.reasoning")
    expect(details).to_be_visible()
    expect(details.locator(".thought")).not_to_be_visible()
    details.locator("summary").click()
    expect(details.locator(".thought")).to_have_text("Hm, <b>so</b>")
    backend.proceed.set()
    done(answer)
    expect(details.locator(".thought")).to_be_visible()
    done(ask(page, "more"))
    assert backend.requests[1]["messages"][1] == {
        "role": "assistant", "content": "Yes", "reasoning_content": "Hm, <b>so</b>",
    }  # fmt: skip


def test_tool_calls_form_and_take_results(page: Page, backend: Backend) -> None:
    oslo = call("get_weather", '{"city": "Os', 'lo"}', wait=True)
    backend.answers = [[*oslo, *call("now", index=1), "tool_calls"], [*text("Rain."), "stop"]]
    open_setup(page, "tools")
    page.get_by_label("Functions, a JSON list").fill(json.dumps(TOOLS))
    expect(page.locator("#tools-state")).to_have_text("1")
    answer = ask(page)
    first = page.locator(".call").first
    expect(first.locator(".function")).to_have_text("get_weather")
    expect(first.locator(".arguments")).to_have_text('{\n  "city": "Os')
    expect(first.locator(".state")).to_have_text("forming")
    backend.proceed.set()
    done(answer)
    assert first.locator(".arguments").text_content() == '{\n  "city": "Oslo"\n}'

    expect(page.get_by_label("Result of get_weather")).to_be_focused()
    page.keyboard.type("6 degrees")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Result of now")).to_be_focused()
    page.keyboard.type("noon")
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_have_count(2)
    expect(content(done(page.locator(".answer").last))).to_have_text("Rain.")
    expect(first.locator(".result")).to_have_text("6 degrees")
    assert backend.requests[0]["tools"] == [{"type": "function", "function": TOOLS[0]}]
    function = {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    called, *results = backend.requests[1]["messages"][1:]
    assert called["content"] is None
    assert called["tool_calls"][0] == {"id": "call-0", "type": "function", "function": function}
    assert called["tool_calls"][1]["function"] == {"name": "now", "arguments": "{}"}
    assert results == [
        {"role": "tool", "tool_call_id": "call-0", "content": "6 degrees"},
        {"role": "tool", "tool_call_id": "call-1", "content": "noon"},
    ]


def test_calls_without_results_hold_the_next_message_back(page: Page, backend: Backend) -> None:
    backend.answers = [[*call("f", "{}"), "tool_calls"]]
    done(ask(page))
    ask(page, "never mind")
    expect(page.locator("#notice")).to_contain_text("waits for the results")
    expect(page.get_by_label("Result of f")).to_be_focused()
    assert len(backend.requests) == 1


def test_escape_stops_and_the_part_is_kept(page: Page, backend: Backend) -> None:
    backend.answers = [
        [*text("Begun"), *call("f", '{"a":', "1}", wait=True)],
        [*text("Anew"), "stop"],
    ]
    answer = ask(page)
    expect(answer.locator(".arguments")).to_have_text('{\n  "a":')
    page.keyboard.press("Escape")
    done(answer)
    assert backend.gone.wait(5)  # the server sees it and can stop generating
    expect(answer.locator(".figures")).to_contain_text("stopped")
    expect(answer.locator(".call .state")).to_have_text("incomplete, not sent")
    done(ask(page, "go on"))
    assert [m["role"] for m in backend.requests[1]["messages"]] == ["user", "assistant", "user"]
    assert "tool_calls" not in backend.requests[1]["messages"][1]


def test_stop_button_then_regenerate(page: Page, backend: Backend) -> None:
    backend.answers = [[*text("First"), WAIT], [*text("Second"), "stop"]]
    answer = ask(page)
    expect(content(answer)).to_have_text("First")
    button(page, "Stop").click()
    done(answer).get_by_role("button", name="Regenerate").click()
    expect(content(done(page.locator(".answer")))).to_have_text("Second")
    assert backend.requests[1] == backend.requests[0]


def test_edit_of_the_last_message_replaces_what_followed(page: Page, backend: Backend) -> None:
    backend.answers = [[*text(answer), "stop"] for answer in ("one", "two", "three")]
    done(ask(page, "first"))
    done(ask(page, "second"))
    prompt(page).press("ArrowUp")
    field = page.get_by_label("Edit the message")
    expect(field).to_have_value("second")
    field.press("Escape")
    expect(page.locator(".user .text").last).to_have_text("second")
    button(page, "Edit").click()
    field.fill("third")
    field.press("Enter")
    expect(content(done(page.locator(".answer").last))).to_have_text("three")
    said = [message["content"] for message in backend.requests[2]["messages"]]
    assert said == ["first", "one", "third"]


def test_shift_enter_is_a_new_line(page: Page, backend: Backend) -> None:
    backend.answers = [[*text("ok"), "stop"]]
    prompt(page).focus()
    page.keyboard.type("a")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("b")
    page.keyboard.press("Enter")
    done(page.locator(".answer"))
    assert backend.requests[0]["messages"][0]["content"] == "a\nb"


def test_reload_restores_conversation_and_setup(page: Page, backend: Backend) -> None:
    backend.answers = [
        [*thought("why"), *text("# Title"), *call("f", '{"x": 1}'), "tool_calls"],
        [*text("half"), WAIT],
    ]
    open_setup(page, "system")
    page.locator("#system").fill("Be brief.")
    done(ask(page, "keep this"))
    page.reload()
    answer = page.locator(".answer")
    expect(page.locator(".user .text")).to_have_text("keep this")
    expect(content(answer).locator("h3")).to_have_text("Title")
    expect(answer.locator(".figures")).to_contain_text("56 tokens")
    expect(page.locator("#system")).to_have_value("Be brief.")
    page.get_by_label("Result of f").fill("y")
    button(page, "Send results").click()
    expect(content(answer.last)).to_have_text("half")
    page.reload()  # in the middle of an answer
    expect(content(done(answer.last))).to_have_text("half")
    expect(answer.last.locator(".figures")).to_contain_text("stopped")


def test_new_conversation_can_be_undone(page: Page, backend: Backend) -> None:
    backend.answers = [[*text("kept"), "stop"]]
    done(ask(page))
    button(page, "New").click()
    expect(page.locator(".message")).to_have_count(0)
    button(page, "Undo").click()
    expect(content(page.locator(".answer"))).to_have_text("kept")
    button(page, "New").click()
    page.reload()
    expect(page.locator(".message")).to_have_count(0)


def test_failures_say_what_happened_and_keep_the_part(page: Page, backend: Backend) -> None:
    error: Step = {"error": {"message": "the drive went away"}}
    backend.answers = [[*text("so far"), error], [*text("so far"), DROP]]
    answer = done(ask(page))
    expect(content(answer)).to_have_text("so far")
    expect(answer.locator(".figures")).to_contain_text("the drive went away")
    button(page, "Regenerate").click()
    expect(answer.locator(".figures")).to_contain_text("the connection closed before")
    expect(content(answer)).to_have_text("so far")
    backend.error = (429, "the queue is full")
    button(page, "Regenerate").click()
    expect(answer.locator(".figures")).to_have_text("the queue is full")
