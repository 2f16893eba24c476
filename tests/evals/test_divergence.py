"""Divergence: zero for the same model, by the formula for others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headgate.engine import Engine
from headgate.errors import ResourceError, UsageError
from headgate.evals.suites import divergence
from headgate.evals.suites.divergence import Tokens
from tests.conftest import DemoStore


def engine(store: Path, **options: int) -> Engine:
    return Engine.load(store, threads=1, **options)


def test_kl_is_what_the_formula_gives() -> None:
    p = np.log(np.array([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]], np.float32))
    q = np.log(np.array([[0.25, 0.5, 0.25], [1 / 3, 1 / 3, 1 / 3]], np.float32))
    assert divergence.kl_divergence(p, q) == pytest.approx([0.25 * np.log(2), 0], abs=1e-6)


def test_same_model_diverges_nowhere_and_a_coarser_one_does(
    demo_store: DemoStore, tmp_path: Path
) -> None:
    full = engine(demo_store(4))
    passages = divergence.own_passages(full, 1)
    assert {p.kind for p in passages} == {"story", "chat", "calls", "JSON"}
    path = tmp_path / "reference"
    divergence.write_reference(full, passages, path)
    rows = divergence.open_reference(path, passages, full.config.vocab_size)
    assert len(rows) == sum(p.scored for p in passages)
    same = divergence.summary(divergence.compare(full, passages, rows))
    assert (same["mean_kl"], same["max_kl"], same["top1"]["score"]) == (0, 0, 1)
    assert same["perplexity"] == same["reference_perplexity"]
    coarse = engine(demo_store(4), expert_bits=2, experts_per_token=2)
    found = divergence.summarize(divergence.compare(coarse, passages, rows))
    every = found["all"]
    assert 0 < every["p50_kl"] <= every["p95_kl"] <= every["p99_kl"] <= every["max_kl"]
    assert every["mean_kl_interval"][0] < every["mean_kl"] < every["mean_kl_interval"][1]
    assert set(found["kinds"]) == {"story", "chat", "calls", "JSON"}
    assert sum(kind["tokens"] for kind in found["kinds"].values()) == every["tokens"]


def test_only_the_answer_of_an_own_passage_is_scored(demo_store: DemoStore) -> None:
    full = engine(demo_store())
    chat = next(p for p in divergence.own_passages(full, 1) if p.kind == "chat")
    answer = full.tokenizer.decode(list(chat.ids[chat.start :]))
    assert answer.endswith("<|im_end|>\n")
    assert "<|im_start|>" not in answer
    assert full.tokenizer.decode(list(chat.ids[: chat.start])).endswith("</think>\n\n")


def test_chunks_of_logits_change_nothing_but_rounding(
    demo_store: DemoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = engine(demo_store())
    passage = divergence.own_passages(full, 1)[0]
    whole = np.concatenate(list(divergence.log_probabilities(full, passage)))
    monkeypatch.setattr(divergence, "LOGITS_BYTES", 7 * 4 * full.config.vocab_size)
    parts = list(divergence.log_probabilities(full, passage))
    assert len(parts) > 2
    assert np.concatenate(parts) == pytest.approx(whole, abs=1e-3)
    assert np.exp(whole.astype(np.float64)).sum(-1) == pytest.approx(1, abs=1e-5)


def test_text_is_cut_into_windows(demo_store: DemoStore, tmp_path: Path) -> None:
    full = engine(demo_store())
    path = tmp_path / "text"
    path.write_text("On Monday Ada travelled to Oslo. " * 200)
    passages = divergence.text_passages(full, path)
    assert len(passages[0].ids) == divergence.WINDOW
    assert sum(len(p.ids) for p in passages) == len(full.tokenizer.encode(path.read_text()))
    assert {p.start for p in passages} == {1}
    assert len(divergence.text_passages(full, path, 2)) == 2
    path.write_text("")
    with pytest.raises(UsageError, match="no two tokens"):
        divergence.text_passages(full, path)
    with pytest.raises(UsageError, match="cannot read"):
        divergence.text_passages(full, tmp_path / "none")


def test_reference_of_another_text_is_refused(demo_store: DemoStore, tmp_path: Path) -> None:
    full = engine(demo_store())
    passages = divergence.own_passages(full, 1)
    path = tmp_path / "reference"
    path.write_bytes(bytes(16))
    with pytest.raises(ResourceError, match="another text"):
        divergence.open_reference(path, passages, full.config.vocab_size)
    with pytest.raises(ResourceError, match="cannot read"):
        divergence.open_reference(tmp_path / "none", passages, full.config.vocab_size)


def test_tail_and_perplexity_of_made_up_tokens() -> None:
    kl = np.arange(100) / 100
    nll = np.full(100, np.log(4.0))
    half = [Tokens("a", part, part < 0.9, nll[:50], nll[:50] / 2) for part in (kl[:50], kl[50:])]
    found = divergence.summary(half)
    assert found["mean_kl"] == pytest.approx(0.495)
    assert (found["p50_kl"], found["p95_kl"], found["p99_kl"]) == (0.49, 0.94, 0.98)
    assert found["max_kl"] == 0.99
    assert found["top1"]["score"] == 0.9
    assert (found["perplexity"], found["reference_perplexity"]) == pytest.approx((4, 2))
