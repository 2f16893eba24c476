"""Between messages and tokens: tokenizer, chat template, output parser, constraints."""

from headgate.chat.constrain import Constraint, Grammar, Vocabulary
from headgate.chat.messages import normal_messages
from headgate.chat.output import (
    CallArguments,
    CallEnd,
    CallStart,
    Content,
    Event,
    OutputParser,
    Reasoning,
    parse_tool_calls,
)
from headgate.chat.schema import Tool, ToolCall
from headgate.chat.template import ChatTemplate, opens_thinking
from headgate.chat.tokenizer import StreamDecoder, Tokenizer
from headgate.chat.tools import load_tools

__all__ = [
    "CallArguments",
    "CallEnd",
    "CallStart",
    "ChatTemplate",
    "Constraint",
    "Content",
    "Event",
    "Grammar",
    "OutputParser",
    "Reasoning",
    "StreamDecoder",
    "Tokenizer",
    "Tool",
    "ToolCall",
    "Vocabulary",
    "load_tools",
    "normal_messages",
    "opens_thinking",
    "parse_tool_calls",
]
