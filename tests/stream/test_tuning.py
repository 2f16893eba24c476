"""Chunk size and depth from the cost model."""

from __future__ import annotations

from headgate.stream import CostModel, StreamOptions, tuned
from headgate.stream.tuning import CHUNKS, DEPTHS, read_plan

RECORD = 1_769_472


def test_one_read_that_fills_the_drive_is_not_cut() -> None:
    model = CostModel(latency=1e-6, stream=2e9, overhead=1e-6, bandwidth=2e9, sharpness=4)
    assert read_plan(model, RECORD, 8) == (max(CHUNKS), min(DEPTHS))


def test_slow_lone_reads_are_cut_and_kept_in_flight_together() -> None:
    model = CostModel(latency=1e-4, stream=2e8, overhead=1e-6, bandwidth=6e9, sharpness=4)
    chunk, depth = read_plan(model, RECORD, 8)
    assert chunk < RECORD and depth >= 32


def test_plan_is_the_soonest_of_all() -> None:
    model = CostModel(latency=8e-5, stream=9e8, overhead=5e-6, bandwidth=3e9, sharpness=3)

    def seconds(chunk: int, depth: int) -> float:
        pieces = -(-RECORD // chunk)
        return model.seconds(8 * pieces, RECORD / pieces, depth)

    best = min(seconds(chunk, depth) for chunk in CHUNKS for depth in DEPTHS)
    assert seconds(*read_plan(model, RECORD, 8)) <= best * 1.1


def test_what_is_given_is_kept() -> None:
    model = CostModel(latency=8e-5, stream=9e8, overhead=5e-6, bandwidth=3e9, sharpness=3)
    assert tuned(StreamOptions(), None, RECORD, 8) == StreamOptions()
    given = StreamOptions(chunk_bytes=65536, depth=5)
    assert tuned(given, model, RECORD, 8) == given
    half = tuned(StreamOptions(depth=5), model, RECORD, 8)
    assert half.depth == 5 and half.chunk_bytes in CHUNKS
