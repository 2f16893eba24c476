"""What a client asks for, whatever API it came through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from headgate.chat.schema import Tool
from headgate.engine import Sampling

Message = dict[str, Any]


@dataclass(frozen=True)
class NamedTool:
    """A tool choice: this function and no other."""

    name: str


ToolChoice = Literal["auto", "none", "required"] | NamedTool


@dataclass(frozen=True)
class JsonObject:
    """An answer that is a JSON object."""


@dataclass(frozen=True)
class JsonSchema:
    """An answer that is JSON by a schema."""

    schema: dict[str, Any]


ResponseFormat = JsonObject | JsonSchema


@dataclass(frozen=True)
class ChatRequest:
    """One turn of a conversation.

    Attributes:
        messages: in OpenAI's form; roles system, developer, user, assistant, tool. Text
            content is a string. System and developer messages may stand anywhere: they
            are joined into one at the front, as templates want it.
        tools: function declarations in OpenAI's form.
        tool_choice: whether functions may, may not or must be called. With ``none`` the
            tools are not shown to the model.
        parallel_tool_calls: False ends the answer after its first call.
        strict_tools: names of functions whose arguments must follow their schema.
        response_format: what the answer's content must be; None leaves it free.
        sampling: how tokens are drawn.
        max_tokens: at most this many; None for up to the end of the context.
        stop: texts that end the answer; they are not part of it. They are looked for
            after the reasoning.
        thinking: whether the model reasons first; None leaves it to the template.
        thinking_budget: at most this many tokens of reasoning; None leaves it to the model.
        top_logprobs: how many alternatives to report for every token; None reports no
            log probabilities at all.
        template_variables: further variables of the chat template.
    """

    messages: Sequence[Message]
    tools: Sequence[Tool] = ()
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    strict_tools: frozenset[str] = frozenset()
    response_format: ResponseFormat | None = None
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    thinking: bool | None = None
    thinking_budget: int | None = None
    top_logprobs: int | None = None
    template_variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CompletionRequest:
    """A text to continue as it is, without a chat template.

    Attributes:
        prompt: text or token ids.
        max_tokens: 0 generates nothing, which is of use with ``prompt_logprobs``.
        prompt_logprobs: how many alternatives to report for every token of the prompt;
            None reports no log probabilities of the prompt.
    """

    prompt: str | Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
