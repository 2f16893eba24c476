"""Engine: loaded weights. Session: one sequence."""

from headgate.engine.budget import Budget, parse_size
from headgate.engine.engine import Engine
from headgate.engine.sampling import Sampler, Sampling
from headgate.engine.session import Generation, Session

__all__ = ["Budget", "Engine", "Generation", "Sampler", "Sampling", "Session", "parse_size"]
