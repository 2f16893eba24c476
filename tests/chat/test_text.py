"""Tokenizer, streaming decoder and chat template."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate.chat import ChatTemplate, StreamDecoder, Tokenizer
from headgate.demo import CHECKPOINT
from headgate.errors import UsageError

TOKENIZER = Tokenizer.from_bytes((CHECKPOINT / "tokenizer.json").read_bytes())


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_streamed_text_is_the_text(text: str) -> None:
    decoder = StreamDecoder(TOKENIZER)
    pieces = [decoder.push(token) for token in TOKENIZER.encode(text)]
    assert "".join(pieces) + decoder.flush() == text


def test_incomplete_characters_are_held_back() -> None:
    decoder = StreamDecoder(TOKENIZER)
    ids = TOKENIZER.encode("é🦊")
    pieces = [decoder.push(token) for token in ids]
    assert len(ids) > 2 and all("\ufffd" not in piece for piece in pieces)
    cut = StreamDecoder(TOKENIZER)
    assert cut.push(ids[0]) == "" and "\ufffd" in cut.flush()


def test_markup_survives_and_is_one_token() -> None:
    ids = TOKENIZER.encode("<tool_call>x</tool_call>")
    assert ids[0] == TOKENIZER.id_of("<tool_call>")
    assert TOKENIZER.decode(ids) == "<tool_call>x</tool_call>"


def test_damaged_tokenizer_is_refused() -> None:
    with pytest.raises(UsageError, match=r"tokenizer\.json"):
        Tokenizer.from_bytes(b"{}")


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": "<s>"})


def test_template_sees_what_hugging_face_gives_it() -> None:
    found = template(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'x' %}{% continue %}{% endif %}"
        "{{ m.content }}{% endfor %}{{ tools | tojson }}{{ enable_thinking }}"
    ).render(
        [{"role": "x", "content": "no"}, {"role": "y", "content": "é<"}],
        [{"a": "é<"}],
        enable_thinking=False,
    )
    assert found == '<s>é<[{"a": "é<"}]False'


def test_arguments_in_history_may_be_json_text() -> None:
    t = template(
        "{% for k, v in messages[0].tool_calls[0].function.arguments.items() %}"
        "{{ k }}={{ v }}{% endfor %}"
    )
    arguments = {"a": 1}
    for given_as in (arguments, json.dumps(arguments)):
        message = {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "f", "arguments": given_as}}],
        }
        assert t.render([message]) == "a=1"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no user query') }}",
        "{{ messages[3].content.x.y }}",
        "{{ 1 + 'a' }}",
        "{{ ''.__class__.__mro__ }}",
    ],
)
def test_template_errors_are_typed(source: str) -> None:
    with pytest.raises(UsageError, match="chat template"):
        template(source).render([{"role": "user", "content": "hi"}])


def test_unparsable_template_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be parsed"):
        template("{% if %}")


def test_template_file_comes_before_the_tokenizer_config() -> None:
    config = json.dumps({"chat_template": "old", "eos_token": {"content": "</s>"}}).encode()
    both = ChatTemplate.from_files(
        {"tokenizer_config.json": config, "chat_template.jinja": b"new{{ eos_token }}"}
    )
    assert both is not None and both.render([]) == "new</s>"
    old = ChatTemplate.from_files({"tokenizer_config.json": config})
    assert old is not None and old.render([]) == "old"
    named = json.dumps({"chat_template": [{"name": "default", "template": "d"}]}).encode()
    listed = ChatTemplate.from_files({"tokenizer_config.json": named})
    assert listed is not None and listed.render([]) == "d"
    assert ChatTemplate.from_files({}) is None
