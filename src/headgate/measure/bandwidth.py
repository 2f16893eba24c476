"""What the roofline is drawn with: the drive's and the memory's bytes per second now.

Drives and busy machines change their speed by the minute, so these are quick, and are
taken right before and after whatever is compared with them.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from time import perf_counter

import numpy as np

from headgate._native import AlignedBuffer, ReadQueue, ThreadPool, read_memory
from headgate.engine.budget import available_bytes
from headgate.errors import StoreError
from headgate.measure.machine import last_level_cache_bytes
from headgate.store import Store
from headgate.stream import StreamOptions

MIB = 1 << 20
#: Bytes in flight or waiting in the queue, so that it is never empty.
QUEUED_BYTES = 64 * MIB
MOST_QUEUED = 4096
MEMORY_SAMPLES = 5


def drive_bandwidth(
    store: Store,
    bits: int,
    options: StreamOptions | None = None,
    seconds: float = 0.5,
    seed: int = 0,
) -> float:
    """Bytes per second of an endless row of random records of a store, read as the engine
    reads them: its chunk size, depth and throttle, from the same files.

    Raises:
        StoreError: a read failed.
    """
    options = options or StreamOptions()
    nbytes = store.layout.prefix_bytes(bits)
    slots = min(MOST_QUEUED, max(2, QUEUED_BYTES // nbytes))
    buffer = AlignedBuffer(slots * nbytes, True)
    buffer.array()[::4096] = 0  # taken from the system before the clock starts
    sizes = {"chunk_bytes": options.chunk_bytes, "depth": options.depth}
    queue = ReadQueue("auto", **{name: n for name, n in sizes.items() if n})
    try:
        if options.throttle:
            queue.set_throttle(options.throttle)
        target = queue.add_buffer(buffer)
        files = [queue.add_file(str(store.expert_path(n))) for n in store.manifest.layers]
        places = _places(len(files), store.manifest.num_experts, seed)

        def submit(slot: int) -> tuple[int, int, int, int, int, int, int]:
            file, expert = next(places)
            offset = expert * store.layout.stride
            return slot, files[file], offset, nbytes, target, slot * nbytes, 0

        queue.submit([submit(slot) for slot in range(slots)])
        began, done = 0.0, 0
        deadline = perf_counter() + seconds
        while True:
            free = _completed(queue)
            now = perf_counter()
            if not began:  # the queue is full now
                began, deadline = now, now + seconds
            else:
                done += len(free)
            if now >= deadline and done:
                return done * nbytes / (now - began)
            queue.submit([submit(slot) for slot in free])
    finally:
        queue.close()


def _completed(queue: ReadQueue) -> list[int]:
    slots = []
    for slot, error, _, _ in queue.wait():
        if error:
            reason = "the file ends early" if error < 0 else os.strerror(error)
            raise StoreError(f"cannot read the store: {reason}")
        slots.append(slot)
    return slots


def _places(files: int, experts: int, seed: int) -> Iterator[tuple[int, int]]:
    """(file, expert) without end, none twice before all have been."""
    rng = np.random.default_rng(seed)
    while True:
        for place in rng.permutation(files * experts).tolist():
            yield divmod(place, experts)


def memory_bandwidth(threads: int) -> float:
    """Bytes per second that ``threads`` threads read from memory; median of a few passes
    over a buffer larger than the caches."""
    wanted = max(256 * MIB, 2 * (last_level_cache_bytes() or 0))
    nbytes = max(16 * MIB, min(wanted, available_bytes() // 4))
    data = AlignedBuffer(nbytes, True).array()
    data[::4096] = 1
    pool = ThreadPool(threads)
    samples = []
    for _ in range(MEMORY_SAMPLES):
        began = perf_counter()
        read_memory(pool, data)
        samples.append(nbytes / (perf_counter() - began))
    return statistics.median(samples)
