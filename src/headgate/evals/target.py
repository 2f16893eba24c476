"""Who is asked: a question, an answer, and what can answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from headgate.chat import ToolCall
from headgate.errors import ResourceError

Message = Mapping[str, Any]
#: Of an answer, unless more are asked for.
MAX_TOKENS = 512

FinishReason = Literal["stop", "length"]


class NoAnswer(ResourceError):
    """The target failed to answer, repeatedly: no fault of the model."""


class DoesNotFit(ResourceError):
    """The question is longer than the target's context."""


@dataclass(frozen=True)
class Question:
    """One turn to be answered, greedily.

    Attributes:
        messages: in OpenAI's form; arguments of calls are objects.
        tools: function declarations in OpenAI's form.
        tool_choice: ``auto``, ``none``, ``required`` or a function's name.
        response_format: None, ``{"type": "json_object"}`` or ``{"type": "json_schema",
            "json_schema": {"name", "schema", "strict"}}``.
        strict: calls must follow their function's schema, held by a grammar.
        thinking: with reasoning before the answer, where the template knows of it.
        max_tokens: of the answer, reasoning included.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str = "auto"
    response_format: Mapping[str, Any] | None = None
    strict: bool = False
    thinking: bool = False
    max_tokens: int = MAX_TOKENS

    @property
    def constrained(self) -> bool:
        """Whether a grammar is needed."""
        return self.strict or self.response_format is not None


@dataclass(frozen=True)
class Answer:
    """What was answered.

    Attributes:
        text: content without reasoning and calls, stripped.
        calls: those that could be read.
        broken: texts of calls whose arguments are not a JSON object.
    """

    text: str
    calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""
    finish_reason: FinishReason = "stop"
    broken: tuple[str, ...] = ()


@dataclass
class Speed:
    """What answering took, over all questions so far.

    Attributes:
        decode_s: seconds from first tokens to last tokens, summed over answers.
        bytes_read: of experts; 0 where it is not known.
    """

    answers: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    decode_s: float = 0.0
    bytes_read: int = 0

    def to_dict(self) -> dict[str, float]:
        """For JSON: the sums, tokens per second and bytes read per token."""
        later = max(0, self.generated_tokens - self.answers)
        tokens = self.prompt_tokens + self.generated_tokens
        return {
            **vars(self),
            "decode_tokens_per_s": later / self.decode_s if self.decode_s > 0 else 0.0,
            "bytes_read_per_token": self.bytes_read / max(1, tokens),
        }


class Target(Protocol):
    """Something that answers questions. Thread-safe.

    Attributes:
        name: for reports.
        constrains: whether it can hold an answer to a grammar.
        speed: so far.
    """

    name: str
    constrains: bool
    speed: Speed

    def answer(self, question: Question) -> Answer:
        """Answer greedily.

        Raises:
            NoAnswer: it failed, also when asked again.
            DoesNotFit: the question is too long for it.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """What was asked, for reports: name, lossy knobs if known."""
        ...
