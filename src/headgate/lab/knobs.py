"""Knobs that an experiment may turn: options of the engine and of its expert stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from headgate.errors import UsageError
from headgate.stream import StreamOptions

Knobs = dict[str, Any]


@dataclass(frozen=True)
class Knob:
    """One of them.

    Attributes:
        exact: leaves the model's output as it is.
        stream: is a field of StreamOptions, not an option of the engine.
        parse: of the value's text; raises ValueError.
    """

    exact: bool
    stream: bool
    parse: Callable[[str], Any]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _flag(text: str) -> bool:
    known = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}
    if text.lower() not in known:
        raise ValueError
    return known[text.lower()]


def _bits(text: str) -> int | str:
    return int(text) if text.isdecimal() else text  # a mode that the engine knows


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def _rate(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e15:
        raise ValueError
    return value


_PARSERS: dict[type, Callable[[str], Any]] = {
    bool: _flag,
    int: _natural,
    float: _rate,
    str: str,
}

#: Name -> knob. No field of StreamOptions changes what is computed.
KNOBS: dict[str, Knob] = {
    "threads": Knob(True, False, _positive),
    "prompt_chunk": Knob(True, False, _positive),
    "experts_per_token": Knob(False, False, _positive),
    "expert_bits": Knob(False, False, _bits),
    "top_share": Knob(False, False, _rate),
    "refine": Knob(False, False, _flag),
    "router_mass": Knob(False, False, _rate),
    "router_floor": Knob(False, False, _positive),
    "prefer_cached": Knob(False, False, _rate),
    **{
        field.name: Knob(True, True, _PARSERS[type(getattr(StreamOptions(), field.name))])
        for field in fields(StreamOptions)
        if type(getattr(StreamOptions(), field.name)) in _PARSERS
    },
}


def parse_knobs(settings: Iterable[str]) -> Knobs:
    """``["depth=16", ...]`` as values.

    Raises:
        UsageError: no such knob, no such value, or a knob twice.
    """
    found: Knobs = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name not in KNOBS:
            raise UsageError(f"{setting!r} sets no knob: write KNOB=VALUE with {', '.join(KNOBS)}")
        if name in found:
            raise UsageError(f"{name} is set twice")
        try:
            found[name] = KNOBS[name].parse(text.strip())
        except ValueError:
            raise UsageError(f"{name} cannot be {text!r}") from None
    return found


def are_exact(knobs: Mapping[str, Any]) -> bool:
    """Whether none of them changes the model's output."""
    return all(KNOBS[name].exact for name in knobs)


def engine_options(knobs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the engine, and of its stream."""
    engine = {name: value for name, value in knobs.items() if not KNOBS[name].stream}
    return engine, {name: value for name, value in knobs.items() if KNOBS[name].stream}


def describe_knobs(knobs: Mapping[str, Any]) -> str:
    """In words."""
    return ", ".join(f"{name}={value}" for name, value in knobs.items()) or "as it is"
