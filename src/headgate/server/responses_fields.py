"""What clients of OpenAI's Responses API send."""

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
)
from headgate.server.openai_fields import Effort, ObjectFormat, TextFormat

ONLY_FUNCTIONS = "only function tools are supported; the server runs none itself"


class ItemPart(Fields):
    type: Annotated[
        str, OnlyText(("input_text", "output_text", "text", "refusal", "reasoning_text"))
    ]
    text: str | None = None
    refusal: str | None = None
    annotations: Ignored = None
    logprobs: Ignored = None
    prompt_cache_breakpoint: Ignored = None


ItemText = str | list[ItemPart]


class MessageItem(Fields):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: ItemText
    id: Ignored = None
    status: Ignored = None
    phase: Ignored = None


class CallItem(Fields):
    type: Literal["function_call"]
    call_id: str
    name: FunctionName
    arguments: str
    id: Ignored = None
    status: Ignored = None
    caller: Ignored = None
    namespace: Annotated[Any, Refused("functions have no namespaces here")] = None


class CallOutputItem(Fields):
    type: Literal["function_call_output"]
    call_id: str
    output: ItemText
    id: Ignored = None
    status: Ignored = None
    name: Ignored = None
    caller: Ignored = None
    namespace: Annotated[Any, Refused("functions have no namespaces here")] = None


class SummaryPart(Fields):
    type: Literal["summary_text"]
    text: str


class ReasoningItem(Fields):
    type: Literal["reasoning"]
    summary: list[SummaryPart] | None = None
    content: list[ItemPart] | None = None
    id: Ignored = None
    status: Ignored = None
    encrypted_content: Annotated[
        Any, Refused("reasoning is not encrypted here, and cannot be decrypted")
    ] = None


class ReferenceItem(Fields):
    type: Literal["item_reference"]
    id: str


class OtherItem(Fields):
    type: Annotated[
        Any,
        Refused(
            "this kind of item is not supported: message, function_call, "
            "function_call_output, reasoning and item_reference are",
            null=False,
        ),
    ]


KINDS = ("message", "function_call", "function_call_output", "reasoning", "item_reference")


def _kind(item: Any) -> str:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)
    return kind if kind in KINDS else "other"


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[CallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[ReferenceItem, Tag("item_reference")]
    | Annotated[OtherItem, Tag("other")],
    Discriminator(_kind),
]


class FunctionTool(Fields):
    type: Annotated[Any, Refused(ONLY_FUNCTIONS, ("function",))]
    name: FunctionName
    description: str | None = None
    parameters: JsonMap | None = None
    strict: bool | None = None
    output_schema: Ignored = None
    allowed_callers: Ignored = None
    defer_loading: Annotated[Any, Refused("all tools are loaded", (False,))] = None
    async_: Annotated[Any, Refused("calls are answered in turn", (False,))] = Field(
        None, alias="async"
    )


class NamedChoice(Fields):
    type: Literal["function"]
    name: FunctionName


class AllowedChoice(Fields):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[JsonMap]


class JsonSchemaFormat(Fields):
    type: Literal["json_schema"]
    schema_: JsonMap = Field(alias="schema")
    name: str = ""
    description: str | None = None
    strict: bool | None = None


class TextConfig(Fields):
    format: (
        Annotated[TextFormat | ObjectFormat | JsonSchemaFormat, Field(discriminator="type")] | None
    ) = None
    verbosity: Annotated[Any, Refused("ask for a length in a message", ("medium",))] = None


class ReasoningConfig(Fields):
    effort: Effort | None = None
    summary: Annotated[
        Any, Field(description="Accepted; the reasoning itself is returned, never a summary.")
    ] = None
    generate_summary: Ignored = None
    context: Ignored = None
    mode: Annotated[Any, Refused("there is one mode", ("standard",))] = None


class ResponsesStreamOptions(Fields):
    include_obfuscation: Ignored = None


class ResponsesBody(Fields):
    """``POST /v1/responses``."""

    model: NonEmpty | None = None
    input: NonEmpty | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    previous_response_id: str | None = None
    stream: bool | None = None
    stream_options: ResponsesStreamOptions | None = None
    store: bool | None = None
    max_output_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: list[str] | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: (
        Literal["none", "auto", "required"]
        | Annotated[NamedChoice | AllowedChoice, Field(discriminator="type")]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    metadata: JsonMap | None = None
    user: Ignored = None
    client_metadata: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    max_tool_calls: Annotated[
        Any, Field(description="Accepted; it bounds built-in tools, of which there are none.")
    ] = None
    truncation: Annotated[Any, Refused("nothing is dropped from the input", ("disabled",))] = None
    background: Annotated[Any, Refused("use streaming", (False,))] = None
    background_options: Annotated[Any, Refused("use streaming")] = None
    conversation: Annotated[Any, Refused("use previous_response_id")] = None
    prompt: Annotated[Any, Refused("there are no stored prompt templates")] = None
    context_management: Annotated[Any, Refused("nothing is dropped from the input")] = None
    moderation: Annotated[Any, Refused("nothing is moderated here")] = None
    image: Annotated[Any, Refused("the model makes no images")] = None
    access_programs: Annotated[Any, Refused("there are none here")] = None
