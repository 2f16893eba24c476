"""Divergence: how far next-token distributions are from those of the full model.

The Kullback-Leibler divergence KL(reference || measured) in nats at every scored token,
its mean and its tail, how often both would take the same token, and the perplexity of
both on the same text. A reference is every expert that the model was trained with, at
the precision of the store, or of another store that holds more.

The suite's own text is answers of the demo's held-out set (``data/text.jsonl``), of which
the answer's tokens are scored; of a given text every token but the first of each window.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headgate.engine import Engine
from headgate.errors import ResourceError, UsageError
from headgate.evals.intervals import ratio_bootstrap, wilson
from headgate.evals.suites.items import Item, load_items, some, suite_file
from headgate.evals.templates import store_template
from headgate.measure.percentiles import percentile

#: Tokens of a window of given text.
WINDOW = 512
#: Bytes of logits that are in memory at once.
LOGITS_BYTES = 64 << 20
SHARES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}

Floats = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Passage:
    """A text to score.

    Attributes:
        ids: its tokens.
        start: the first token that is scored, at least 1.
    """

    id: str
    kind: str
    ids: tuple[int, ...]
    start: int

    @property
    def scored(self) -> int:
        return len(self.ids) - self.start


def own_passages(engine: Engine, limit: int | None = None) -> list[Passage]:
    """The suite's own text in the engine's template; what does not fit is left out."""
    template = store_template(engine.store)
    found = [
        _passage(engine, template, item) for item in some(load_items(suite_file("text")), limit)
    ]
    return [p for p in found if p.scored > 0 and len(p.ids) <= engine.context]


def _passage(engine: Engine, template: Any, item: Item) -> Passage:
    whole = template.render(item.messages, item.tools, False, enable_thinking=False)
    asked = template.render(item.messages[:-1], item.tools, True, enable_thinking=False)
    encode = engine.tokenizer.encode
    ids, head = encode(whole), encode(asked)
    # A template may print a turn that is past in another way than one that begins.
    start = len(head) if ids[: len(head)] == head else 1
    return Passage(item.id, item.kind, tuple(ids), start)


def text_passages(engine: Engine, path: Path, limit: int | None = None) -> list[Passage]:
    """A text file in windows.

    Raises:
        UsageError: it cannot be read, or is too short.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None
    ids = engine.tokenizer.encode(text)
    size = min(WINDOW, engine.context)
    parts = [ids[at : at + size] for at in range(0, len(ids), size)]
    found = [
        Passage(f"text {i:03d}", "text", tuple(p), 1) for i, p in enumerate(parts) if len(p) > 1
    ]
    if not found:
        raise UsageError(f"{path} has no two tokens")
    return found[:limit]


def log_probabilities(engine: Engine, passage: Passage) -> Iterator[npt.NDArray[np.float32]]:
    """Natural log probabilities before each scored token, float32 [n, vocab] at a time."""
    ids, session = list(passage.ids), engine.new_session()
    size = max(1, LOGITS_BYTES // (4 * engine.config.vocab_size))
    for at in range(0, len(ids) - 1, size):
        part = ids[at : min(at + size, len(ids) - 1)]
        logits = session.append(part, all_logits=True)
        logits = logits[max(0, passage.start - 1 - at) :]
        if len(logits):
            yield _log_softmax(logits)


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    x -= np.log(np.exp(x).sum(-1, keepdims=True))
    return x.astype(np.float32)


# -- the reference, kept on disk: two engines at once would halve each other's memory


def passages_digest(passages: Sequence[Passage]) -> str:
    """The same for the same tokens."""
    text = json.dumps([(p.ids, p.start) for p in passages])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_reference(
    engine: Engine, passages: Sequence[Passage], path: Path, progress: Progress = lambda *_: None
) -> None:
    """Log probabilities of the full model: ``path``, complete once it has that name.

    Raises:
        ResourceError: the disk is too small: 4 bytes for each scored token and each
            token of the vocabulary.
    """
    size = 4 * engine.config.vocab_size * sum(p.scored for p in passages)
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise ResourceError(
            f"the reference's log probabilities take {size >> 20} MiB, {path.parent} has "
            f"{free >> 20} MiB free: ask for fewer prompts with --limit"
        )
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            for number, passage in enumerate(passages, 1):
                for part in log_probabilities(engine, passage):
                    part.tofile(file)
                progress(number, len(passages))
        partial.replace(path)
    except OSError as error:
        raise ResourceError(f"cannot write {partial}: {error.strerror}") from None


def open_reference(path: Path, passages: Sequence[Passage], vocab: int) -> npt.NDArray[np.float32]:
    """What :func:`write_reference` has written, float32 [scored tokens, vocab].

    Raises:
        ResourceError: it is missing or not of these passages.
    """
    shape = (sum(p.scored for p in passages), vocab)
    try:
        if path.stat().st_size != 4 * math.prod(shape):
            raise ResourceError(f"{path} is of another text or model: delete it")
        return np.memmap(path, np.float32, "r", shape=shape)
    except OSError as error:
        raise ResourceError(f"cannot read {path}: {error.strerror}") from None


# -- figures


@dataclass(frozen=True)
class Tokens:
    """Figures of the scored tokens of one passage, each [n].

    Attributes:
        kl: KL(reference || measured) in nats.
        agree: both have the same likeliest token.
        nll, reference_nll: -log probability of the token that follows, in nats.
    """

    kind: str
    kl: Floats
    agree: npt.NDArray[np.bool_]
    nll: Floats
    reference_nll: Floats


def compare(
    engine: Engine,
    passages: Sequence[Passage],
    reference: npt.NDArray[np.float32],
    progress: Progress = lambda *_: None,
) -> list[Tokens]:
    """Every passage, measured against rows of ``reference``."""
    found, row = [], 0
    for number, passage in enumerate(passages, 1):
        kl, agree, nll, reference_nll = [], [], [], []
        at = passage.start
        for q in log_probabilities(engine, passage):
            p = np.asarray(reference[row : row + len(q)])
            following = np.array(passage.ids[at : at + len(q)])
            each = np.arange(len(q))
            kl.append(kl_divergence(p, q))
            agree.append(p.argmax(-1) == q.argmax(-1))
            nll.append(-q[each, following].astype(np.float64))
            reference_nll.append(-p[each, following].astype(np.float64))
            row, at = row + len(q), at + len(q)
        parts = map(np.concatenate, (kl, agree, nll, reference_nll))
        found.append(Tokens(passage.kind, *parts))
        progress(number, len(passages))
    return found


def kl_divergence(p: npt.NDArray[np.float32], q: npt.NDArray[np.float32]) -> Floats:
    """KL(p || q) in nats of rows of log probabilities (Kullback and Leibler, 1951)."""
    wide = p.astype(np.float64)
    found: Floats = (np.exp(wide) * (wide - q)).sum(-1)
    return np.maximum(found, 0)  # what is below is rounding


def summary(tokens: Sequence[Tokens]) -> dict[str, Any]:
    """Figures of all tokens; intervals draw whole passages again where they can."""
    kl = np.concatenate([t.kl for t in tokens])
    agree = int(sum(t.agree.sum() for t in tokens))
    counts = [len(t.kl) for t in tokens]
    found: dict[str, Any] = {
        "passages": len(tokens),
        "tokens": len(kl),
        "mean_kl": float(kl.mean()),
        "mean_kl_interval": list(ratio_bootstrap([float(t.kl.sum()) for t in tokens], counts)),
        **{f"{name}_kl": percentile(kl.tolist(), share) for name, share in SHARES.items()},
        "max_kl": float(kl.max()),
        "top1": {"n": len(kl), "score": agree / len(kl), "interval": list(wilson(agree, len(kl)))},
        "perplexity": _perplexity([t.nll for t in tokens]),
        "reference_perplexity": _perplexity([t.reference_nll for t in tokens]),
    }
    return found


def _perplexity(nll: Sequence[Floats]) -> float:
    return float(np.exp(np.concatenate(nll).mean()))


def summarize(tokens: Sequence[Tokens]) -> dict[str, Any]:
    """Figures of all tokens and of each kind of text."""
    kinds: dict[str, list[Tokens]] = {}
    for each in tokens:
        kinds.setdefault(each.kind, []).append(each)
    return {"all": summary(tokens), "kinds": {kind: summary(mine) for kind, mine in kinds.items()}}
