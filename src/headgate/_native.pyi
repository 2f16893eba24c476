"""The compiled core: reading and multiplying. See the headers under ``native/``."""

from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
I32 = npt.NDArray[np.int32]

def crc32c(data: Any, seed: int = 0) -> int: ...
def isa_names() -> list[str]: ...

class AlignedBuffer:
    nbytes: int
    address: int
    def __init__(self, nbytes: int, huge_pages: bool = False) -> None: ...
    def array(self, offset: int = 0, nbytes: int | None = None) -> U8: ...

#: (tag, file, offset, length, buffer, buffer offset, priority)
ReadRequest = tuple[int, int, int, int, int, int, int]

class ReadQueue:
    backend: str
    outstanding: int
    def __init__(self, backend: str = "auto", **options: int) -> None: ...
    def add_file(self, path: str, mode: str = "auto") -> int: ...
    def file_is_direct(self, file: int) -> bool: ...
    def add_buffer(self, buffer: AlignedBuffer) -> int: ...
    def submit(self, requests: list[ReadRequest], runs: list[int] = ...) -> None: ...
    def wait(
        self, min_completions: int = 1, timeout_s: float = -1.0
    ) -> list[tuple[int, int, int, int]]: ...
    def cancel_background(self) -> list[int]: ...
    def drain(self) -> None: ...
    def stats(self) -> dict[str, Any]: ...
    def reset_stats(self) -> None: ...
    def set_throttle(self, bytes_per_second: float) -> None: ...
    def close(self) -> None: ...

class ThreadPool:
    threads: int
    def __init__(self, threads: int) -> None: ...

class Kernels:
    name: str
    def __init__(self, isa: str = "") -> None: ...

class Matrix:
    rows: int
    cols: int
    nbytes: int
    @staticmethod
    def quantized(
        rows: int,
        cols: int,
        group: int,
        stored_bits: int,
        used_bits: int,
        half: str,
        scales: U16,
        biases: U16,
        q2: U8,
        q3: U8 | None = None,
        q4: U8 | None = None,
        q8: U8 | None = None,
    ) -> Matrix: ...
    @staticmethod
    def dense(rows: int, cols: int, data: npt.NDArray[Any], dtype: str) -> Matrix: ...

class ExpertLayout:
    prefix_bytes: int
    def __init__(
        self,
        *,
        hidden: int,
        inter: int,
        gate: dict[str, int],
        up: dict[str, int],
        down: dict[str, int],
        prefix_bytes: int,
        kind: str = "quant",
        group: int = 64,
        stored_bits: int = 4,
        used_bits: int = 4,
        half: str = "bf16",
    ) -> None: ...

def linear(
    pool: ThreadPool, kernels: Kernels, x: F32, matrices: list[Matrix], exact: bool = False
) -> list[F32]: ...
def expert_ffn(
    pool: ThreadPool,
    kernels: Kernels,
    layout: ExpertLayout,
    arena: U8,
    offsets: list[int],
    splits: I32,
    token_of: I32,
    out_row: I32,
    x: F32,
    y: F32,
    exact: bool = False,
) -> None: ...
def combine(pool: ThreadPool, y: F32, weights: F32, base: F32) -> F32: ...

class FloatOps:
    isa: str
    def __init__(self, isa: str = "") -> None: ...
    def rms_norm(self, pool: ThreadPool, x: F32, w: F32, eps: float) -> F32: ...
    def silu_mul(self, pool: ThreadPool, gate: F32, up: F32) -> F32: ...
    def add_scaled(
        self, pool: ThreadPool, base: F32, y: F32, gate_logit: F32 | None = None
    ) -> F32: ...
    def route(
        self, pool: ThreadPool, logits: F32, k: int, renormalise: bool = True
    ) -> tuple[I32, F32]: ...
    def attention(
        self,
        pool: ThreadPool,
        q: F32,
        k: F32,
        v: F32,
        k_cache: F32,
        v_cache: F32,
        start: int,
        cos: F32,
        sin: F32,
        q_norm: F32 | None = None,
        k_norm: F32 | None = None,
        eps: float = 1e-6,
        scale: float | None = None,
        gated: bool = False,
    ) -> F32: ...
    def delta_net(
        self,
        pool: ThreadPool,
        qkv: F32,
        z: F32,
        b: F32,
        a: F32,
        conv_w: F32,
        neg_exp_a: F32,
        dt_bias: F32,
        norm_w: F32,
        conv_state: F32,
        state: F32,
        eps: float = 1e-6,
        chunk: int = 64,
    ) -> F32: ...

def quantize_groups(
    pool: ThreadPool, groups: F32, bits: int, nested: bool
) -> tuple[U8, U16, U16]: ...
def pack_planes(pool: ThreadPool, codes: U8, bits: int) -> list[U8]: ...
def read_memory(pool: ThreadPool, data: U8) -> int: ...
