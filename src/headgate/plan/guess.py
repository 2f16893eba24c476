"""A model of a family that the engine does not have, from the usual fields of its
``config.json``. The experts come out exactly; attention approximately."""

from __future__ import annotations

from typing import Any

from headgate.errors import CheckpointError
from headgate.plan.model import Model, estimated_dense

#: what -> names that families give it
NAMES = {
    "hidden size": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layers", "num_layers"),
    "experts": ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    "experts per token": (
        "num_experts_per_tok",
        "num_experts_per_token",
        "experts_per_token",
        "moe_topk",
        "moe_top_k",
    ),
    "expert size": ("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size"),
    "vocabulary": ("vocab_size",),
    "attention heads": ("num_attention_heads",),
}
LIMIT = 1 << 31


def guess(name: str, raw: dict[str, Any], note: str) -> Model:
    """A forecastable model.

    Args:
        note: said of it.

    Raises:
        CheckpointError: names every field that is missing.
    """
    text = raw.get("text_config", raw)
    if not isinstance(text, dict):
        raise CheckpointError("config field text_config is not an object")
    found = {what: _number(text, names) for what, names in NAMES.items()}
    missing = [what for what, value in found.items() if value is None]
    if missing:
        said = "; ".join(f"{what} ({' or '.join(NAMES[what])})" for what in missing)
        kind = raw.get("model_type")
        dense = "experts" in missing and "experts per token" in missing
        why = "it seems not to be a Mixture-of-Experts model" if dense else "too little is known"
        raise CheckpointError(
            f"model_type {kind!r} is not supported, and no forecast can be made from its config: "
            f"{why}; missing: {said}"
        )
    n = {what: value for what, value in found.items() if value is not None}
    layers = n["layers"]
    dense_layers = min(layers - 1, _number(text, ("first_k_dense_replace",)) or 0)
    step = _number(text, ("interleave_moe_layer_step", "moe_layer_freq")) or 1
    moe_layers = -(-(layers - dense_layers) // step)
    attention, kv = _attention(text, n)
    wide = _number(text, ("intermediate_size_mlp", "intermediate_size")) or 0
    shared = 3 * n["hidden size"] * _shared(text, n["expert size"]) * moe_layers
    routers = moe_layers * n["experts"] * n["hidden size"]
    plain_mlp = 3 * n["hidden size"] * wide * (layers - moe_layers)
    tables = (1 if text.get("tie_word_embeddings") else 2) * n["vocabulary"] * n["hidden size"]
    parameters = layers * attention + shared + routers + plain_mlp + tables
    return Model(
        name,
        str(raw.get("model_type")),
        "estimate",
        "the usual fields of its config.json",
        layers,
        moe_layers,
        n["experts"],
        min(n["experts per token"], n["experts"]),
        n["hidden size"],
        n["expert size"],
        n["vocabulary"],
        _number(text, ("max_position_embeddings",)) or 1 << 17,
        layers,
        0,
        4 * kv * layers,
        estimated=estimated_dense(parameters, n["hidden size"], n["vocabulary"], routers, shared),
        notes=(note, "the size of its dense weights is estimated"),
    )


def _attention(text: dict[str, Any], n: dict[str, int]) -> tuple[int, int]:
    """Weights of a layer's attention, and values that it keeps of a token."""
    hidden, heads = n["hidden size"], n["attention heads"]
    head = _number(text, ("head_dim",)) or max(1, hidden // heads)
    latent = _number(text, ("kv_lora_rank",))
    if latent is None:
        kv = (_number(text, ("num_key_value_heads",)) or heads) * head
        return hidden * (2 * heads * head + 2 * kv), 2 * kv
    rope = _number(text, ("qk_rope_head_dim",)) or 64
    nope = _number(text, ("qk_nope_head_dim",)) or head
    value = _number(text, ("v_head_dim",)) or head
    query = heads * (nope + rope)
    rank = _number(text, ("q_lora_rank",))
    asked = rank * (hidden + query) if rank else hidden * query
    kept = latent + rope
    return asked + hidden * kept + latent * heads * (nope + value) + heads * value * hidden, kept


def _shared(text: dict[str, Any], size: int) -> int:
    """Intermediate size of all shared experts of a layer."""
    whole = _number(text, ("shared_expert_intermediate_size",))
    return whole if whole else (_number(text, ("n_shared_experts",)) or 0) * size


def _number(text: dict[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = text.get(name)
        if type(value) is int and 1 <= value <= LIMIT:
            return value
    return None
