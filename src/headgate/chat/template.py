"""Chat templates, rendered as Hugging Face renders them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from headgate.errors import UsageError


class ChatTemplate:
    """A Jinja chat template.

    Args:
        source: the template's text.
        special: named special tokens that templates refer to, such as ``bos_token``.
    """

    def __init__(self, source: str, special: Mapping[str, str] | None = None) -> None:
        env = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        env.filters["tojson"] = _tojson
        env.globals["raise_exception"] = _raise
        env.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        self._special = dict(special or {})
        try:
            self._template = env.from_string(source)
        except jinja2.TemplateError as error:
            raise UsageError(f"the chat template cannot be parsed: {error}") from None

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> ChatTemplate | None:
        """The template among a checkpoint's files, None if there is none.

        Args:
            files: name -> contents of ``chat_template.jinja`` and
                ``tokenizer_config.json``, as far as they exist.
        """
        config: dict[str, Any] = {}
        if raw := files.get("tokenizer_config.json"):
            try:
                config = json.loads(raw)
            except ValueError:
                raise UsageError("tokenizer_config.json is not valid JSON") from None
        special = {}
        for name, value in config.items():
            text = value.get("content") if isinstance(value, dict) else value
            if name.endswith("_token") and isinstance(text, str):
                special[name] = text
        source: Any = config.get("chat_template")
        if isinstance(source, list):  # several named ones
            named = {entry["name"]: entry["template"] for entry in source}
            source = named.get("default")
        if "chat_template.jinja" in files:
            source = files["chat_template.jinja"].decode("utf-8")
        return cls(source, special) if isinstance(source, str) else None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt for ``messages``.

        Args:
            messages: in OpenAI's form; tool calls' arguments may be JSON strings.
            tools: function declarations in OpenAI's form.
            variables: further template variables, such as ``enable_thinking``.

        Raises:
            UsageError: the template refuses the messages; says why.
        """
        try:
            return self._template.render(
                messages=[_with_parsed_arguments(message) for message in messages],
                tools=list(tools) if tools else None,
                add_generation_prompt=add_generation_prompt,
                **{**self._special, **variables},
            )
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError, KeyError) as error:
            raise UsageError(f"the chat template refuses these messages: {error}") from None


def _tojson(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _with_parsed_arguments(message: Mapping[str, Any]) -> dict[str, Any]:
    """Clients send arguments as a JSON string, templates iterate over a mapping."""
    if not message.get("tool_calls"):
        return dict(message)
    calls = []
    for call in message["tool_calls"]:
        function = dict(call.get("function", call))
        if isinstance(function.get("arguments"), str):
            try:
                function["arguments"] = json.loads(function["arguments"] or "{}")
            except ValueError:
                raise UsageError("a tool call's arguments are not valid JSON") from None
        calls.append({**call, "function": function} if "function" in call else function)
    return {**message, "tool_calls": calls}
