"""Experts between the drive and the arithmetic: residency and reads."""

from headgate.stream.experts import ExpertStream
from headgate.stream.options import StreamOptions, StreamStats
from headgate.stream.residency import LRU, Policy, Residency

__all__ = ["LRU", "ExpertStream", "Policy", "Residency", "StreamOptions", "StreamStats"]
