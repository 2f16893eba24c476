"""llama.cpp and headgate on the same shape under the same memory limits, in turn.

    python benchmarks/peers/compare.py STORE --llama-bench BINARY --gguf MODEL.gguf

Prints a Markdown table and writes ``benchmarks/results/DATE-llama.cpp.json``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import decode
from cgroup import Finished, memory_limit, run

from headgate.engine import parse_size
from headgate.measure.drive import cached_share, drop_cache
from headgate.measure.machine import core_count, describe_drive, describe_machine

RESULTS = Path(__file__).parent.parent / "results"
DECODE = Path(decode.__file__)
LIMITS = "none,3.5G,2G,1.5G"
#: Without a limit everything is to be in memory: llama.cpp reads its file when it loads it;
#: a prompt this long routes to every expert, 256 of them 8 at a time.
WARMING_PROMPT = 512
#: A file counts as forgotten if no more of it than this is in the page cache.
FORGOTTEN = 0.01
#: of the processor time; more of it used by others makes a run worthless: where two threads meet
#: after every product, one that is not scheduled holds up the other.
BUSY = 0.1


@dataclass(frozen=True)
class LlamaCpp:
    """``llama-bench``, the model mapped from its file.

    Attributes:
        tokens, tokens_in_memory: decoded under a limit, and without.
    """

    binary: Path
    model: Path
    threads: int
    tokens: int = 8
    tokens_in_memory: int = 32
    marker = "generation run 1/1"

    @property
    def name(self) -> str:
        return f"llama.cpp {self.model.stem}"

    @property
    def files(self) -> list[Path]:
        return [self.model]

    def command(self, limit: int | None) -> list[str]:
        tokens = self.tokens_in_memory if limit is None else self.tokens
        count = ["-t", str(self.threads), "-p", "0", "-n", str(tokens), "-r", "1"]
        how = ["-lm", "mmap", "--no-warmup", "--progress", "-o", "json"]
        return [str(self.binary), "-m", str(self.model), *count, *how]

    def figures(self, output: str) -> dict[str, Any]:
        (found,) = json.loads(output)
        kept = ("build_number", "cpu_info", "model_type", "model_size", "model_n_params")
        return {
            "tokens": found["n_gen"],
            "tokens_per_s": found["avg_ts"],
            "llama_bench": {key: found[key] for key in kept},
        }


@dataclass(frozen=True)
class Headgate:
    """This project, given the limit as its budget."""

    store: Path
    threads: int
    tokens: int = 32
    name = "headgate"
    marker = decode.MARKER

    @property
    def files(self) -> list[Path]:
        return sorted(path for path in self.store.rglob("*") if path.is_file())

    def command(self, limit: int | None) -> list[str]:
        everything = sum(path.stat().st_size for path in self.files) + (1 << 30)
        memory = everything if limit is None else limit
        prompt = WARMING_PROMPT if limit is None else 0
        options = {"memory": memory, "threads": self.threads, "tokens": self.tokens}
        words = [f"--{key}={value}" for key, value in {**options, "prompt": prompt}.items()]
        return [sys.executable, str(DECODE), str(self.store), *words]

    def figures(self, output: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(output)
        return found


Contender = LlamaCpp | Headgate


def forget(files: list[Path]) -> float | None:
    """Drop files from the page cache; the largest share of one that is still there."""
    shares = []
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # pages not written yet stay
        drop_cache(path)
        if path.stat().st_size > 1 << 20:
            shares.append(cached_share(path))
    return max((share for share in shares if share is not None), default=None)


def measure(contender: Contender, limit: int | None) -> dict[str, Any]:
    """One run from an empty page cache; ``error`` instead of figures if it fails."""
    share = forget(contender.files)
    if share is not None and share > FORGOTTEN:
        # Pages charged to somebody else would be memory beyond the limit.
        print(f"{share:.0%} of {contender.name} is in the page cache", file=sys.stderr)
    with memory_limit(limit) as group:
        done = run(contender.command(limit), contender.marker, group)
    found: dict[str, Any] = {"name": contender.name, "limit_bytes": limit, "cached_before": share}
    if done.code != 0:
        return {**found, "error": _complaint(done)}
    found |= contender.figures(done.output)
    if done.bytes_read is not None:
        found["bytes_read_per_token"] = done.bytes_read / found["tokens"]
    return {**found, "peak_bytes": done.peak_bytes, "others_cpu": done.others_cpu}


def _complaint(done: Finished) -> str:
    return f"exit status {done.code}: {done.errors.splitlines()[-1] if done.errors else ''}"


@dataclass(frozen=True)
class Row:
    """Repeats of one contender under one limit."""

    limit: int | None
    name: str
    speeds: list[float]
    bytes_read_per_token: float | None

    @property
    def speed(self) -> float:
        return statistics.median(self.speeds)


def summarise(runs: list[dict[str, Any]]) -> list[Row]:
    """Medians, in the order in which limits and contenders were first met."""
    groups: dict[tuple[int | None, str], list[dict[str, Any]]] = {}
    for found in runs:
        groups.setdefault((found["limit_bytes"], found["name"]), []).append(found)
    rows = []
    for (limit, name), group in groups.items():
        good = [found for found in group if "error" not in found]
        read = [f["bytes_read_per_token"] for f in good if "bytes_read_per_token" in f]
        median = statistics.median(read) if read else None
        rows.append(Row(limit, name, [found["tokens_per_s"] for found in good], median))
    return rows


def table(rows: list[Row]) -> Iterator[str]:
    """Lines of Markdown."""
    yield "| memory limit | program | tokens/s, median (range) | read per token | headgate is |"
    yield "|---|---|---|---|---|"
    ours = {row.limit: row.speed for row in rows if row.name == "headgate" and row.speeds}
    for row in rows:
        limit = "none" if row.limit is None else f"{row.limit / 2**30:.3g} GiB"
        if not row.speeds:
            yield f"| {limit} | {row.name} | failed | | |"
            continue
        speed = f"{row.speed:.3g} ({min(row.speeds):.3g}–{max(row.speeds):.3g})"
        read = row.bytes_read_per_token
        amount = "" if read is None else f"{read / 1e6:,.0f} MB"
        against = row.limit in ours and row.name != "headgate"
        times = f"{ours[row.limit] / row.speed:.3g} × as fast" if against else ""
        yield f"| {limit} | {row.name} | {speed} | {amount} | {times} |"


def report(args: argparse.Namespace, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The JSON document; names of files without where they are."""
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    rows = [{**vars(row), "tokens_per_s": row.speed} for row in summarise(runs) if row.speeds]
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "headgate": revision.stdout.strip(),
        "machine": describe_machine(),
        "drive": describe_drive(args.store.resolve().parent),
        "store": json.loads((args.store / "store.json").read_bytes())["provenance"],
        "threads": args.threads,
        "summary": rows,
        "runs": runs,
    }


def main() -> None:
    today = datetime.date.today().isoformat()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("store", type=Path, help="made by headgate synth")
    parser.add_argument("--llama-bench", type=Path, required=True, metavar="BINARY")
    parser.add_argument("--gguf", type=Path, action="append", required=True, help="repeatable")
    parser.add_argument("--limits", default=LIMITS, help="of memory (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=core_count())
    parser.add_argument("--out", type=Path, default=RESULTS / f"{today}-llama.cpp.json")
    args = parser.parse_args()

    limits = [None if word == "none" else parse_size(word) for word in args.limits.split(",")]
    contenders: list[Contender] = [
        *(LlamaCpp(args.llama_bench, model, args.threads) for model in args.gguf),
        Headgate(args.store, args.threads),
    ]
    runs: list[dict[str, Any]] = []
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for repeat in range(args.repeats):
        for limit in limits:
            for contender in contenders:
                found = {"repeat": repeat, **measure(contender, limit)}
                runs.append(found)
                print({k: v for k, v in found.items() if k != "seconds"}, file=sys.stderr)
                args.out.write_text(json.dumps(report(args, runs), indent=1) + "\n")
    print("\n".join(table(summarise(runs))))
    busy = sum((found.get("others_cpu") or 0) > BUSY for found in runs)
    if busy:
        print(f"\nThe machine was busy with something else during {busy} of {len(runs)} runs.")


if __name__ == "__main__":
    main()
