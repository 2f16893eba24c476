"""What nested codes cost against codes made for one precision alone.

The experts of the demo checkpoint are quantised in several ways; printed are the
squared error relative to the weights' variance and the mean KL divergence of the
model's next-token distribution from that of its bfloat16 weights, everything but
the experts being exact.

    python benchmarks/nesting.py            # a Markdown table, several minutes
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headgate.chat import ChatTemplate
from headgate.convert import ConvertOptions, convert
from headgate.demo import CHECKPOINT
from headgate.engine import Engine
from headgate.quant import AffineMatrix, Quantizer, dequantize
from headgate.store.record import record_matrices

Floats = npt.NDArray[np.float32]
Experts = dict[tuple[int, int], dict[str, Floats]]

TRANSCRIPTS = Path(__file__).parent.parent / "demo" / "held_out.jsonl"
GROUP = 64
QUANTIZER = Quantizer(2)


class MemoryExperts:
    """Routed experts as plain matrices, in place of the stream."""

    def __init__(self, experts: Experts) -> None:
        self.experts = experts

    wants_suggestions = False

    def suggest(self, layer: int, ids: npt.NDArray[np.int32]) -> None:
        """Everything is in memory."""

    def request(self, layer: int, ids: npt.NDArray[np.int32]) -> Any:
        return layer, ids

    def compute(self, request: Any, x: Floats, weights: Floats, base: Floats) -> Floats:
        layer, ids = request
        out = base.copy()
        for expert in np.unique(ids):
            token, rank = np.nonzero(ids == expert)
            w, rows = self.experts[layer, int(expert)], x[token]
            gate = rows @ w["gate"].T
            hidden = gate / (1 + np.exp(-gate)) * (rows @ w["up"].T)
            np.add.at(out, token, weights[token, rank, None] * (hidden @ w["down"].T))
        return out


def min_max(w: Floats, bits: int) -> Floats:
    """Round-to-nearest between the extremes of each group: the baseline."""
    groups = w.reshape(-1, GROUP)
    low, high = groups.min(1, keepdims=True), groups.max(1, keepdims=True)
    step = np.maximum((high - low) / (2**bits - 1), np.float32(1e-12))
    return (np.rint((groups - low) / step) * step + low).reshape(w.shape)


def separate(bits: int) -> Callable[[Floats], Floats]:
    return lambda w: dequantize(QUANTIZER.quantize(w, bits, GROUP, nested=False))


def nested(stored: int, bits: int) -> Callable[[Floats], Floats]:
    cache: dict[int, AffineMatrix] = {}

    def run(w: Floats) -> Floats:
        if id(w) not in cache:
            cache[id(w)] = QUANTIZER.quantize(w, stored, GROUP)
        return dequantize(cache[id(w)], bits)

    return run


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "demo.headgate"
        convert(CHECKPOINT, store, ConvertOptions(expert_bits=16, dense_bits=16))
        engine = Engine.load(store)
        original = load_experts(engine)
        prompts = encode_transcripts(engine)
    expected = [log_probabilities(engine, original, ids) for ids in prompts]
    variance = float(np.mean([w.var() for e in original.values() for w in e.values()]))
    print("| bits read | quantised | error / variance | mean KL |\n|---|---|---|---|")
    for bits in (2, 3, 4, 8):
        ways = {"min-max, for these bits": lambda w, b=bits: min_max(w, b)}
        ways["least squares, for these bits"] = separate(bits)
        for stored in (4, 8):
            if stored > bits:
                ways[f"nested, prefix of {stored}"] = nested(stored, bits)
        if bits in (4, 8):
            ways["nested, whole code"] = nested(bits, bits)
        for name, way in ways.items():
            experts = {k: {m: way(w) for m, w in e.items()} for k, e in original.items()}
            error = np.mean(
                [
                    ((experts[k][m] - w) ** 2).mean()
                    for k, e in original.items()
                    for m, w in e.items()
                ]
            )
            kl = np.concatenate(
                [
                    (np.exp(p) * (p - log_probabilities(engine, experts, ids))).sum(-1)
                    for p, ids in zip(expected, prompts, strict=True)
                ]
            )
            print(f"| {bits} | {name} | {error / variance:.5f} | {kl.mean():.5f} |", flush=True)


def load_experts(engine: Engine) -> Experts:
    store, experts = engine.store, {}
    for layer in store.manifest.layers:
        records = np.fromfile(store.expert_path(layer), np.uint8).reshape(-1, store.layout.stride)
        for expert, record in enumerate(records):
            experts[layer, expert] = dict(record_matrices(store.layout, record, 16))
    return experts


def encode_transcripts(engine: Engine) -> list[list[int]]:
    files = {"chat_template.jinja": engine.store.read_file("chat_template.jinja")}
    template = ChatTemplate.from_files(files)
    assert template is not None
    texts = []
    for line in TRANSCRIPTS.read_text().splitlines()[:990:66]:
        t = json.loads(line)
        texts.append(template.render(t["messages"], t["tools"], add_generation_prompt=False))
    return [engine.tokenizer.encode(text) for text in texts]


def log_probabilities(engine: Engine, experts: Experts, ids: list[int]) -> Floats:
    model = engine.model
    logits = model.forward(ids, model.new_state(len(ids)), MemoryExperts(experts), all_logits=True)
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


if __name__ == "__main__":
    sys.exit(main())
