"""Texts that end an answer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headgate.assistant.stop import StopStrings

LETTERS = st.text("ab", max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """What must be passed on, by the definition: the first stop that is complete."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


@given(st.lists(LETTERS, max_size=5), STOPS)
def test_the_cut_does_not_depend_on_the_pieces(pieces: list[str], stops: list[str]) -> None:
    matcher = StopStrings(stops)
    passed = "".join(matcher.push(piece) for piece in pieces)
    if matcher.found is None:
        passed += matcher.flush()
    assert (passed, matcher.found) == cut("".join(pieces), stops)


@given(st.lists(LETTERS, max_size=5), STOPS)
def test_no_part_of_a_stop_string_is_ever_passed_on(pieces: list[str], stops: list[str]) -> None:
    matcher, expected = StopStrings(stops), cut("".join(pieces), stops)[0]
    passed = ""
    for piece in pieces:
        passed += matcher.push(piece)
        assert expected.startswith(passed)


def test_what_cannot_become_a_stop_string_is_passed_on_at_once() -> None:
    matcher = StopStrings(["\n\nUser:"])
    assert matcher.push("one\n") == "one"
    assert matcher.push("two") == "\ntwo"
    assert matcher.push("\n\nUse") == "" and matcher.push("r:") == ""
    assert matcher.found == "\n\nUser:" and matcher.push("more") == ""
