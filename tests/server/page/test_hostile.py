"""Text of a model that wants more than to be read."""

from __future__ import annotations

import json
import re

from playwright.sync_api import Page, expect

from tests.server.fake_backend import PAGE, Backend, call, text, thought
from tests.server.page.browsing import ask, done

HOSTILE = [
    "<script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    "[a](javascript:window.hit=1) [b](JaVaScRiPt:window.hit=1) [c](java\tscript:window.hit=1)",
    "[d](data:text/html,<script>window.hit=1</script>) [e](vbscript:x) [f](file:///etc/passwd)",
    "[g](&#106;avascript:window.hit=1) [h](<javascript:window.hit=1>) <javascript:window.hit=1>",
    "[rel](/v1/models) [rel](//elsewhere.example) ![pic](https://elsewhere.example/x.png)",
    '[t](https://ok.example "onmouseover=window.hit=1") **<svg onload=window.hit=1>**',
    "````html\n```\n<script>window.hit = 1</script>\n```\n````\n<iframe srcdoc='<script>'>",
    "| <b onclick=window.hit=1>x</b> | [y](javascript:1) |\n|---|---|\n| `<script>` | <style>*{} |",
    "> - > 1. <a href='javascript:window.hit=1'>z</a>\n\n```<script>\n\"><script>window.hit=1",
    ">" * 3000 + "\n" + "- " * 3000 + "\n" + "[" * 3000 + "*a_" * 3000 + "`" * 3000,
    "__proto__ [x](constructor) &constructor; ![__proto__](x)",
]


def test_hostile_markdown_runs_nothing(page: Page, backend: Backend) -> None:
    everything = "\n\n".join(HOSTILE)
    pieces = [everything[i : i + 97] for i in range(0, len(everything), 97)]
    name = "<img src=x onerror=window.hit=1>"
    backend.answers = [
        [
            *thought(*HOSTILE[:2]),
            *text(*pieces),
            *call(name, json.dumps({name: name})),
            "tool_calls",
        ]
    ]
    answer = done(ask(page, HOSTILE[0]))
    assert safe(page, ".messages") == []
    for part in (".content", ".thought", ".user .text"):
        assert "<script>window.hit = 1</script>" in (page.locator(part).text_content() or "")
    expect(answer.locator(".function")).to_have_text(name)
    expect(answer.locator(".code-block code").first).to_have_text(
        "```\n<script>window.hit = 1</script>\n```"
    )
    hrefs = answer.locator("a").evaluate_all("links => links.map(a => a.getAttribute('href'))")
    assert set(hrefs) == {"https://elsewhere.example/x.png", "https://ok.example/"}
    assert page.evaluate("window.hit") is None


def test_hostile_markdown_is_safe_at_every_length(page: Page) -> None:
    page.evaluate(
        """async texts => {
            const { Markdown } = await import("/markdown.js");
            document.body.insertAdjacentHTML("beforeend", "<div id='many'></div>");
            for (const text of texts.map(t => t.slice(0, 300)))
                for (let end = 0; end <= text.length; end++) {
                    const box = document.createElement("div");
                    new Markdown(box).update(text.slice(0, end), true);
                    document.querySelector("#many").append(box);
                }
        }""",
        HOSTILE,
    )
    assert safe(page, "#many") == []
    assert page.evaluate("window.hit") is None


def safe(page: Page, root: str) -> list[str]:
    """What in there is neither an element nor an attribute that the page itself makes."""
    found: list[str] = page.evaluate(
        """root => {
            const tags = new Set(`A P BR HR H3 H4 H5 H6 UL OL LI EM DEL PRE CODE DIV SPAN
                TABLE THEAD TBODY TR TH TD
                STRONG BUTTON DETAILS SUMMARY SECTION HEADER FOOTER LABEL TEXTAREA
                BLOCKQUOTE`.split(/\\s+/));
            const names = new Set(`class href title target rel start tabindex type hidden rows id
                placeholder spellcheck aria-busy aria-label aria-live aria-relevant style
                `.split(/\\s+/));
            const bad = [];
            for (const node of document.querySelectorAll(root + " *")) {
                if (!tags.has(node.tagName)) bad.push(node.outerHTML.slice(0, 200));
                for (const { name, value } of node.attributes) {
                    if (!names.has(name)) bad.push(node.tagName + " " + name);
                    if (name === "href" && !/^(https?:|mailto:)/.test(value)) bad.push(value);
                    if (name === "style" && node.tagName !== "TEXTAREA") bad.push("style");
                }
                if (node.tagName === "A" && !node.rel.includes("noopener")) bad.push("no rel");
            }
            return bad;
        }""",
        root,
    )
    return found


def test_files_need_no_other_address_and_parse_no_html() -> None:
    files = {path.name: path.read_text() for path in PAGE.iterdir()}
    assert {"index.html", "style.css", "app.js"} <= files.keys()
    for name, source in files.items():
        addresses = re.findall(
            r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+", re.sub(r"^\s*//.*", "", source, flags=re.M)
        )
        assert set(addresses) <= {"http://www.w3.org"}, name  # the name of SVG's namespace
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|DOMParser",
            source,
        ), name
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script>|javascript:", files["index.html"])
