"""Text to token ids and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import tokenizers

from headgate.errors import UsageError


class Tokenizer:
    """A ``tokenizer.json``."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        self._inner = inner

    @classmethod
    def from_bytes(cls, data: bytes) -> Tokenizer:
        """Parse a ``tokenizer.json``.

        Raises:
            UsageError: it is not one.
        """
        try:
            return cls(tokenizers.Tokenizer.from_buffer(data))
        except Exception as error:  # the library raises bare Exception
            raise UsageError(f"tokenizer.json cannot be used: {error}") from None

    def encode(self, text: str) -> list[int]:
        """Token ids; markup such as ``<|im_start|>`` becomes its own token, and
        nothing is added."""
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids as of :meth:`encode`, and where in ``text`` each token ends, in
        characters; white space at a token's end may not be counted."""
        found = self._inner.encode(text, add_special_tokens=False)
        return list(found.ids), [end for _, end in found.offsets]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``, markup included."""
        return str(self._inner.decode(list(ids), skip_special_tokens=False))

    def id_of(self, token: str) -> int | None:
        """The id of one token, None if there is no such token."""
        found = self._inner.token_to_id(token)
        return None if found is None else int(found)

    def thinking_ids(self) -> tuple[int, int] | None:
        """The ids of ``<think>`` and ``</think>``, None unless both are single tokens."""
        opening, closing = self.id_of("<think>"), self.id_of("</think>")
        return None if opening is None or closing is None else (opening, closing)

    def ids(self) -> npt.NDArray[np.int64]:
        """All ids that have a token, ascending. The model's vocabulary may be padded
        beyond them."""
        return np.array(sorted(self._inner.get_vocab(with_added_tokens=True).values()))


class StreamDecoder:
    """Decodes a growing sequence, holding back characters that are not complete."""

    #: Enough tokens for a decoder to tell whether a space belongs in front.
    OVERLAP = 4

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = 0  # where decoding starts
        self._shown = 0  # ids before this one have been returned as text

    def push(self, token: int) -> str:
        """The text that ``token`` completes; may be empty."""
        self._ids.append(token)
        before = self._tokenizer.decode(self._ids[self._context : self._shown])
        now = self._tokenizer.decode(self._ids[self._context :])
        if now.endswith("\ufffd"):
            return ""
        self._context = max(0, len(self._ids) - self.OVERLAP)
        self._context = min(self._context, self._shown)
        self._shown = len(self._ids)
        return now[len(before) :]

    def flush(self) -> str:
        """What is still held back, incomplete characters as U+FFFD."""
        before = self._tokenizer.decode(self._ids[self._context : self._shown])
        now = self._tokenizer.decode(self._ids[self._context :])
        self._shown = len(self._ids)
        return now[len(before) :]
