"""Grammars that an answer must follow, as masks over the vocabulary.

llguidance keeps the state of a grammar and says which tokens may follow. It works in the
calling thread only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import llguidance
import numpy as np
import numpy.typing as npt
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from headgate.chat.call_grammar import CallGrammar, call_grammar, clean, json_options
from headgate.chat.schema import Tool
from headgate.chat.vocabulary import Vocabulary, check, one_line, with_deep_stack
from headgate.errors import UsageError

__all__ = ["Constraint", "Grammar", "Vocabulary"]

#: Characters of a grammar; larger ones take seconds to compile.
MAX_GRAMMAR = 1 << 17


class Grammar:
    """The text of a grammar, checked; may be shared by any number of answers.

    Use the class methods. All of them raise :class:`UsageError`, which says what is wrong
    or not supported.
    """

    def __init__(self, text: str, calls: CallGrammar | None = None) -> None:
        if len(text) > MAX_GRAMMAR:
            raise UsageError(
                f"the grammar has {len(text)} characters, at most {MAX_GRAMMAR} are supported"
            )
        self._text = text
        self._calls = calls
        bad, messages = with_deep_stack(
            lambda: llguidance.LLMatcher.validate_grammar_with_warnings(text)
        )
        if bad:
            raise UsageError(f"the grammar cannot be used: {one_line(messages[0])}")

    @classmethod
    def json_object(cls) -> Grammar:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def json_schema(cls, schema: dict[str, Any]) -> Grammar:
        """JSON by a schema, without white space around it."""
        if not isinstance(schema, dict):
            raise UsageError("the JSON schema is not an object")
        try:
            text = json.dumps(clean(schema), allow_nan=False)
            grammar = llguidance.LLMatcher.grammar_from_json_schema(
                text, overrides=json_options(text)
            )
        except RecursionError:
            raise UsageError("the JSON schema is nested too deeply") from None
        except (TypeError, ValueError) as error:
            raise UsageError(f"the JSON schema cannot be used: {one_line(error)}") from None
        return cls(str(grammar))

    @classmethod
    def lark(cls, text: str) -> Grammar:
        """A context-free grammar in llguidance's Lark dialect; special tokens are written
        as their ids, ``<[5]>``."""
        return cls(str(llguidance.LLMatcher.grammar_from_lark(text)))

    @classmethod
    def regex(cls, text: str) -> Grammar:
        """A regular expression in the syntax of Rust's ``regex``, for the whole answer."""
        return cls(str(llguidance.LLMatcher.grammar_from_regex(text)))

    @classmethod
    def tool_calls(
        cls,
        tools: Sequence[Tool],
        *,
        choice: Literal["auto", "required"] | str = "required",
        parallel: bool = True,
        strict: set[str] | None = None,
    ) -> Grammar:
        """Tool calls in Qwen3.5's form.

        Args:
            choice: ``required`` for calls and nothing else, a name for calls to that
                function only, ``auto`` for free text in which calls follow the grammar.
            parallel: whether there may be more than one call.
            strict: names of the functions whose arguments follow their schema; all if None.
        """
        calls = call_grammar(tools, choice, parallel, strict)
        return cls(calls.lark('"<tool_call>"', '"</tool_call>"'), calls)

    def start(self, vocabulary: Vocabulary) -> tuple[Any, int | None]:
        """A fresh state, and the token behind which it applies; None from the start."""
        if self._calls is None:
            return vocabulary.matcher(self._text), None
        closing = vocabulary.symbol("</tool_call>")
        trigger = vocabulary.token("<tool_call>")
        if self._calls.choice == "auto" and trigger is not None:
            return vocabulary.matcher(self._calls.lark_after_opening(closing)), trigger
        opening = vocabulary.symbol("<tool_call>")
        return vocabulary.matcher(self._calls.lark(opening, closing)), None

    @property
    def repeats(self) -> bool:
        """Whether the grammar applies again behind its next trigger."""
        return self._calls is not None and self._calls.parallel


class Constraint:
    """What may follow in one answer.

    Args:
        after: id of a token, such as ``</think>``, up to which everything is free. One
            blank line may follow it before the grammar begins.

    Raises:
        UsageError: the grammar cannot be used with this vocabulary.
    """

    def __init__(
        self, vocabulary: Vocabulary, grammar: Grammar, *, after: int | None = None
    ) -> None:
        self._vocabulary = vocabulary
        self._initial, self._trigger = grammar.start(vocabulary)
        self._repeats = grammar.repeats
        self._after = after
        self._newlines = 2 if after is not None and self._trigger is None else 0
        self._matcher: Any = None if self._trigger is not None else self._initial
        self._ended = False
        self._bits = allocate_token_bitmask(1, vocabulary.size)

    @property
    def _free(self) -> bool:
        return not self._ended and (self._after is not None or self._matcher is None)

    @property
    def finished(self) -> bool:
        """Whether nothing but a stop token may follow."""
        if self._ended:
            return True
        return not self._free and bool(self._matcher.is_stopped())

    def mask(self) -> npt.NDArray[np.bool_] | None:
        """The tokens that may follow, stop tokens included where the answer may end.

        Returns:
            bool [vocabulary size]; None while everything may.

        Raises:
            UsageError: the grammar turned out too complex, or allows nothing.
        """
        if self._free:
            return None
        if self.finished:
            allowed = np.zeros(self._vocabulary.size, np.bool_)
            allowed[self._vocabulary.stop_ids] = True
            return allowed
        fill_next_token_bitmask(self._matcher, self._bits)
        check(self._matcher)
        octets = self._bits.view(np.uint8).reshape(-1)
        allowed = np.unpackbits(octets, bitorder="little")[: self._vocabulary.size].view(np.bool_)
        for token, count in self._vocabulary.newlines.items():
            if count <= self._newlines:
                allowed[token] = True
        return allowed

    def forced(self) -> list[int]:
        """The tokens that must follow, as far as there is only one way; may be empty."""
        if self._free or self.finished or self._newlines:
            return []
        return [int(token) for token in self._matcher.compute_ff_tokens()]

    def accept(self, token: int) -> None:
        """Go on behind ``token``.

        Raises:
            UsageError: the grammar does not allow it. Nothing has changed.
        """
        if self._after is not None:
            self._after = None if token == self._after else self._after
        elif self._free:
            if token == self._trigger:
                self._matcher = self._initial.deep_copy()
        elif self._newlines and 0 < self._vocabulary.newlines.get(token, 0) <= self._newlines:
            self._newlines -= self._vocabulary.newlines[token]
        elif token in self._vocabulary.stop_ids and self._may_stop():
            self._ended = True
        elif self.finished or not self._matcher.try_consume_tokens([token]):
            if self._matcher is not None:
                check(self._matcher)
            raise UsageError(f"token {token} is not allowed here")
        else:
            self._newlines = 0
            if self._trigger is not None and self._matcher.is_stopped():
                self._matcher, self._ended = None, not self._repeats

    def _may_stop(self) -> bool:
        return self.finished or bool(self._matcher.is_accepting())
