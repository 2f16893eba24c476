"""Synthetic stores: what is in them, and that the engine can live on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headgate.engine import Engine
from headgate.errors import StoreError, UnsupportedModel, UsageError
from headgate.measure.synth import SynthOptions, catalogue, shape_config, synth
from headgate.models import parse_config
from headgate.store import Store, verify
from tests.checkpoints import tiny_config
from tests.stores import dense_weights, digests, expert_weights


def small_config(**changes: Any) -> dict[str, Any]:
    sizes = {
        "hidden_size": 128,
        "moe_intermediate_size": 64,
        "num_experts": 8,
        "vocab_size": 300,
        "max_position_embeddings": 4096,
    }
    return tiny_config(**{**sizes, **changes})


def written(out: Path, config: dict[str, Any] | None = None, **options: Any) -> Store:
    return Store.open(synth(out, config or small_config(), SynthOptions(**options)).out)


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_weights_have_mean_zero_and_the_deviation_of_their_columns(
    tmp_path: Path, bits: int
) -> None:
    store = written(tmp_path / "s", expert_bits=bits, dense_bits=16 if bits == 16 else 8)
    assert not list(verify(store))
    for read_at in store.manifest.experts.readable_bits:
        for name, weights in expert_weights(store, read_at).items():
            scaled = weights * weights.shape[1] ** 0.5
            assert abs(scaled.mean()) < 0.1 and 0.9 < scaled.std() < 1.1, (name, read_at)
    for name, weights in dense_weights(store).items():
        if "proj" in name:
            assert 0.85 < weights.std() * weights.shape[1] ** 0.5 < 1.15, name


def test_no_two_segments_are_alike(tmp_path: Path) -> None:
    store = written(tmp_path / "s")
    assert len(np.unique(store.checksums)) == store.checksums.size


def test_decay_is_in_the_range_of_trained_models(tmp_path: Path) -> None:
    dense = dense_weights(written(tmp_path / "s"))
    decay, bias = (dense[f"layers.0.linear_attn.{n}"] for n in ("A_log", "dt_bias"))
    assert (np.exp(decay) >= 0.99).all() and (np.exp(decay) <= 16.01).all()
    step = np.log1p(np.exp(bias.astype(np.float64)))
    assert (step > 0.99e-3).all() and (step < 0.101).all()


def test_same_seed_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        written(tmp_path / name, seed=seed)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    assert all(a[name] != c[name] for name in a)


def test_interrupted_store_is_resumed_to_the_same_bytes(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(done: int, total: int, doing: str) -> None:
        if done > total // 2:
            raise Killed

    config, options = small_config(num_experts=40), SynthOptions(expert_bits=8)
    with pytest.raises(Killed):
        synth(tmp_path / "a", config, options, progress=kill)
    assert not (tmp_path / "a").exists()
    synth(tmp_path / "a", config, options)
    synth(tmp_path / "b", config, options)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    with pytest.raises(StoreError, match="exists already"):
        synth(tmp_path / "a", config, options)


@pytest.mark.parametrize(
    ("expert_bits", "dense_bits", "tokens"), [(4, 8, 2000), (2, 8, 300), (16, 16, 300)]
)
def test_thousands_of_generated_tokens_stay_finite_and_of_order_one(
    tmp_path: Path, expert_bits: int, dense_bits: int, tokens: int
) -> None:
    store = written(tmp_path / "s", expert_bits=expert_bits, dense_bits=dense_bits)
    assert store.manifest.provenance["source"] == "synthetic"
    engine = Engine(store, context=2100, threads=1)
    assert not engine.stop_ids
    session = engine.new_session()
    logits = session.append([1, 2, 3])
    seen = set()
    for _ in range(tokens):
        token = int(logits.argmax())
        seen.add(token)
        logits = session.append([token])
        assert 0.3 < logits.std() < 3, len(session.tokens)
    assert len(seen) > 20


def test_every_shape_in_the_catalogue_can_be_run() -> None:
    assert len(catalogue()) == 4
    for like in catalogue():
        config = parse_config(shape_config(like))
        assert config.moe_layers == tuple(range(config.num_hidden_layers))
        assert parse_config(shape_config(like, layers=5, vocab=1000)).vocab_size == 1000


def test_catalogue_has_the_published_sizes() -> None:
    def parameters(like: str) -> float:
        c = parse_config(shape_config(like))
        dense = sum(np.prod(t.shape, dtype=float) for t in c.dense_tensors().values())
        experts = 3 * c.hidden_size * c.moe_intermediate_size * c.num_experts
        return float(dense + experts * len(c.moe_layers)) / 1e9

    assert parameters("qwen3.5-397b-a17b") == pytest.approx(396.35, abs=0.01)
    assert parameters("Qwen3.5-122B-A10B") == pytest.approx(122.11, abs=0.01)
    assert parameters("qwen3.5-35b-a3b") == pytest.approx(34.66, abs=0.01)


def test_shape_of_a_config_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    raw = {"model_type": "qwen3_5_moe", "text_config": tiny_config(), "vision_config": {}}
    path.write_text(json.dumps(raw))
    config = shape_config(str(path), layers=5)
    store = written(tmp_path / "s", config)
    assert len(store.manifest.layers) == 5


@pytest.mark.parametrize(
    ("like", "content"),
    [("llama", None), ("absent.json", None), ("bad.json", "["), ("l.json", "[]")],
)
def test_unknown_shape_is_refused(tmp_path: Path, like: str, content: str | None) -> None:
    if content is not None:
        (tmp_path / like).write_text(content)
        like = str(tmp_path / like)
    with pytest.raises(UsageError, match=r"known:|cannot read|not a JSON object"):
        shape_config(like)


def test_what_cannot_be_written_is_refused_before_it_is_begun(tmp_path: Path) -> None:
    for options in ({"expert_bits": 5}, {"dense_bits": 4}, {"layers": 0}, {"seed": -1}):
        with pytest.raises(UsageError):
            SynthOptions(**options)
    with pytest.raises(UnsupportedModel):
        synth(tmp_path / "s", {"model_type": "gpt2"})
    assert not list(tmp_path.iterdir())
