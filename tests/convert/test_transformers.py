"""Checkpoints that the real libraries write are converted as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headgate.convert import ConvertOptions, convert
from headgate.models import parse_config
from headgate.store import Store
from tests.checkpoints import tiny_config
from tests.stores import dense_weights, expert_weights

torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")

TEXT = {k: v for k, v in tiny_config().items() if k not in ("model_type", "architectures")}
VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "out_hidden_size": 72,
    "num_position_embeddings": 16,
}


def text_only() -> Any:
    config = transformers.Qwen3_5MoeTextConfig(**TEXT)
    return transformers.Qwen3_5MoeForCausalLM(config)


def with_vision() -> Any:
    config = transformers.Qwen3_5MoeConfig(text_config=TEXT, vision_config=VISION)
    return transformers.Qwen3_5MoeForConditionalGeneration(config)


@pytest.mark.parametrize("make", [text_only, with_vision])
@pytest.mark.parametrize("shard", ["1GB", "60KB"])
def test_saved_checkpoint_converts_to_exactly_its_weights(
    make: Any, shard: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = make().to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "src", max_shard_size=shard)
    report = convert(tmp_path / "src", tmp_path / "out", ConvertOptions(16, 16))
    store = Store.open(tmp_path / "out")
    saved = json.loads((tmp_path / "src" / "config.json").read_text())
    assert store.manifest.model_type == saved["model_type"]
    assert ("vision" in report.skipped) == (make is with_vision)
    language = model.model.language_model if make is with_vision else model.model
    weights = {n: p.detach().float().numpy() for n, p in language.named_parameters()}
    weights["lm_head.weight"] = model.lm_head.weight.detach().float().numpy()
    check(store, weights)


def check(store: Store, weights: dict[str, np.ndarray[Any, Any]]) -> None:
    """Compare with the parameters of the model object, under its own names."""
    config = parse_config(store.manifest.config)
    dense, inter = dense_weights(store), config.moe_intermediate_size
    for name, spec in config.dense_tensors().items():
        expected = weights[name].reshape(spec.shape) + np.float32(spec.zero_centred)
        np.testing.assert_array_equal(dense[name], expected, name)
    experts = expert_weights(store)
    for layer in config.moe_layers:
        block = f"layers.{layer}.mlp.experts"
        for e in range(config.num_experts):
            both = weights[f"{block}.gate_up_proj"][e]
            for matrix, expected in (
                ("gate", both[:inter]),
                ("up", both[inter:]),
                ("down", weights[f"{block}.down_proj"][e]),
            ):
                found = experts[f"{block}.{e}.{matrix}_proj.weight"]
                np.testing.assert_array_equal(found, expected)
