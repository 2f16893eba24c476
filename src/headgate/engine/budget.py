"""The memory budget: every part of the process accounted for before it is taken."""

from __future__ import annotations

import os
import re
import resource
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from headgate.engine.control_group import allowance_bytes
from headgate.errors import BudgetTooSmall, UsageError
from headgate.models import ModelConfig
from headgate.store import Store

MIB = 1 << 20

#: Thread stacks, allocator slack, buffers of the tokenizer and of the terminal.
MARGIN = 24 * MIB
PROMPT_CHUNKS = (512, 256, 128, 64, 32, 16)
#: Never take more than this of what the machine has free, unless told to.
DEFAULT_SHARE = 0.7
#: For kept states of prompts, of the budget and at most, unless told otherwise.
PREFIX_SHARE, PREFIX_MOST = 1 / 16, 2 << 30

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """``8G``, ``1.5GiB``, ``900M`` or a number of bytes; units are powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a size such as 8G, 900M or 1500000000")
    power = " KMGT".index(match[2].upper() or " ")
    return int(float(match[1]) * 1024**power)


def format_size(nbytes: float) -> str:
    """Bytes in words, three significant digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.4g} TiB"


def resident_bytes() -> int:
    """Resident memory of this process now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_bytes()


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = _kernel_figure("/proc/self/status", "VmHWM:")
    if peak is not None:
        return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def default_prefix_bytes(memory: int | None) -> int:
    """What kept states of prompts may take of a budget; None for what is free."""
    total = available_bytes() if memory is None else memory
    return min(int(total * PREFIX_SHARE), PREFIX_MOST)


def available_bytes() -> int:
    """Memory that this process could still take, by the kernel's own estimate and
    the limits of its control groups."""
    free = _kernel_figure("/proc/meminfo", "MemAvailable:")
    if free is None:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    allowance = allowance_bytes()
    return free if allowance is None else min(free, allowance)


def _kernel_figure(path: str, key: str) -> int | None:
    """A line ``key N kB`` of a file of the kernel, in bytes."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(key)]
    return int(found[0]) * 1024 if found else None


@dataclass(frozen=True)
class Budget:
    """How the memory of the process is divided, in bytes.

    Attributes:
        process: interpreter, libraries and a margin.
        dense: weights that every token needs.
        state: sequences of full context length.
        scratch: activations of one prompt chunk, beside tokens of the other sequences.
        experts: the expert cache.
        slots: experts that the cache holds.
        prompt_chunk: tokens of a prompt that are processed together.
        prefixes: states of prompts that are kept in memory.
    """

    process: int
    dense: int
    state: int
    scratch: int
    experts: int
    slots: int
    prompt_chunk: int
    prefixes: int = 0

    @property
    def total(self) -> int:
        fixed = self.process + self.dense + self.state + self.scratch + self.prefixes
        return fixed + self.experts

    def describe(self) -> str:
        """One line for messages."""
        parts = [f for f in fields(self) if f.name not in ("slots", "prompt_chunk")]
        return ", ".join(f"{f.name} {format_size(getattr(self, f.name))}" for f in parts)


def plan_budget(
    store: Store,
    config: ModelConfig,
    memory: int | None,
    context: int,
    k: int,
    bits: int,
    prompt_chunk: int | None = None,
    *,
    sequences: int = 1,
    prefix_bytes: int = 0,
    resident: int | None = None,
) -> Budget:
    """Divide ``memory`` (None: a share of what is free) for ``sequences`` sequences.

    Args:
        resident: what the process has taken already; of this process unless given.

    Raises:
        BudgetTooSmall: not even one token's experts of one layer fit; says which
            budget would do.
        UsageError: ``prefix_bytes`` is negative.
    """
    if prefix_bytes < 0:
        raise UsageError(f"prefix_bytes is {prefix_bytes}, it must not be negative")
    record = store.layout.prefix_bytes(bits)
    total_records = len(store.manifest.layers) * store.manifest.num_experts
    if resident is None:
        resident = resident_bytes()
    process = resident + MARGIN
    state = sequences * config.state_bytes(context)
    fixed = process + store.dense_bytes + state + prefix_bytes
    if memory is None:
        memory = resident + int(DEFAULT_SHARE * available_bytes())
    chunks = PROMPT_CHUNKS if prompt_chunk is None else (prompt_chunk,)
    scratch = {size: scratch_bytes(config, size, k, sequences) for size in chunks}
    smallest = fixed + scratch[chunks[-1]] + k * record
    if memory < smallest:
        smallest = -(-smallest // MIB) * MIB
        contexts = f"{sequences} times {context}" if sequences > 1 else f"{context}"
        kept = f"kept prefixes {format_size(prefix_bytes)}, " if prefix_bytes else ""
        raise BudgetTooSmall(
            f"a memory budget of {format_size(memory)} cannot work: dense weights take "
            f"{format_size(store.dense_bytes)}, {contexts} tokens of context "
            f"{format_size(state)}, {kept}the process {format_size(process)}; "
            f"the smallest that works is {smallest // MIB}M",
            smallest,
        )
    # Activations may take an eighth of what experts could have.
    good = [size for size in chunks if scratch[size] <= (memory - fixed) // 8]
    chunk = good[0] if good else chunks[-1]
    slots = min((memory - fixed - scratch[chunk]) // record, total_records)
    return Budget(
        process,
        store.dense_bytes,
        state,
        scratch[chunk],
        slots * record,
        slots,
        chunk,
        prefix_bytes,
    )


def scratch_bytes(config: ModelConfig, chunk: int, k: int, sequences: int = 1) -> int:
    """float32 activations alive at once while a chunk of tokens, beside one token of each
    other sequence, goes through a layer; logits, and the sampler's copies of them."""
    widest = config.activation_width
    per_token = 4 * (widest + (k + 8) * config.hidden_size) + 8 * k * config.moe_intermediate_size
    logits = 40 * config.vocab_size + 4 * (sequences - 1) * config.vocab_size
    return (chunk + sequences - 1) * per_token + logits
