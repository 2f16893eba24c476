"""Experts between the drive and the arithmetic: residency and reads."""

from headgate.stream.cost_model import CostModel
from headgate.stream.experts import ExpertStream
from headgate.stream.options import StreamOptions, StreamStats
from headgate.stream.residency import LRU, Policy, Residency
from headgate.stream.tuning import tuned

__all__ = [
    "LRU",
    "CostModel",
    "ExpertStream",
    "Policy",
    "Residency",
    "StreamOptions",
    "StreamStats",
    "tuned",
]
