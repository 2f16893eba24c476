"""What a terminal would obey is not passed on; what a person decides by is all visible."""

from __future__ import annotations

from headgate.terminal.text import call_text, one_line, printable


def test_escape_sequences_become_visible() -> None:
    assert (
        printable("a\x1b[31mb\x07\x9b2J\x7f\r\n\tc") == "a␛[31mb␇\N{REPLACEMENT CHARACTER}2J␡\n\tc"
    )


def test_calls_show_every_character_of_their_arguments() -> None:
    hidden = "a\u202eb\u200bc\x1b[2K\x9b\n\U000e0041\ud800é"
    shown = call_text("f", {"x\u202e": hidden, "n": [1, None]})
    assert shown == (
        'f(x\\u202e="a\\u202eb\\u200bc\\u001b[2K\\u009b\\n\\udb40\\udc41\\ud800é", n=[1, null])'
    )


def test_one_line() -> None:
    assert one_line("a\n\n b\tc") == "a b c"
    assert one_line("x" * 300, 10) == "xxxxxxx..."
