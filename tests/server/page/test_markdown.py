"""Markdown becomes the nodes that it means."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests.server.fake_backend import Backend, text
from tests.server.page.browsing import ask, done

MARKDOWN = [
    (
        "a *b* **c** ***d*** ~~e~~ `f`",
        "<p>a <em>b</em> <strong>c</strong> <em><strong>d</strong></em> <del>e</del> "
        "<code>f</code></p>",
    ),
    (
        "2 * 3 * 4, snake_case_name, \\*x\\*, 5 < 6 &amp; 7",
        "<p>2 * 3 * 4, snake_case_name, *x*, 5 &lt; 6 &amp; 7</p>",
    ),
    ("**a *b* c**d __e__", "<p><strong>a <em>b</em> c</strong>d <strong>e</strong></p>"),
    ("``a ` b`` `c\nd`", "<p><code>a ` b</code> <code>c d</code></p>"),
    ("one  \ntwo\\\nthree\nfour", "<p>one<br>two<br>three\nfour</p>"),
    ("# A #\n###### B\n####### C\n#D", "<h3>A </h3><h6>B</h6><p>####### C\n#D</p>"),
    ("a\n\n---\n***\nb", "<p>a</p><hr><hr><p>b</p>"),
    (
        "- a\n- b\n  - c\n    1. d\n- e",
        "<ul><li>a</li><li>b<ul><li>c<ol><li>d</li></ol></li></ul></li><li>e</li></ul>",
    ),
    ("1. a\n  - b\n2. c", "<ol><li>a<ul><li>b</li></ul></li><li>c</li></ol>"),
    ("- a\n\t- b\n- c", "<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>"),
    ("3) a\n\n4) b", '<ol start="3"><li><p>a</p></li><li><p>b</p></li></ol>'),
    (
        "- a\n\n  b\n- [x] c",
        '<ul><li><p>a</p><p>b</p></li><li class="task">☑ <p>c</p></li></ul>',
    ),
    ("- [ ] a **b**", '<ul><li class="task">☐ a <strong>b</strong></li></ul>'),
    ("text\n- a\n* b\n\nmore", "<p>text</p><ul><li>a</li></ul><ul><li>b</li></ul><p>more</p>"),
    (
        "> a\nb\n> > c\n\nd",
        "<blockquote><p>a\nb</p><blockquote><p>c</p></blockquote></blockquote><p>d</p>",
    ),
    (
        "| a | b \\| c |\n|:-:|--:|\n| 1 | **2** | 3 |\n| 4 |\nend",
        '<div class="table" tabindex="0"><table>'
        '<thead><tr><th class="center">a</th><th class="right">b | c</th></tr></thead><tbody>'
        '<tr><td class="center">1</td><td class="right"><strong>2</strong></td></tr>'
        '<tr><td class="center">4</td><td class="right"></td></tr>'
        "</tbody></table></div><p>end</p>",
    ),
    (
        "see https://a.example/x_(y)_z. (https://b.example/)",
        "<p>see {https://a.example/x_(y)_z}. ({https://b.example/})</p>",
    ),
    (
        '[a *b*](https://c.example/d_(e) "t") <mailto:x@y.example>',
        "<p>{https://c.example/d_(e)|a <em>b</em>} {mailto:x@y.example}</p>",
    ),
    ("[a [b](https://c.example/) d](x", "<p>[a {https://c.example/|b} d](x</p>"),
]


def test_markdown_becomes_the_nodes_that_it_means(page: Page) -> None:
    def link(match: re.Match[str]) -> str:
        href, _, label = match[1].partition("|")
        rest = 'target="_blank" rel="noopener noreferrer"'
        return f'<a href="{href}" title="{href}" {rest}>{label or href}</a>'

    for source, wanted in MARKDOWN:
        assert markdown(page, [source]) == re.sub(r"\{([^}]+)\}", link, wanted), source


def test_code_keeps_every_character_and_can_be_copied(page: Page, backend: Backend) -> None:
    code = "\tif a:\n\n    <b> & `c`  "
    backend.answers = [[*text(f"1. x\n\n   ~~~make\n   {code}\n"), "stop"]]
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    block = done(ask(page)).locator(".code-block")
    expect(block.locator(".language")).to_have_text("make")
    block.get_by_role("button", name="Copy").click()
    expect(block.get_by_role("button")).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == code.replace("\n    ", "\n ") + "\n"


def test_growing_text_ends_as_the_same_nodes(page: Page) -> None:
    for source, _ in MARKDOWN:
        prefixes = [source[:end] for end in range(1, len(source) + 1)]
        assert markdown(page, prefixes) == markdown(page, [source])


def markdown(page: Page, texts: list[str]) -> str:
    """The HTML after these texts were shown one after the other, the last as complete."""
    html: str = page.evaluate(
        """async texts => {
            const { Markdown } = await import("/markdown.js");
            const box = document.createElement("div");
            const shown = new Markdown(box);
            texts.forEach((text, i) => shown.update(text, i < texts.length - 1));
            return box.innerHTML;
        }""",
        texts,
    )
    return html
