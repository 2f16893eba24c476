"""The demo checkpoint on rendered transcripts against transformers in float32."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headgate.chat import ChatTemplate
from headgate.convert import ConvertOptions, convert
from headgate.demo import CHECKPOINT
from headgate.engine import Engine
from tests.parity.reference import (
    Floats,
    divergence,
    greedy,
    likeliest_difference,
    load_reference,
    log_probabilities,
    log_softmax,
)

pytest.importorskip("transformers")

TRANSCRIPTS = Path(__file__).parent.parent.parent / "demo" / "held_out.jsonl"
SHORT = 1300  # characters of a line: transformers takes its time over the others


def rendered(engine: Engine) -> Iterator[tuple[list[int], list[int]]]:
    """(token ids of the prompt of the first answer, of the whole transcript)."""
    files = {"chat_template.jinja": engine.store.read_file("chat_template.jinja")}
    template = ChatTemplate.from_files(files)
    assert template is not None
    lines = [x for x in TRANSCRIPTS.read_text().splitlines() if len(x) < SHORT]
    for line in lines[:: len(lines) // 30][:30]:
        t = json.loads(line)
        thinking = {"enable_thinking": t["thinking"]}
        first = next(i for i, m in enumerate(t["messages"]) if m["role"] == "assistant")
        prompt = template.render(t["messages"][:first], t["tools"], **thinking)
        whole = template.render(t["messages"], t["tools"], add_generation_prompt=False, **thinking)
        yield engine.tokenizer.encode(prompt), engine.tokenizer.encode(whole)


def load(folder: Path, bits: int, dense: int, **options: Any) -> Engine:
    store = folder / f"{bits}-{dense}.headgate"
    if not store.exists():
        convert(CHECKPOINT, store, ConvertOptions(expert_bits=bits, dense_bits=dense))
    return Engine.load(store, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def exact(folder: Path) -> Engine:
    return load(folder, 16, 16)


@pytest.fixture(scope="module")
def reference() -> Any:
    return load_reference(CHECKPOINT)


def test_log_probabilities_agree(exact: Engine, reference: Any) -> None:
    worst = 0.0
    for _, ids in rendered(exact):
        ours = log_softmax(exact.new_session().append(ids, all_logits=True))
        worst = max(worst, likeliest_difference(ours, log_probabilities(reference, ids)))
    print(f"largest difference of the 20 likeliest log-probabilities: {worst:.2e}")
    assert worst <= 0.02


def test_greedy_continuations_are_identical(exact: Engine, reference: Any) -> None:
    for number, (prompt, _) in enumerate(rendered(exact)):
        ours = list(exact.new_session().generate(prompt, 64, stop=frozenset()))
        assert ours == greedy(reference, prompt, 64), f"transcript {number}"


def test_chunks_and_single_tokens_agree(exact: Engine) -> None:
    worst = 0.0
    for number, (_, ids) in enumerate(rendered(exact)):
        whole = log_softmax(exact.new_session().append(ids, 10**6, all_logits=True))
        for chunk in (1, 37) if number < 6 else (64,):
            parts = log_softmax(exact.new_session().append(ids, chunk, all_logits=True))
            worst = max(worst, float(np.abs(whole - parts).max()))
    print(f"largest difference between one chunk and several: {worst:.2e}")
    assert worst <= 1e-3


@pytest.fixture(scope="module")
def expected(exact: Engine, reference: Any) -> list[Floats]:
    return [log_probabilities(reference, ids) for _, ids in rendered(exact)]


def mean_divergence(engine: Engine, expected: list[Floats]) -> float:
    pairs = zip(rendered(engine), expected, strict=True)
    return float(
        np.mean(
            [
                divergence(theirs, log_softmax(engine.new_session().append(ids, all_logits=True)))
                for (_, ids), theirs in pairs
            ]
        )
    )


@pytest.mark.parametrize("dense", [16, 8])
def test_divergence_rises_as_expert_bits_fall(
    folder: Path, expected: list[Floats], dense: int
) -> None:
    found = {b: mean_divergence(load(folder, b, dense), expected) for b in (8, 4, 3, 2)}
    print(f"dense bits {dense}, mean KL:", {bits: f"{kl:.6f}" for bits, kl in found.items()})
    assert found[8] <= 1e-3
    assert found[8] < found[4] < found[3] < found[2]


def test_native_and_reference_operations_agree(folder: Path) -> None:
    engine = load(folder, 4, 8, exact_activations=True)
    slow = load(folder, 4, 8, backend="reference")
    for _, ids in list(rendered(engine))[:4]:
        a, b = (log_softmax(e.new_session().append(ids, all_logits=True)) for e in (engine, slow))
        assert likeliest_difference(a, b) < 1e-3
