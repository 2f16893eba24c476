"""The panel of live figures."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests.server.fake_backend import Backend
from tests.server.page.browsing import READ, RESIDENT


def test_live_figures_and_exactness(page: Page, backend: Backend) -> None:
    expect(page.locator("#live-state")).to_have_text("live")
    figures = {"speed": "12.3", "hits": "87.1 %", "memory": "8.00 GiB", "active": "1, 2"}
    for name, shown in {**figures, "bytes": "3.00 GiB", "model": "demo", "exact": "exact"}.items():
        expect(page.locator(f"#live-{name}")).to_have_text(shown)
    backend.live["lossy"] = ["experts per token 4 of 8"]
    expect(page.locator("#live-exact")).to_have_text("experts per token 4 of 8")
    backend.live.update(hit_rate=None, tokens_per_s=None, heat=None)
    expect(page.locator("#live-hits")).to_have_text("–")
    expect(page.locator("#live-speed")).to_have_text("0")
    expect(page.locator("#heat")).not_to_be_visible()


def test_heat_map_paints_each_expert(page: Page) -> None:
    canvas = page.locator("#heat-map")
    expect(canvas).to_have_attribute("aria-label", re.compile("3 layers of 5 experts: 8 of 15 in"))
    colors = page.evaluate(
        """([layers, experts]) => {
            const canvas = document.querySelector("#heat-map");
            const at = (x, y) => canvas.getContext("2d").getImageData(x, y, 1, 1).data.join();
            const [w, h] = [canvas.width / experts, canvas.height / layers];
            return Array.from({ length: layers * experts }, (_, i) =>
                at(Math.floor((i % experts) * w) + 2, Math.floor(Math.floor(i / experts) * h) + 2));
        }""",
        [3, 5],
    )
    keys = {
        name: page.locator(f"#key-{name}").evaluate(
            "e => getComputedStyle(e).backgroundColor.match(/\\d+/g).slice(0, 3).join() + ',255'"
        )
        for name in ("absent", "resident", "read")
    }
    states = [
        "read" if r else "resident" if m else "absent" for m, r in zip(RESIDENT, READ, strict=True)
    ]
    assert colors == [keys[state] for state in states]


def test_heat_map_answers_to_keys(page: Page) -> None:
    expect(page.locator("#heat-map")).to_have_attribute("aria-label", re.compile("3 layers"))
    page.locator("#heat-map").focus()
    for key in ["ArrowRight", *["ArrowRight"] * 4, "ArrowUp"]:
        page.keyboard.press(key)
    expect(page.locator("#heat-cell")).to_have_text("layer 0, expert 4: in memory, just read")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#heat-cell")).to_have_text("layer 1, expert 4: on the drive")


def test_connection_comes_back_by_itself(page: Page) -> None:
    expect(page.locator("#live-state")).to_have_text("live")
    page.route("**/live", lambda route: route.abort())
    page.reload()
    expect(page.locator("#live-state")).to_have_text("connection lost, trying again")
    page.unroute("**/live")
    expect(page.locator("#live-state")).to_have_text("live")
