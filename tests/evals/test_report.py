"""A sweep's report: the front, the pairs, the page."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.evals import report
from headgate.evals.plots import Mark, curves, stacks
from tests.evals.results import result

RESULTS = [
    result(8, 4, 4000, "yyyyyyyyyy", 0.0),
    result(4, 4, 2000, "yyyyyyyyyn"),
    result(4, 2, 1000, "yyyyyyyyyn"),  # as good as the one above, for less
    result(2, 4, 1000, "yynnnnnnnn"),
    result(2, 2, 500, "ynnnnnnnne"),
]


def test_front_keeps_what_nothing_beats() -> None:
    front = report.pareto(RESULTS, report.share_right)
    assert [report.label(r) for r in front] == [
        "2 bits, K 2, dense 16",
        "4 bits, K 2, dense 16",
        "8 bits, K 4, dense 16",
    ]


@given(st.lists(st.tuples(st.integers(1, 9), st.text("yn", min_size=4, max_size=4)), min_size=1))
def test_no_point_of_the_front_is_beaten_and_every_other_is(points: list[tuple[int, str]]) -> None:
    results = [result(8, 4, nbytes, right) for nbytes, right in points]
    front = report.pareto(results, report.share_right)

    def figures(r: report.Result) -> tuple[int, float]:
        return r["expert_bytes_per_token"], -(report.share_right(r) or 0)

    def beats(a: report.Result, b: report.Result) -> bool:
        (x, y), (u, v) = figures(a), figures(b)
        return x <= u and y <= v and (x, y) != (u, v)

    assert not any(beats(a, b) for a in results for b in front)
    others = [r for r in results if not any(r is f for f in front)]
    assert all(any(beats(f, r) or figures(f) == figures(r) for f in front) for r in others)


def test_baseline_reads_most() -> None:
    assert report.baseline(RESULTS[::-1]) is RESULTS[0]


def test_difference_is_over_prompts_that_both_answered() -> None:
    found = report.paired(RESULTS[4], RESULTS[0], "free")
    assert found is not None
    assert found[0] == pytest.approx(1 / 9 - 1)
    assert found[1] <= found[0] <= found[2]
    assert report.paired(RESULTS[4], RESULTS[0], "constrained") is None


def test_table_names_settings_that_differ_and_leaves_out_empty_columns() -> None:
    table = report.rows(report.named(RESULTS))
    assert table[0][:4] == ["setting", "expert bytes per token", "tokens/s", "tools, free"]
    assert [row[0] for row in table[1:3]] == ["8 bits, K 4", "4 bits, K 4"]
    assert not any("constrained" in cell for cell in table[0])
    assert [row[-1] for row in table[1:]] == ["yes", "", "yes", "", "yes"]
    text = report.markdown(RESULTS)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert "| 2 bits, K 2 | 500 B |" in text
    assert lines[0].count("|") == lines[1].count("|")


def test_report_without_divergence_has_no_columns_of_it() -> None:
    table = report.rows([result(8, 4, 10, "yn", None)])
    assert not any("KL" in cell for cell in table[0])


class Parser(HTMLParser):
    """Complains of tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_and_has_its_drawings() -> None:
    hostile = result(3, 4, 1500, "yn")
    hostile["suites"]["tools"]["free"]["examples"] = [{"said": "<script>alert(1)</script>"}]
    page = report.page([*RESULTS, hostile], "a <b>")
    parser = Parser()
    parser.feed(page)
    assert parser.open == []
    assert "script" not in parser.seen
    for heading in ("Quality against bytes", "Quality by experts per token", "Wrong answers by"):
        assert heading in page
    assert parser.seen.count("svg") == 4  # quality, divergence, experts per token, failures


def test_drawings_are_well_formed() -> None:
    marks = [Mark(1, 50, 40, 60, 'a "b" <c>'), Mark(8, 90, 90, 90, "d")]
    root = ElementTree.fromstring(curves({"s": marks, "t": marks[:1]}, "x", "y", logarithmic=True))
    assert len(list(root.iter("circle"))) == 3
    assert curves({}, "x", "y") == ""
    ElementTree.fromstring(curves({"one": marks[:1]}, "x", "y"))
    bars = ElementTree.fromstring(stacks({"a": {"refusal": 3}, "b": {}}, ["refusal", "other"]))
    assert len([r for r in bars.iter("rect") if r.find("title") is not None]) == 2
