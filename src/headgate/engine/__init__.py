"""Engine: loaded weights. Session: one sequence. Scheduler: many requests."""

from headgate.engine.budget import Budget, parse_size
from headgate.engine.engine import Engine
from headgate.engine.prefix_cache import PrefixCache
from headgate.engine.sampling import Sampler, Sampling
from headgate.engine.scheduler import Scheduler
from headgate.engine.session import Generation, Session
from headgate.engine.ticket import (
    Event,
    Failed,
    Finished,
    PromptProgress,
    Queued,
    Ticket,
    Tokens,
    TurnFigures,
)
from headgate.engine.turn import Step, TokenConstraint, Turn, TurnOptions

__all__ = [
    "Budget",
    "Engine",
    "Event",
    "Failed",
    "Finished",
    "Generation",
    "PrefixCache",
    "PromptProgress",
    "Queued",
    "Sampler",
    "Sampling",
    "Scheduler",
    "Session",
    "Step",
    "Ticket",
    "TokenConstraint",
    "Tokens",
    "Turn",
    "TurnFigures",
    "TurnOptions",
    "parse_size",
]
