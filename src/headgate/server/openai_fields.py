"""What OpenAI's chat and completion clients send."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from headgate.server.fields import (
    Count,
    Fields,
    FunctionName,
    Ignored,
    JsonMap,
    LogitBias,
    NonEmpty,
    OnlyText,
    Penalty,
    Probability,
    Refused,
    Seed,
    Temperature,
    TopK,
)

NO_AUDIO = "the model reads and writes text only"
LEGACY = "functions are declared in tools and chosen by tool_choice"
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Stop = NonEmpty | Annotated[list[NonEmpty], Field(max_length=16)]


class TextPart(Fields):
    type: Annotated[str, OnlyText(("text", "refusal"))]
    text: str | None = None
    refusal: str | None = None
    cache_control: Ignored = None
    prompt_cache_breakpoint: Ignored = None


Text = str | list[TextPart]


class CalledFunction(Fields):
    name: FunctionName
    arguments: str | JsonMap = "{}"


class ToolCallField(Fields):
    id: str = ""
    type: Annotated[Any, Refused("only functions can be called", ("function",))] = "function"
    function: CalledFunction
    index: Ignored = None


class SystemMessage(Fields):
    role: Literal["system", "developer"]
    content: Text
    name: Ignored = None


class UserMessage(Fields):
    role: Literal["user"]
    content: Text
    name: Ignored = None


class AssistantMessage(Fields):
    role: Literal["assistant"]
    content: Text | None = None
    name: Ignored = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCallField] | None = None
    refusal: str | None = None
    annotations: Ignored = None
    audio: Annotated[Any, Refused(NO_AUDIO)] = None
    function_call: Annotated[Any, Refused(LEGACY)] = None


class ToolMessage(Fields):
    role: Literal["tool"]
    content: Text
    tool_call_id: str = ""
    name: str | None = None


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class Function(Fields):
    name: FunctionName
    description: str | None = None
    parameters: JsonMap | None = None
    strict: bool | None = None


class FunctionTool(Fields):
    type: Annotated[Any, Refused("only function tools are supported", ("function",))] = "function"
    function: Function
    cache_control: Ignored = None


class NamedFunction(Fields):
    name: FunctionName


class NamedChoice(Fields):
    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Fields):
    mode: Literal["auto", "required"]
    tools: list[JsonMap]


class AllowedChoice(Fields):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoiceField = (
    Literal["none", "auto", "required"]
    | Annotated[NamedChoice | AllowedChoice, Field(discriminator="type")]
)


class SchemaFormat(Fields):
    name: str = ""
    description: str | None = None
    schema_: JsonMap | None = Field(None, alias="schema")
    strict: bool | None = None


class TextFormat(Fields):
    type: Literal["text"]


class ObjectFormat(Fields):
    type: Literal["json_object"]


class JsonSchemaFormat(Fields):
    type: Literal["json_schema"]
    json_schema: SchemaFormat


ResponseFormatField = Annotated[
    TextFormat | ObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class StreamOptions(Fields):
    include_usage: bool | None = None
    include_obfuscation: Ignored = None


class SamplingFields(Fields):
    """Fields of chat and plain completions alike; the last three are extensions."""

    model: NonEmpty | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    user: Ignored = None
    top_k: TopK | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None


class ChatBody(SamplingFields):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: ToolChoiceField | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormatField | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: JsonMap | None = None
    metadata: JsonMap | None = None
    store: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    verbosity: Annotated[Any, Refused("ask for a length in a message", ("medium",))] = None
    modalities: Annotated[Any, Refused(NO_AUDIO, (["text"],))] = None
    audio: Annotated[Any, Refused(NO_AUDIO)] = None
    prediction: Annotated[Any, Refused("predicted outputs are not used")] = None
    moderation: Annotated[Any, Refused("nothing is moderated here")] = None
    web_search_options: Annotated[Any, Refused("the server does not search the web")] = None
    function_call: Annotated[Any, Refused(LEGACY)] = None
    functions: Annotated[Any, Refused(LEGACY, ([],))] = None


TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class CompletionBody(SamplingFields):
    """``POST /v1/completions``."""

    prompt: (
        NonEmpty
        | TokenIds
        | Annotated[list[NonEmpty], Field(min_length=1, max_length=64)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=64)]
    )
    max_tokens: Annotated[int, Field(ge=0, le=1 << 31)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[Any, Refused("ask for n answers and choose", (1,))] = None
    suffix: Annotated[Any, Refused("the model does not fill in the middle", ("",))] = None
