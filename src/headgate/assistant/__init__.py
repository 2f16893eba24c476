"""One request to a chat model, from messages to a stream of events."""

from headgate.assistant.answer import Answer
from headgate.assistant.assistant import Assistant, Prepared
from headgate.assistant.events import (
    AnswerEvent,
    Failed,
    Finished,
    Logprobs,
    Progress,
    TokenLogprob,
    Usage,
)
from headgate.assistant.request import (
    ChatRequest,
    CompletionRequest,
    JsonObject,
    JsonSchema,
    NamedTool,
)

__all__ = [
    "Answer",
    "AnswerEvent",
    "Assistant",
    "ChatRequest",
    "CompletionRequest",
    "Failed",
    "Finished",
    "JsonObject",
    "JsonSchema",
    "Logprobs",
    "NamedTool",
    "Prepared",
    "Progress",
    "TokenLogprob",
    "Usage",
]
