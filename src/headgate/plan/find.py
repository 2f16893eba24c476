"""From what the user names to a model: a store, a checkpoint, a config.json, a name."""

from __future__ import annotations

import difflib
import json
from functools import cache
from pathlib import Path
from typing import Any, cast

from headgate.convert.checkpoint import CONFIG_FILE, Checkpoint
from headgate.convert.convert import open_source
from headgate.convert.mlx import quantization_settings
from headgate.convert.names import resolve
from headgate.convert.source import ConvertOptions
from headgate.errors import CheckpointError, UsageError
from headgate.measure.synth import shape_config
from headgate.models import CONFIGS, parse_config
from headgate.plan.guess import guess
from headgate.plan.model import (
    Model,
    estimated_dense,
    from_config,
    kept_tensors,
    stored_tensors,
)
from headgate.store import Store
from headgate.store.reader import MANIFEST_FILE

SHAPES_FILE = Path(__file__).with_name("shapes.json")
MAX_CONFIG = 16 << 20


@cache
def catalogue() -> dict[str, Any]:
    """``models``: name -> shape, and ``evidence``: what its words mean."""
    found: dict[str, Any] = json.loads(SHAPES_FILE.read_bytes())
    return found


def find(what: str) -> Model:
    """The model that a word or path on the command line means.

    Raises:
        UsageError: there is nothing of this name; names the nearest.
        StoreError, CheckpointError: what is there is damaged, or says too little.
    """
    path = Path(what)
    names = {name.lower(): name for name in catalogue()["models"]}
    try:
        exists = path.exists()
    except (OSError, ValueError):
        exists = False
    if exists and path.is_dir():
        if (path / MANIFEST_FILE).exists() or not (path / CONFIG_FILE).exists():
            return from_store(path)
        return from_checkpoint(path)
    if exists:
        return from_json(path)
    key = what.lower().rpartition("/")[2]
    if key in names:
        return from_catalogue(names[key])
    close = difflib.get_close_matches(key, names, 3, 0.5)
    near = [names[name] for name in close or [n for n in names if key and key in n][:3]]
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(names.values())}"
    raise UsageError(
        f"there is no model {what!r}: give a store, a checkpoint, a config.json or a known name; "
        + hint
    )


def from_catalogue(name: str) -> Model:
    """A model known by name."""
    entry = catalogue()["models"][name]
    evidence = f"{entry['evidence']}: {catalogue()['evidence'][entry['evidence']]}"
    raw = entry.get("config") or ("shape" in entry and shape_config(entry["shape"]))
    if raw:
        config = parse_config(raw)
        return from_config(
            name, config, raw["model_type"], "config", evidence, kept_tensors(config)
        )
    pool = entry["moe_layers"] * entry["experts"] * 3
    pool *= entry["hidden_size"] * entry["moe_intermediate_size"]
    shared = 3 * entry["hidden_size"] * entry["shared_intermediate_size"] * entry["moe_layers"]
    routers = entry["moe_layers"] * entry["experts"] * entry["hidden_size"]
    dense = estimated_dense(
        entry["parameters"] - pool, entry["hidden_size"], entry["vocab_size"], routers, shared
    )
    return Model(
        name,
        entry["model_type"],
        "estimate",
        evidence,
        entry["layers"],
        entry["moe_layers"],
        entry["experts"],
        entry["experts_per_token"],
        entry["hidden_size"],
        entry["moe_intermediate_size"],
        entry["vocab_size"],
        1 << 17,
        entry["layers"],
        int(entry["fixed_state_bytes"]),
        # Published for 16-bit keys and values; the engine keeps them in float32.
        2 * entry["kv_bytes_per_token"],
        estimated=dense,
        notes=(_unsupported(entry["model_type"]), "the size of its dense weights is estimated"),
    )


def from_store(path: Path) -> Model:
    """A store as it is."""
    store = Store.open(path)
    manifest = store.manifest
    config = parse_config({**manifest.config, "model_type": manifest.model_type})
    uniform = manifest.provenance.get("source") == "synthetic"
    notes = ("its weights are random: they route uniformly",) if uniform else ()
    return from_config(
        path.name,
        config,
        manifest.model_type,
        "store",
        "sizes of the store on disk",
        stored_tensors(store),
        bits=manifest.experts.bits,
        group_size=manifest.experts.group_size,
        store=store,
        uniform=uniform,
        notes=notes,
    )


def from_checkpoint(path: Path) -> Model:
    """A checkpoint as `headgate convert` would convert it; only headers are read."""
    checkpoint = Checkpoint.open(path)
    if not _known(checkpoint.config):
        return from_raw(str(path), checkpoint.config)
    config = parse_config(checkpoint.config)
    names = resolve(checkpoint.tensors, getattr(config, "tie_word_embeddings", False))
    # Nothing is quantised here.
    source = open_source(checkpoint, names, config, ConvertOptions(), cast(Any, None))
    quantised = quantization_settings(checkpoint.config) is not None
    return from_config(
        path.name,
        config,
        checkpoint.config["model_type"],
        "checkpoint",
        "headers of the checkpoint",
        source.dense,
        bits=source.experts.bits if quantised else None,
        group_size=source.experts.group_size,
        notes=tuple(source.notes),
    )


def from_json(path: Path) -> Model:
    """A ``config.json``."""
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise UsageError(f"{path} has more than {MAX_CONFIG} bytes")
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is not valid JSON") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return from_raw(str(path), raw)


def from_raw(name: str, raw: dict[str, Any]) -> Model:
    """The contents of a ``config.json``, of any family that says enough.

    Raises:
        CheckpointError: fields are missing; all of them are named.
    """
    if _known(raw):
        config = parse_config(raw)
        text = raw.get("text_config", raw)
        named = str(text.get("dtype") or text.get("torch_dtype") or "bfloat16")
        dtype = {"float16": "F16", "float32": "F32"}.get(named.removeprefix("torch."), "BF16")
        kept = kept_tensors(config, dtype=dtype)
        return from_config(name, config, raw["model_type"], "config", "its config.json", kept)
    return guess(name, raw, _unsupported(str(raw.get("model_type"))))


def _known(raw: dict[str, Any]) -> bool:
    return isinstance(raw.get("model_type"), str) and raw["model_type"] in CONFIGS


def _unsupported(model_type: str) -> str:
    return f"the engine does not have {model_type}: what follows is what it would need"
