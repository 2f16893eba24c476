"""String arguments of a tool call, in llguidance's Lark dialect: text as it stands, without
a tag of the call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import llguidance

from headgate.errors import UsageError

#: What no string may contain. The parser would take it for the end of the value.
TAGS = ("</parameter>", "</function>", "<parameter=")


def _slashed(text: str) -> str:
    return text.replace("/", r"\/")


def _any_of(texts: Iterable[str]) -> str:
    return "|".join(_slashed(text) for text in texts)


#: Beginnings of tags.
_BEGUN = sorted({tag[:end] for tag in TAGS for end in range(1, len(tag))})
#: The same, having gone another way: each with a character that none of the tags has there.
_OTHER = "|".join(
    f"{_slashed(start)}[^<{_slashed(''.join(sorted(following)))}]"
    for start in _BEGUN
    for following in [{tag[len(start)] for tag in TAGS if tag.startswith(start)}]
)
#: Text without any of the call's tags. As the complement of text with one, llguidance gives
#: up on it together with a limit of forty characters.
_NO_TAGS = f"/([^<]|({_any_of(_BEGUN)})*({_OTHER}))*({_any_of(_BEGUN)})*/"


def free_text() -> str:
    """Rules for any text without a tag of the call, with its closing tag.

    One regular expression would do, but llguidance answers from tables only where a
    terminal repeats one set of characters, which most of a text is here. ``BEGUN`` is the
    beginning of a tag, ``OTHER`` one that went another way and the text behind it.
    """
    return (
        'free: (PLAIN | BEGUN* OTHER)* BEGUN* "</parameter>\\n"\n'
        "PLAIN: /[^<]+/\n"
        f"OTHER: /({_OTHER})[^<]*/\n"
        f"BEGUN: /{_any_of(_BEGUN)}/\n"
    )


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
