"""A tiny random configuration in which no size is convenient, written by transformers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headgate.convert import ConvertOptions, convert
from headgate.engine import Engine
from tests.parity.reference import (
    greedy,
    likeliest_difference,
    load_reference,
    log_probabilities,
    log_softmax,
)

pytest.importorskip("transformers")

CONFIG: dict[str, Any] = {
    "vocab_size": 611,
    "hidden_size": 84,
    "num_hidden_layers": 7,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 20,
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 9,
    "linear_key_head_dim": 14,
    "linear_value_head_dim": 22,
    "linear_conv_kernel_dim": 4,
    "moe_intermediate_size": 36,
    "shared_expert_intermediate_size": 52,
    "num_experts": 13,
    "num_experts_per_tok": 5,
    "max_position_embeddings": 512,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5000.0,
        "partial_rotary_factor": 0.3,
    },
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    folder = tmp_path_factory.mktemp("odd")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.models.qwen3_5_moe.configuration_qwen3_5_moe import (
            Qwen3_5MoeTextConfig,
        )
        from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeForCausalLM

        torch.manual_seed(1)
        model = Qwen3_5MoeForCausalLM(Qwen3_5MoeTextConfig(**CONFIG))
        with torch.no_grad():
            for name, p in model.named_parameters():
                # Initial weights are so small that a wrong layer would hardly show.
                p.normal_(0, 0.3 if p.ndim == 1 else 2 * p.shape[-1] ** -0.5)
                if name.endswith("A_log"):
                    p.uniform_(-1, 2)
        model.bfloat16().save_pretrained(folder, max_shard_size="300KB")
    return folder


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Engine:
    store = checkpoint / "odd.headgate"
    convert(checkpoint, store, ConvertOptions(expert_bits=16, dense_bits=16))
    return Engine.load(store)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Any:
    return load_reference(checkpoint)


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(3)
    return [[int(t) for t in rng.integers(0, 611, n)] for n in (1, 2, 63, 64, 65, 150, 301)]


def test_log_probabilities_agree(engine: Engine, reference: Any) -> None:
    worst = 0.0
    for ids in prompts():
        ours = log_softmax(engine.new_session().append(ids, all_logits=True))
        worst = max(worst, likeliest_difference(ours, log_probabilities(reference, ids)))
    print(f"largest difference of the 20 likeliest log-probabilities: {worst:.2e}")
    assert worst <= 0.02


def test_greedy_continuations_are_identical(engine: Engine, reference: Any) -> None:
    for ids in prompts():
        assert list(engine.new_session().generate(ids, 64)) == greedy(reference, ids, 64)


def test_chunks_and_single_tokens_agree(engine: Engine) -> None:
    for ids in prompts():
        whole = log_softmax(engine.new_session().append(ids, 10**6, all_logits=True))
        for chunk in (1, 7, 100):
            parts = log_softmax(engine.new_session().append(ids, chunk, all_logits=True))
            assert np.abs(whole - parts).max() <= 1e-3


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [32, 128])
def test_quantised_experts_of_odd_shapes(checkpoint: Path, bits: int, group_size: int) -> None:
    """The same model from its dequantised weights and from its packed codes."""
    store = checkpoint / f"{bits}-{group_size}.headgate"
    convert(checkpoint, store, ConvertOptions(bits, 8, group_size))
    ids = prompts()[3]
    native = Engine.load(store, exact_activations=True).new_session()
    slow = Engine.load(store, backend="reference").new_session()
    a, b = (log_softmax(s.append(ids, all_logits=True)) for s in (native, slow))
    assert likeliest_difference(a, b) < 5e-3
