"""Transcripts as text and token ids, marking what the assistant says."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = Path(__file__).parent
TEMPLATE = HERE / "chat_template.jinja"
TOKENIZER = HERE / "tokenizer.json"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]  # fmt: skip
ASSISTANT = "<|im_start|>assistant\n"
NO_THOUGHT = "<think>\n\n</think>\n\n"

# What a schema says over and over is one piece; whatever may have to be copied is cut
# the same way wherever it stands: words without their space, single digits and signs.
_KEYS = "type|function|name|description|parameters|properties|required|enum|items|ok|id|error"
PIECES = "|".join([
    rf'"(?:{_KEYS})": ',
    r'"(?:string|integer|number|boolean|array|object|null)"',
    r'\{"type": "function", "function": \{',
    r"\n?</?(?:parameter|function)[=>]",
    r"\p{L}+",
    r"\d",
    r"\n+",
    r"[^\p{L}\d]",
])  # fmt: skip


@lru_cache
def _template() -> Template:
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    env.filters["tojson"] = lambda x: json.dumps(x, ensure_ascii=False)

    def fail(message: str) -> None:
        raise ValueError(message)

    env.globals["raise_exception"] = fail
    return env.from_string(TEMPLATE.read_text())


def render(messages: list[dict[str, Any]], tools: Any = None, **variables: Any) -> str:
    """A transcript through the chat template."""
    return _template().render(messages=messages, tools=tools or None, **variables)


def spans(text: str, thinking: bool) -> Iterator[tuple[str, bool]]:
    """(text, whether the model says it); what it says ends with ``<|im_end|>``.

    The tags that the generation prompt holds are not the model's.
    """
    at = 0
    while (start := text.find(ASSISTANT, at)) >= 0:
        start += len(ASSISTANT)
        given = "<think>\n" if thinking else NO_THOUGHT
        if text.startswith(given, start):
            start += len(given)
        elif text.startswith(NO_THOUGHT, start):
            start += len(NO_THOUGHT)
        end = text.index("<|im_end|>", start) + len("<|im_end|>")
        yield text[at:start], False
        yield text[start:end], True
        at = end
    yield text[at:], False


def train_tokenizer(texts: Iterable[str], vocab_size: int, path: Path) -> None:
    """Byte-level BPE, saved as ``path``."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=SPECIALS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tok.save(str(path))
