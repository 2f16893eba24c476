"""What clients of Anthropic's Messages API send."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from headgate.server.fields import (
    Count,
    Fields,
    FunctionName,
    Ignored,
    JsonMap,
    NonEmpty,
    OnlyText,
    Probability,
    Refused,
    Temperature,
    TopK,
)

ONLY_TEXT = (
    "this kind of block is not supported: text, thinking, tool_use and tool_result are; "
    "the model reads text"
)
BLOCKS = ("text", "thinking", "tool_use", "tool_result")


class TextBlock(Fields):
    type: Annotated[str, OnlyText(("text",))]
    text: str
    cache_control: Ignored = None
    citations: Annotated[Any, Refused("there are no citations", ([],))] = None


class ThinkingBlock(Fields):
    type: Literal["thinking"]
    thinking: str
    signature: Ignored = None
    cache_control: Ignored = None


class ToolUseBlock(Fields):
    type: Literal["tool_use"]
    id: str
    name: FunctionName
    input: JsonMap
    cache_control: Ignored = None
    caller: Ignored = None
    toolset_name: Annotated[Any, Refused("there are no toolsets")] = None


class ToolResultBlock(Fields):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None
    cache_control: Ignored = None
    toolset_name: Annotated[Any, Refused("there are no toolsets")] = None


class OtherBlock(Fields):
    type: Annotated[Any, Refused(ONLY_TEXT, null=False)]


def _kind(block: Any) -> str:
    kind = block.get("type") if isinstance(block, dict) else getattr(block, "type", None)
    return kind if kind in BLOCKS else "other"


Block = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ThinkingBlock, Tag("thinking")]
    | Annotated[ToolUseBlock, Tag("tool_use")]
    | Annotated[ToolResultBlock, Tag("tool_result")]
    | Annotated[OtherBlock, Tag("other")],
    Discriminator(_kind),
]


class MessageField(Fields):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class ToolField(Fields):
    type: Annotated[Any, Refused("only tools that the client runs are supported", ("custom",))] = (
        None
    )
    name: FunctionName
    description: str | None = None
    input_schema: JsonMap
    strict: bool | None = None
    cache_control: Ignored = None
    eager_input_streaming: Ignored = None
    input_examples: Annotated[Any, Refused("put examples into the description", ([],))] = None
    allowed_callers: Annotated[Any, Refused("the model calls", (["direct"],))] = None
    defer_loading: Annotated[Any, Refused("all tools are loaded", (False,))] = None


class AutoChoice(Fields):
    type: Literal["auto", "any"]
    disable_parallel_tool_use: bool | None = None


class ToolChoice(Fields):
    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


class NoChoice(Fields):
    type: Literal["none"]


class Thinking(Fields):
    """A budget is kept: reasoning ends at that many tokens."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Count | None = None
    display: Annotated[Any, Refused("reasoning is shown as it is", ("summarized",))] = None


class JsonFormat(Fields):
    type: Literal["json_schema"]
    schema_: JsonMap = Field(alias="schema")


class OutputConfig(Fields):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class Edit(Fields):
    type: Annotated[str, Field(pattern=r"^clear_thinking_[0-9]{8}$")]
    keep: Ignored = None


class ContextManagement(Fields):
    """Templates drop the reasoning of earlier turns by themselves."""

    edits: list[Edit] | None = None


class PromptBody(Fields):
    """What a prompt is made of: ``POST /v1/messages/count_tokens``."""

    model: NonEmpty | None = None
    messages: Annotated[list[MessageField], Field(min_length=1)]
    system: str | list[TextBlock] | None = None
    tools: list[ToolField] | None = None
    tool_choice: (
        Annotated[AutoChoice | ToolChoice | NoChoice, Field(discriminator="type")] | None
    ) = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: JsonFormat | None = None
    context_management: ContextManagement | None = None
    cache_control: Ignored = None
    betas: Ignored = None
    speed: Annotated[Any, Refused("there is one speed", ("standard",))] = None
    mcp_servers: Annotated[Any, Refused("the server connects to no others", ([],))] = None
    user_profile_id: Ignored = None
    workspace_id: Ignored = None


class MessagesBody(PromptBody):
    """``POST /v1/messages``."""

    max_tokens: Count
    stream: bool | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: TopK | None = None
    stop_sequences: Annotated[list[NonEmpty], Field(max_length=64)] | None = None
    metadata: Ignored = None
    service_tier: Ignored = None
    inference_geo: Ignored = None
    diagnostics: Ignored = None
    billing_policy: Ignored = None
    container: Annotated[Any, Refused("there are no containers")] = None
    compaction: Annotated[Any, Refused("nothing is dropped from the conversation")] = None
    fallbacks: Annotated[Any, Refused("one model is served", ([],))] = None
    fallback_credit_token: Annotated[Any, Refused("one model is served")] = None
    thread: Annotated[Any, Refused("send all messages")] = None
