"""String arguments of a tool call, in llguidance's Lark dialect: text as it stands, without
a tag of the call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import llguidance

from headgate.errors import UsageError

#: What no string may contain. The parser would take it for the end of the value.
TAGS = ("</parameter>", "</function>", "<parameter=")
#: Text without any of the call's tags.
_NO_TAGS = (
    r"/(?s:.*)/ & ~/(?s:.*)(" + "|".join(tag.replace("/", r"\/") for tag in TAGS) + r")(?s:.*)/"
)


def free_text() -> str:
    """Rules for any text without a tag of the call, with its closing tag.

    One regular expression would do, but llguidance answers from tables only where a
    terminal repeats one set of characters, which most of a text is here. ``BEGUN`` is the
    beginning of a tag, ``OTHER`` one that went another way and the text behind it.
    """
    begun = sorted({tag[:end] for tag in TAGS for end in range(1, len(tag))})
    other = []
    for start in begun:
        following = {tag[len(start)] for tag in TAGS if tag.startswith(start)}
        other.append(f"{_slashed(start)}[^<{_slashed(''.join(sorted(following)))}]")
    return (
        'free: (PLAIN | BEGUN* OTHER)* BEGUN* "</parameter>\\n"\n'
        "PLAIN: /[^<]+/\n"
        f"OTHER: /({'|'.join(other)})[^<]*/\n"
        f"BEGUN: /{'|'.join(_slashed(start) for start in begun)}/\n"
    )


def _slashed(text: str) -> str:
    return text.replace("/", r"\/")


def limited_text(schema: Mapping[str, Any]) -> str | None:
    """A terminal for a string with limits, None if it has none."""
    parts = [_NO_TAGS]
    low, high = schema.get("minLength", 0), schema.get("maxLength")
    for limit in (low, high):
        if limit is not None and (type(limit) is not int or not 0 <= limit <= 1 << 20):
            raise UsageError(f"a length limit of {limit!r} is not supported")
    if low or high is not None:
        parts.append(f"/(?s:.){{{low},{'' if high is None else high}}}/")
    pattern = schema.get("pattern")
    if pattern is not None:
        if not isinstance(pattern, str):
            raise UsageError("a pattern is not a string")
        parts.append(f"/{_search(pattern)}/")
    return " & ".join(parts) if len(parts) > 1 else None


def _search(pattern: str) -> str:
    """A regular expression for whole texts in which ``pattern`` is found."""
    options = []
    for option in _top_level_options(pattern):
        before = "" if option.startswith("^") else "(?s:.*)"
        option = option.removeprefix("^")
        escaped = len(option) - len(option.removesuffix("$").rstrip("\\"))
        ends = option.endswith("$") and escaped % 2 == 1
        middle = option[:-1] if ends else option
        options.append(f"{before}({middle})" + ("" if ends else "(?s:.*)"))
    try:
        return str(llguidance.regex_to_lark("|".join(options), "dw")).replace("\n", "\\n")
    except Exception as error:  # the library raises what it likes
        raise UsageError(f"pattern {pattern!r}: {error}") from None


def _top_level_options(pattern: str) -> list[str]:
    options, depth, in_class, skip = [""], 0, False, False
    for c in pattern:
        if skip:
            skip = False
        elif c == "\\":
            skip = True
        elif in_class:
            in_class = c != "]"
        elif c == "[":
            in_class = True
        elif c in "()":
            depth += 1 if c == "(" else -1
        elif c == "|" and depth == 0:
            options.append("")
            continue
        options[-1] += c
    return options
