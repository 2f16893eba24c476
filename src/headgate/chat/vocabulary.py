"""The tokenizer as llguidance needs it, and llguidance's errors as ours."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import llguidance

from headgate.errors import UsageError

#: Tokens that llguidance allows as a whole where it can: what most tokens are, text that
#: may stand in a JSON string, without the character that a tag begins with. Its own sets
#: take twice the memory and help little more.
SLICES = [r"[^\"\\\x00-\x1F\x7F<]{1,30}"]
#: The compiler recurses natively along chains of rules and does not check its stack.
_STACK = 256 << 20
_STACK_LOCK = threading.Lock()

_T = TypeVar("_T")


class Vocabulary:
    """A tokenizer as grammars need it; built once per engine.

    Args:
        tokenizer_json: contents of ``tokenizer.json``.
        size: rows of the model's vocabulary, padding included.
        stop_ids: tokens that end an answer.

    Attributes:
        size, stop_ids: as given, stop ids outside the vocabulary left out.

    Raises:
        UsageError: the tokenizer cannot be used.
    """

    def __init__(self, tokenizer_json: bytes, size: int, stop_ids: Iterable[int]) -> None:
        try:
            raw = json.loads(tokenizer_json)
            added = raw.get("added_tokens") or []
            self._added = {str(token["content"]): int(token["id"]) for token in added}
            self.size = size
            self.stop_ids = sorted(i for i in set(stop_ids) if 0 <= i < size)
            _hide_special(raw)
            self.tokenizer = llguidance.LLTokenizer(
                json.dumps(raw),
                n_vocab=size,
                eos_token=self.stop_ids or None,
                slices=SLICES,
            )
        except Exception as error:  # the library raises what it likes
            raise UsageError(f"tokenizer.json cannot be used: {one_line(error)}") from None
        self.newlines = {
            ids[0]: count
            for count in (1, 2)
            if len(ids := self.tokenizer.tokenize_str("\n" * count)) == 1
        }

    def token(self, text: str) -> int | None:
        """The id of an added token such as ``<tool_call>``, None if it is plain text."""
        return self._added.get(text)

    def symbol(self, text: str) -> str:
        """``text`` in a Lark grammar: the added token, or the text itself."""
        token = self.token(text)
        if token is not None and self.tokenizer.is_special_token(token):
            return f"<[{token}]>"
        return json.dumps(text)

    def matcher(self, grammar: str) -> Any:
        """A fresh state of a grammar.

        Raises:
            UsageError: the grammar cannot be used with this vocabulary.
        """

        def build() -> Any:
            matcher = llguidance.LLMatcher(self.tokenizer, grammar, log_level=0)
            if not matcher.is_error():
                matcher.compute_bitmask()
            return matcher

        matcher = with_deep_stack(build)
        check(matcher)
        return matcher


def _hide_special(raw: dict[str, Any]) -> None:
    """Give special tokens names that no text has. llguidance would otherwise write a name
    that a schema holds as text as that token, and then refuse it, as it stands for no text.
    Added tokens in angle brackets are special for it in any case."""
    vocabulary = raw.get("model", {}).get("vocab")
    for token in raw.get("added_tokens") or []:
        name = token["content"]
        if token.get("special") or (name.startswith("<") and name.endswith(">")):
            hidden = f"<|{secrets.token_hex(16)}|>"
            if isinstance(vocabulary, dict) and name in vocabulary:
                vocabulary[hidden] = vocabulary.pop(name)
            token["content"] = hidden


def check(matcher: Any) -> None:
    """Raise what is wrong with a state of a grammar, if anything is."""
    if matcher.is_error():
        raise UsageError(f"the grammar cannot be used: {one_line(matcher.get_error())}")


def with_deep_stack(work: Callable[[], _T]) -> _T:
    results: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # a panic of the library is no Exception
            errors.append(error)

    with _STACK_LOCK:
        before = threading.stack_size(_STACK)
        try:
            thread = threading.Thread(target=run, name="headgate-grammar")
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if errors:
        raise UsageError(f"the grammar cannot be used: {one_line(errors[0])}")
    return results[0]


def one_line(message: object) -> str:
    """What the library says in one line, not too long."""
    lines = str(message).strip().splitlines() or [type(message).__name__]
    reasons = {
        "NoExtensionBias": "nothing satisfies it",
        "NoExtension": "nothing satisfies it",
        "LexerTooComplex": "it is too complex",
        "ParserTooComplex": "it is too complex",
    }
    text = reasons.get(lines[0], lines[0])
    text += "".join(f" {line}" for line in lines[1:] if line.startswith("error: "))
    return text if len(text) <= 200 else text[:200] + " ..."
