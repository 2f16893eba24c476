"""What an answer is made of, in the order in which it arises.

Beside these, an answer has the events of :mod:`headgate.chat.output`: pieces of
reasoning, of content and of tool calls.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from headgate.chat.output import CallArguments, CallEnd, CallStart, Content, Reasoning

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Progress:
    """``done`` of the prompt's ``total`` tokens have been processed, ``cached`` of them
    taken from a kept prefix. All 0 while the request waits for its turn."""

    done: int = 0
    total: int = 0
    cached: int = 0


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its natural log probability under the model's unchanged distribution.

    Attributes:
        top: the likeliest tokens there, likeliest first, as (token, text, logprob).
    """

    token: int
    text: str
    logprob: float | None
    top: list[tuple[int, str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Logprobs:
    """Log probabilities of tokens whose text has been passed on, or is about to be."""

    tokens: list[TokenLogprob]


@dataclass(frozen=True)
class Usage:
    """Token counts. ``cached`` ones are among ``prompt``, ``reasoning`` ones among
    ``completion``."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0


@dataclass(frozen=True)
class Finished:
    """The last event of a complete answer.

    Attributes:
        stop: the stop string that ended it, if one did.
        prompt_logprobs: of the prompt's tokens, if they were asked for.
        ttft_s: seconds from submission to the first token.
        decode_s: seconds from the first token to the last.
    """

    reason: FinishReason
    usage: Usage
    stop: str | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    ttft_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True)
class Failed:
    """The last event of an answer that an error has ended."""

    error: Exception


AnswerEvent = (
    Reasoning
    | Content
    | CallStart
    | CallArguments
    | CallEnd
    | Progress
    | Logprobs
    | Finished
    | Failed
)
