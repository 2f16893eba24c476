"""Ways to quantise the demo's experts to few bits, compared at the same bytes.

Calibration reads transcripts of the training split with seeds of their own; divergence
and exact match are measured on the held-out set. The error of outputs is relative:
``sum (w - w') H (w - w')  /  sum w H w`` under each expert's second moments.

    python benchmarks/lowbits.py                     # a Markdown table
    python benchmarks/lowbits.py --exact 20          # and exact match at 2 bits, 20 a kind
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "demo"))

import evaluate
from corpus import transcript
from nesting import (
    Experts,
    encode_transcripts,
    load_experts,
    log_probabilities,
    min_max,
)

from headgate.chat import ChatTemplate
from headgate.convert import ConvertOptions, convert
from headgate.convert.calibration import LayerMoments, write_calibration
from headgate.demo import CHECKPOINT
from headgate.engine import Engine
from headgate.measure.moments import collect_moments
from headgate.store import Store
from headgate.store.record import record_matrices

#: Of the calibration transcripts; training begins at 0 and the held-out set is another split.
FIRST_SEED = 10**9
Layers = dict[int, LayerMoments]


def main() -> None:
    ap = argparse.ArgumentParser()
    ap.add_argument("--tokens", type=int, default=60_000, help="of the calibration")
    ap.add_argument("--exact", type=int, default=0, help="transcripts a kind; 0: none")
    ap.add_argument("--only", nargs="*", help="names of ways")
    a = ap.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = folder / "exact.headgate"
        convert(CHECKPOINT, store, ConvertOptions(expert_bits=16, dense_bits=16))
        engine = Engine.load(store)
        moments = collect_moments(engine, calibration_texts(engine, a.tokens))
        least = min(int(m.tokens.min()) for m in moments.values())
        print(f"calibration: {a.tokens} tokens, each expert saw {least} or more\n")
        judge = Judge(engine, moments, a.exact)
        for read in (2, 3, 4) if not a.only else ():
            experts = {
                k: {m: min_max(w, read) for m, w in e.items()} for k, e in judge.original.items()
            }
            judge.row(f"min-max | {read} | {read}", experts, 0.0)
        judge.exact("bfloat16 | 16 | 16", store, 16)
        for title, bits, layers in ways(moments):
            if a.only and title not in a.only:
                continue
            options = ConvertOptions(expert_bits=bits, dense_bits=16)
            if layers is not None:
                write_calibration(folder / "calibration", layers)
                options = dataclasses.replace(options, calibration=folder / "calibration")
            out = folder / f"{title}-{bits}".replace(" ", "-").replace(",", "")
            begin = time.monotonic()
            convert(CHECKPOINT, out, options)
            rate = judge.weights / (time.monotonic() - begin)
            for read in (p for p in (2, 3, 4) if p <= bits):
                judge.row(f"{title} | {bits} | {read}", read_experts(out, read), rate, out, read)


def ways(moments: Layers) -> list[tuple[str, int, Layers | None]]:
    """(name, bits of the store, calibration)."""
    diagonal = {
        n: LayerMoments(
            m.tokens,
            np.einsum("e,eii->i", m.tokens.astype(np.float32), m.inputs)
            / np.float32(m.tokens.sum()),
            np.einsum("eii->ei", m.hidden).copy(),
        )
        for n, m in moments.items()
    }
    layer = {
        n: LayerMoments(
            m.tokens,
            np.tensordot(m.tokens.astype(np.float32), m.inputs, 1) / np.float32(m.tokens.sum()),
            m.hidden,
        )
        for n, m in moments.items()
    }
    found: list[tuple[str, int, Layers | None]] = []
    for bits in (4, 2):
        found.append(("search", bits, None))
        found.append(("full moments", bits, moments))
    found.append(("diagonal", 4, diagonal))
    found.append(("inputs by layer", 4, layer))
    for bits in (3, 8):
        found.append(("search", bits, None))
        found.append(("full moments", bits, moments))
    return found


class Judge:
    """Prints a row of the table for each set of experts."""

    def __init__(self, engine: Engine, moments: Layers, limit: int) -> None:
        self.engine, self.moments, self.limit = engine, moments, limit
        self.original = load_experts(engine)
        self.prompts = encode_transcripts(engine)
        self.weights = sum(w.size for e in self.original.values() for w in e.values())
        self.expected = [log_probabilities(engine, self.original, p) for p in self.prompts]
        print(
            "| way | stored | read | error / variance | error of outputs | mean KL | Mweights/s |"
        )
        print("|---|---|---|---|---|---|---|", flush=True)

    def row(
        self, label: str, experts: Experts, rate: float, store: Path | None = None, bits: int = 0
    ) -> None:
        plain, output = [], []
        for (layer, expert), each in self.original.items():
            m = self.moments[layer]
            for name, w in each.items():
                h = (m.hidden if name == "down" else m.inputs)[expert]
                off = w - experts[layer, expert][name]
                plain.append(float((off**2).mean() / w.var()))
                output.append(float(((off @ h) * off).sum() / ((w @ h) * w).sum()))
        kl = []
        for p, ids in zip(self.expected, self.prompts, strict=True):
            q = log_probabilities(self.engine, experts, ids)
            kl.append((np.exp(p) * (p - q)).sum(-1))
        print(
            f"| {label} | {np.mean(plain):.4f} | {np.mean(output):.5f} "
            f"| {np.concatenate(kl).mean():.5f} | {rate / 1e6:.2f} |",
            flush=True,
        )
        if store is not None and bits == 2 and label.split(" | ")[1] in "24":
            self.exact(label, store, bits)

    def exact(self, label: str, store: Path, bits: int) -> None:
        if not self.limit:
            return
        found = evaluate.evaluate(store, {"expert_bits": bits}, held_out(self.limit), 2)
        scores = {k: round(v, 3) for k, v in found["scores"].items()}
        print(f"exact match, {label}: {scores}", flush=True)


def held_out(limit: int) -> list[dict[str, Any]]:
    counts: Counter[str] = Counter()
    found = []
    for line in evaluate.HELD_OUT.read_text(encoding="utf-8").splitlines():
        t = json.loads(line)
        counts[t["kind"]] += 1
        if counts[t["kind"]] <= limit:
            found.append(t)
    return found


def read_experts(path: Path, bits: int) -> Experts:
    store, experts = Store.open(path), {}
    for layer in store.manifest.layers:
        records = np.fromfile(store.expert_path(layer), np.uint8).reshape(-1, store.layout.stride)
        for expert, record in enumerate(records):
            experts[layer, expert] = dict(record_matrices(store.layout, record, bits))
    return experts


def calibration_texts(engine: Engine, tokens: int) -> list[list[int]]:
    files = {"chat_template.jinja": engine.store.read_file("chat_template.jinja")}
    template = ChatTemplate.from_files(files)
    assert template is not None
    found: list[list[int]] = []
    while (left := tokens - sum(map(len, found))) > 0:
        t = transcript(FIRST_SEED + len(found))
        text = template.render(
            t["messages"], t["tools"], add_generation_prompt=False, enable_thinking=t["thinking"]
        )
        found.append(engine.tokenizer.encode(text)[:left])
    return found


if __name__ == "__main__":
    sys.exit(main())
