"""A conversation in a terminal: input, streamed Markdown, tools that run after a question."""

from headgate.terminal.chat import Chat, ChatOptions
from headgate.terminal.loop import run_chat
from headgate.terminal.toolbox import LocalTool, Toolbox, load_toolbox

__all__ = ["Chat", "ChatOptions", "LocalTool", "Toolbox", "load_toolbox", "run_chat"]
