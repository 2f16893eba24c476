"""Score a model in training on transcripts that neither training nor the held-out set has.

Their names and values are of the held-out split, their seeds are not the held-out set's:
what is chosen by them (coefficients, lengths) is not chosen by the published scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from corpus import transcript
from held_out import held_out
from packing import ROW, Rows, encode
from routing import Trace, hit_rates, overlap

if TYPE_CHECKING:
    from train import Trainer

#: First seed of each kind.
FIRST = 10**6
SUMS = 200
#: Documents of each kind whose routing is replayed through caches.
REPLAYED = 25


@dataclass
class Document:
    """A transcript's tokens and where a batch has it.

    Attributes:
        spoken: bool [T], tokens that the model says.
    """

    kind: str
    ids: list[int]
    spoken: npt.NDArray[np.bool_]
    row: int = 0
    at: int = 0


def documents(tok: Any, limit: int | None = None) -> list[Document]:
    """The held-out set's kinds from other seeds, and sums that training never draws.

    Args:
        limit: of each kind.
    """
    sums = (transcript(FIRST + i, "sum", True) for i in range(SUMS))
    found: list[Document] = []
    counts: dict[str, int] = {}
    for t in [*held_out(FIRST), *sums]:
        counts[t["kind"]] = counts.get(t["kind"], 0) + 1
        if limit is None or counts[t["kind"]] <= limit:
            ids, weight = encode(tok, t)
            if len(ids) <= ROW:
                found.append(Document(t["kind"], ids, np.array(weight) == 1))
    return found


def batches(docs: list[Document], rows: int) -> Iterator[tuple[Rows, list[Document]]]:
    """Documents in order, packed; and which a batch holds."""
    waiting = list(docs)
    while waiting:
        ids = np.zeros((rows, ROW + 1), np.int16)
        position = np.tile(np.arange(ROW, dtype=np.int16), (rows, 1))
        held: list[Document] = []
        row = at = 0
        while waiting:
            doc = waiting[0]
            if at + len(doc.ids) > ROW:
                row, at = row + 1, 0
            if row == rows:
                break
            doc.row, doc.at = row, at
            end = at + len(doc.ids)
            ids[row, at:end] = doc.ids
            position[row, at:] = np.arange(ROW - at)
            held.append(waiting.pop(0))
            at = end
        yield Rows(ids, np.zeros((rows, ROW), np.float16), position), held


def trace_of(doc: Document, index: npt.NDArray[np.uint8]) -> Trace:
    """What generating ``doc`` would ask for; index [layers, T, top_k].

    A stretch of prompt is one call, a spoken token that another follows is one each.
    """
    trace: Trace = []
    decoded = doc.spoken & np.append(doc.spoken[1:], False)
    cuts = np.flatnonzero(decoded[1:] | decoded[:-1]) + 1
    for part in np.split(np.arange(len(doc.ids)), cuts):
        # A prompt's calls are never those of one token: 2 stands for several.
        tokens = 1 if decoded[part[0]] else 2
        for layer, chosen in enumerate(index):
            trace.append((layer, tokens, np.unique(chosen[part]).tolist()))
    return trace


def judge(trainer: Trainer, docs: list[Document]) -> dict[str, Any]:
    """Scores and routing.

    A transcript counts as exact if every token that the model says is the greedy choice
    after the right tokens before it: then greedy generation says exactly this.
    """
    good: dict[str, list[bool]] = {}
    story = [0.0, 0]
    used, tokens, trace = np.zeros((trainer.s.layers, trainer.s.experts)), 0, Trace()
    for rows, held in batches(docs, len(trainer.ids)):
        trainer.load(rows)
        # With gradients, so that what is compiled for training serves here too.
        losses = trainer.losses()
        shape = (len(trainer.ids), ROW)
        ce = losses.ce.detach().view(shape).cpu().numpy()
        right = losses.right.view(shape).cpu().numpy()
        index = losses.index.view(trainer.s.layers, *shape, -1).cpu().numpy()
        del losses
        for doc in held:
            here = slice(doc.at, doc.at + len(doc.ids) - 1)
            said = doc.spoken[1:]
            done = good.setdefault(doc.kind, [])
            done.append(bool(right[doc.row, here][said].all()))
            if doc.kind == "story":
                story = [story[0] + float(ce[doc.row, here][said].sum()), story[1] + said.sum()]
            mine = index[:, doc.row, doc.at : doc.at + len(doc.ids)]
            for layer, chosen in enumerate(mine):
                used[layer] += np.bincount(chosen.ravel(), minlength=trainer.s.experts)
            tokens += len(doc.ids)
            if len(done) <= REPLAYED:
                trace += trace_of(doc, mine)
    share = used / max(1, tokens)
    return {
        "exact": {kind: round(float(np.mean(v)), 3) for kind, v in good.items()},
        "story_perplexity": round(math.exp(story[0] / max(1, story[1])), 4),
        "least": share.min(1).round(4).tolist(),
        "most": share.max(1).round(4).tolist(),
        "overlap": round(overlap(trace), 3),
        "hit_rates": {k: round(v, 3) for k, v in hit_rates(trace, used.size).items()},
    }


def show(found: dict[str, Any]) -> str:
    """The figures of :func:`judge` in five lines."""
    pairs = zip(found["least"], found["most"], strict=True)
    return "\n".join([
        "exact " + ", ".join(f"{k} {v:.1%}" for k, v in found["exact"].items()),
        f"story perplexity {found['story_perplexity']:.3f}",
        "share of tokens by expert, least..most of each layer "
        + ", ".join(f"{a:.2%}..{b:.1%}" for a, b in pairs),
        f"experts in common with the token before {found['overlap']:.1%}",
        "LRU hit rate of decoded tokens " + ", ".join(f"{k} {v:.1%}" for k, v in found["hit_rates"].items()),
    ])  # fmt: skip
