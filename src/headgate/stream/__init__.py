"""Experts between the drive and the arithmetic: residency and reads."""

from headgate.stream.cost_model import CostModel
from headgate.stream.experts import ExpertStream
from headgate.stream.options import StreamOptions, StreamStats
from headgate.stream.policies import POLICIES, make_policy
from headgate.stream.precision import Precision
from headgate.stream.residency import LRU, Policy, Residency
from headgate.stream.tuning import tuned

__all__ = [
    "LRU",
    "POLICIES",
    "CostModel",
    "ExpertStream",
    "Policy",
    "Precision",
    "Residency",
    "StreamOptions",
    "StreamStats",
    "make_policy",
    "tuned",
]
