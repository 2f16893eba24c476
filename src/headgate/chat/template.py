"""Chat templates, rendered as Hugging Face renders them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from headgate.chat.messages import normal_messages
from headgate.errors import UsageError


class ChatTemplate:
    """A Jinja chat template.

    Args:
        source: the template's text.
        special: named special tokens that templates refer to, such as ``bos_token``.
    """

    def __init__(self, source: str, special: Mapping[str, str] | None = None) -> None:
        env = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[jinja2.ext.loopcontrols, _GenerationTag],
        )
        env.filters["tojson"] = _tojson
        env.globals["raise_exception"] = _raise
        env.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        self._special = dict(special or {})
        self._developer = "developer" in source
        try:
            self._template = env.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
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
            named = {entry.get("name"): entry.get("template") for entry in source}
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
            messages: in OpenAI's form; see :func:`normal_messages` for what may vary.
            tools: function declarations in OpenAI's form.
            variables: further template variables, such as ``enable_thinking``.

        Raises:
            UsageError: the template refuses the messages; says why.
        """
        given = normal_messages(messages, self._developer)
        try:
            return self._template.render(
                messages=given,
                tools=list(tools) if tools else None,
                add_generation_prompt=add_generation_prompt,
                **{**self._special, **variables},
            )
        except Exception as error:  # a template is somebody's program
            text = str(error) or type(error).__name__
            raise UsageError(f"the chat template refuses these messages: {text}") from None


def opens_thinking(prompt: str) -> bool:
    """Whether a rendered prompt ends inside a think block, so that the answer begins with
    reasoning.

    Only a tag at the very end counts: one further up may be quoted by a message.
    """
    return prompt.rstrip().endswith("<think>")


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}`` ... ``{% endgeneration %}``, by which training code finds the
    assistant's text. Rendering needs the text alone."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
