"""Policies by name."""

from __future__ import annotations

from headgate.stream.residency import LRU, Policy


def make_policy(name: str, slots: int) -> Policy:
    return LRU()
