"""Between messages and tokens: tokenizer, chat template, tool calls."""

from headgate.chat.template import ChatTemplate
from headgate.chat.tokenizer import StreamDecoder, Tokenizer
from headgate.chat.tools import ToolCall, load_tools, parse_tool_calls

__all__ = [
    "ChatTemplate",
    "StreamDecoder",
    "Tokenizer",
    "ToolCall",
    "load_tools",
    "parse_tool_calls",
]
