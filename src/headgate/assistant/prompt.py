"""From messages to token ids, and the positions at which a state is worth keeping."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from headgate.assistant.messages import for_template
from headgate.assistant.request import ChatRequest, Message
from headgate.chat import ChatTemplate, Tokenizer, opens_thinking
from headgate.chat.schema import Tool
from headgate.errors import InvalidRequest, UsageError

#: Variables that the server itself gives to the template.
RESERVED = ("messages", "tools", "add_generation_prompt")

#: Two user messages with nothing in common: what precedes their difference in a
#: rendered prompt is the same for every conversation.
PROBES = ("A", "0")

#: Prefixes of fewer tokens are as soon processed as restored.
SHORTEST = 16


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation.

    Attributes:
        ids: its tokens.
        thinking: whether the answer begins inside the reasoning.
        boundaries: ascending positions in ``ids`` up to which other prompts may be the
            same as this one: after the system and tools block, before the last question,
            after the last message.
    """

    ids: list[int]
    thinking: bool
    boundaries: tuple[int, ...]


class PromptBuilder:
    """Renders conversations with one model's template and tokenizer."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        self._template, self._tokenizer = template, tokenizer

    def build(self, request: ChatRequest) -> Prompt:
        """The prompt of a request.

        Raises:
            InvalidRequest: the template refuses the messages, or a text is not valid
                Unicode.
        """
        messages, tools = for_template(request.messages), _shown_tools(request)
        variables = _variables(request)

        def render(part: Sequence[Message], generation: bool) -> str:
            return self._template.render(part, tools, add_generation_prompt=generation, **variables)

        try:
            text = render(messages, True)
            ids, ends = self._tokenizer.encode_with_ends(text)
        except InvalidRequest:
            raise
        except UsageError as error:
            raise InvalidRequest("messages", str(error)) from None
        except (UnicodeEncodeError, TypeError):  # unpaired surrogates
            raise InvalidRequest("messages", "a text is not valid Unicode") from None
        except RecursionError:
            raise InvalidRequest("messages", "a value is nested too deeply") from None
        cuts = {len(p) for p in _cuts(render, messages) if p and text.startswith(p)}
        positions = {bisect_right(ends, cut) for cut in cuts}
        boundaries = tuple(sorted(at for at in positions if at >= SHORTEST))
        return Prompt(ids, opens_thinking(text), boundaries)


def _shown_tools(request: ChatRequest) -> Sequence[Tool] | None:
    return None if request.tool_choice == "none" else request.tools


def _variables(request: ChatRequest) -> dict[str, Any]:
    variables = dict(request.template_variables)
    for name in RESERVED:
        if name in variables:
            raise InvalidRequest("chat_template_kwargs", f"chat_template_kwargs may not set {name}")
    if request.thinking is not None:
        variables["enable_thinking"] = request.thinking
    return variables


Render = Callable[[Sequence[Message], bool], str]


def _cuts(render: Render, messages: Sequence[Message]) -> list[str | None]:
    """Beginnings of the rendered text that other prompts may share."""
    system = [m for m in messages[:1] if m["role"] == "system"]
    questions = [i for i, m in enumerate(messages) if m["role"] == "user"]
    parts = [system, *([messages[: questions[-1]]] if questions else [])]
    try:
        whole = render(messages, False)
    except UsageError:
        whole = None
    return [*(_shared(render, part) for part in parts), whole]


def _shared(render: Render, messages: Sequence[Message]) -> str | None:
    """What all prompts have in common that go on behind ``messages`` with a question. How
    a template prints an answer depends on whether one follows, so that is asked."""
    try:
        first, second = (
            render([*messages, {"role": "user", "content": probe}], False) for probe in PROBES
        )
    except UsageError:  # some templates refuse, say, two questions in a row
        return None
    same = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 0)
    return first[:same] or None
