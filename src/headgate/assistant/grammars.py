"""What a request demands of the form of its answer."""

from __future__ import annotations

from headgate.assistant.request import ChatRequest, JsonObject, NamedTool
from headgate.chat import Grammar
from headgate.chat.schema import Tool
from headgate.errors import InvalidRequest, UsageError


def grammars_of(request: ChatRequest) -> tuple[Grammar, ...]:
    """The forms that the answer may take after its reasoning; none leave it free.

    Calls that may happen but need not are left free as long as no tool is strict: the
    model is then sampled as it is. A response format binds the content; where tools may
    be called as well, the answer is one or the other.

    Raises:
        InvalidRequest: a schema cannot be used, or the choice names no tool.
    """
    tools, choice = _callable_tools(request), request.tool_choice
    must_call = choice == "required" or isinstance(choice, NamedTool)
    strict = {tool["function"]["name"] for tool in tools} & request.strict_tools
    forms: list[Grammar] = []
    if must_call or (tools and request.response_format):
        single = isinstance(choice, NamedTool) or not request.parallel_tool_calls
        forms.append(_calls(tools, "required", not single, strict))
    elif tools and strict:
        forms.append(_calls(tools, "auto", request.parallel_tool_calls, strict))
    if request.response_format is not None and not must_call:
        forms.append(_content(request))
    return tuple(forms)


def _callable_tools(request: ChatRequest) -> list[Tool]:
    choice, tools = request.tool_choice, list(request.tools)
    if choice == "none":
        return []
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool["function"]["name"] == choice.name]
        if not tools:
            raise InvalidRequest("tool_choice", f"{choice.name!r} is not among the tools")
    if choice == "required" and not tools:
        raise InvalidRequest("tool_choice", "there are no tools that could be called")
    return tools


def _calls(tools: list[Tool], choice: str, parallel: bool, strict: set[str]) -> Grammar:
    try:
        return Grammar.tool_calls(tools, choice=choice, parallel=parallel, strict=strict)
    except UsageError as error:
        raise InvalidRequest("tools", str(error)) from None


def _content(request: ChatRequest) -> Grammar:
    form = request.response_format
    assert form is not None
    try:
        return (
            Grammar.json_object()
            if isinstance(form, JsonObject)
            else Grammar.json_schema(form.schema)
        )
    except UsageError as error:
        raise InvalidRequest("response_format", str(error)) from None
