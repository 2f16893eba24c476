"""The chat template of a store."""

from __future__ import annotations

from headgate.chat import ChatTemplate
from headgate.errors import UsageError
from headgate.store import Store

TEMPLATE_FILES = ("chat_template.jinja", "tokenizer_config.json")


def store_template(store: Store) -> ChatTemplate:
    """The chat template of a store.

    Raises:
        UsageError: it has none.
    """
    files = store.manifest.files
    found = ChatTemplate.from_files(
        {name: store.read_file(name) for name in TEMPLATE_FILES if name in files}
    )
    if found is None:
        raise UsageError("the store has no chat template, which the suites need")
    return found
