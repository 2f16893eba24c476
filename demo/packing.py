"""Transcripts packed into rows of tokens, made by worker processes."""

from __future__ import annotations

import multiprocessing as mp
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from corpus import Transcript, transcript
from text import TOKENIZER, render, spans

ROW = 1024
PROMPT_WEIGHT = 0.1
#: Documents that wait for a row with room for them.
POOL = 48


@dataclass
class Rows:
    """Packed rows.

    Attributes:
        ids: int16 [R, ROW + 1], 0 where a row has nothing more.
        weight: float16 [R, ROW], of each target in the loss.
        position: int16 [R, ROW], of each input in its document.
    """

    ids: npt.NDArray[np.int16]
    weight: npt.NDArray[np.float16]
    position: npt.NDArray[np.int16]


def encode(tok: Any, t: Transcript) -> tuple[list[int], list[float]]:
    """Token ids of a transcript and what each weighs as a target."""
    ids: list[int] = []
    weights: list[float] = []
    for piece, spoken in spans(render(t["messages"], t["tools"]), t["thinking"]):
        part = tok.encode(piece, add_special_tokens=False).ids
        ids += part
        weights += [1.0 if spoken else PROMPT_WEIGHT] * len(part)
    return [*ids, 0], [*weights, PROMPT_WEIGHT]


def pack(documents: Iterator[tuple[list[int], list[float]]], rows: int) -> Rows:
    """Fill ``rows`` rows with whole documents, the largest that fits first."""
    ids = np.zeros((rows, ROW + 1), np.int16)
    weight = np.zeros((rows, ROW + 1), np.float16)
    position = np.zeros((rows, ROW), np.int16)
    pool: list[tuple[list[int], list[float]]] = []
    for row in range(rows):
        at = 0
        while True:
            while len(pool) < POOL and (found := next(documents, None)) is not None:
                if len(found[0]) <= ROW:
                    pool.append(found)
            room = ROW + 1 - at
            fits = [i for i, d in enumerate(pool) if len(d[0]) <= room]
            if not fits:
                break
            # The first of a row is any, or long documents would never be together.
            best = fits[0] if at == 0 else max(fits, key=lambda i: len(pool[i][0]))
            a, w = pool.pop(best)
            end = at + len(a)
            ids[row, at:end], weight[row, at:end] = a, w
            weight[row, at] = 0  # not a target of the document before
            position[row, at : min(end, ROW)] = np.arange(min(end, ROW) - at)
            at = end
        if at < ROW:
            position[row, at:] = np.arange(ROW - at)
    return Rows(ids, weight[:, 1:], position)


def _work(args: tuple[int, int]) -> Rows:
    start, rows = args
    from tokenizers import Tokenizer

    tok = Tokenizer.from_file(str(TOKENIZER))
    return pack((encode(tok, transcript(seed)) for seed in range(start, start + 10**6)), rows)


def feed(workers: int, first: int, rows: int) -> Iterator[Rows]:
    """Training rows without end, ``rows`` at a time; ``first`` is the first piece's number."""
    ahead = 3 * workers
    with mp.get_context("spawn").Pool(workers) as pool:
        waiting = deque(pool.apply_async(_work, ((_seed(first + i), rows),)) for i in range(ahead))
        while True:
            yield waiting.popleft().get()
            first += 1
            waiting.append(pool.apply_async(_work, ((_seed(first + ahead - 1), rows),)))


def _seed(piece: int) -> int:
    return 10**9 + piece * 10**6
