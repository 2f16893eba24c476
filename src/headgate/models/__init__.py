"""Architectures: for each a configuration with its tensors, and a forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headgate.errors import CheckpointError, UnsupportedModel
from headgate.models.qwen3_5_moe import GRID, Qwen35Moe
from headgate.models.qwen3_5_moe_config import Qwen35MoeConfig
from headgate.models.qwen3_5_moe_state import State
from headgate.models.routing import Routing
from headgate.models.spec import ExpertSource, ModelConfig, Part, Role, TensorSpec
from headgate.ops import Ops, Weight

__all__ = [
    "CONFIGS",
    "GRID",
    "ExpertSource",
    "ModelConfig",
    "Part",
    "Role",
    "Routing",
    "State",
    "TensorSpec",
    "load_model",
    "parse_config",
]

#: model_type -> configuration class
CONFIGS = {"qwen3_5_moe": Qwen35MoeConfig, "qwen3_5_moe_text": Qwen35MoeConfig}


def parse_config(raw: dict[str, Any]) -> Qwen35MoeConfig:
    """The configuration in a ``config.json``.

    Raises:
        UnsupportedModel: no architecture for its ``model_type``; lists the known.
        CheckpointError: a field is missing or unusable.
    """
    model_type = raw.get("model_type")
    kind = CONFIGS.get(model_type) if isinstance(model_type, str) else None
    if kind is None:
        raise UnsupportedModel(
            f"model_type {model_type!r} is not supported; supported: {', '.join(sorted(CONFIGS))}"
        )
    try:
        return kind.from_dict(raw)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def load_model(
    config: Qwen35MoeConfig,
    weights: Mapping[str, Weight],
    ops: Ops,
    experts_per_token: int,
    routing: Routing | None = None,
    turn_ends: frozenset[int] = frozenset(),
) -> Qwen35Moe:
    """The forward pass for a configuration."""
    return Qwen35Moe(config, weights, ops, experts_per_token, routing, turn_ends)
