"""Mixture-of-Experts language models larger than memory, streamed from SSD."""

from headgate.engine import Engine, Sampling, Session
from headgate.errors import HeadgateError

__all__ = ["Engine", "HeadgateError", "Sampling", "Session", "__version__"]
__version__ = "0.1.0"
