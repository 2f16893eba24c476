"""Other people's checkpoints to an expert store."""

from headgate.convert.checkpoint import Checkpoint
from headgate.convert.convert import ConvertReport, convert
from headgate.convert.describe import describe
from headgate.convert.source import ConvertOptions

__all__ = ["Checkpoint", "ConvertOptions", "ConvertReport", "convert", "describe"]
