"""What a constraint costs per token at a vocabulary of 248,320.

    python benchmarks/serving/mask_cost.py

Builds a byte-level tokenizer of made-up words in several scripts, runs texts through
`Constraint` token by token and times what a decode step adds: `mask`, `forced` and
`accept`. The last line is a JSON document. Times are the calling thread's processor time,
so that a busy machine does not count; no other thread works, as the counts show.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from headgate.chat import Constraint, Grammar, Tokenizer, Vocabulary

SIZE = 248_320
WORDS = 248_070
TAGS = ("<|endoftext|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>")


def byte_letters() -> dict[int, str]:
    """The letter that a byte-level vocabulary writes for each byte (Radford et al., 2019)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in plain}
    for byte in range(256):
        letters.setdefault(byte, chr(256 + len(letters) - len(plain)))
    return letters


def words(seed: int = 0) -> Iterator[str]:
    """Syllables, ideographs, Cyrillic, punctuation and runs of white space, for ever."""
    draw = random.Random(seed)
    signs = "{}[]()<>:;,.\"'/\\=-+*&|!?#$%^~_`@ \n\t"
    while True:
        kind = draw.random()
        if kind < 0.55:
            syllables = (draw.choice("bcdfghjklmnpqrstvwz") + draw.choice("aeiou") for _ in "1234")
            word = "".join(list(syllables)[: draw.randint(1, 4)])
            yield draw.choice(("", " ", " ")) + draw.choice((word, word, word.capitalize()))
        elif kind < 0.8:
            yield "".join(chr(draw.randint(0x4E00, 0x9FA5)) for _ in range(draw.randint(1, 4)))
        elif kind < 0.9:
            yield " " + "".join(chr(draw.randint(0x430, 0x44F)) for _ in range(draw.randint(2, 7)))
        elif kind < 0.97:
            yield "".join(draw.choice(signs) for _ in range(draw.randint(1, 5)))
        else:
            yield draw.choice("\n\t ") * draw.randint(1, 60)


def tokenizer_json() -> bytes:
    letters = byte_letters()
    vocabulary = {letter: token for token, letter in enumerate(letters.values())}
    for word in words():
        if len(vocabulary) == WORDS:
            break
        vocabulary.setdefault("".join(letters[b] for b in word.encode()), len(vocabulary))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [], "ignore_merges": True}
    added = [
        {"id": WORDS + n, "content": tag, "special": tag.startswith("<|"), **flags}
        for n, tag in enumerate(TAGS)
    ]
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {**level, "use_regex": True},
            "post_processor": None,
            "decoder": {**level, "use_regex": True},
            "model": model,
        }
    ).encode()


def cases() -> dict[str, tuple[Grammar, str]]:
    """Name -> grammar and a text that follows it."""
    source = words(1)
    prose = " ".join(next(source).strip() for _ in range(1500))
    prose = "".join(c for c in prose if c.isalnum() or c in " .,\n")
    code = 'def f(x):\n    if x < 3 and y > "a":\n        return {"a": [1, 2]}\n' * 20
    page = '<div class="a">\n  <p>text of some length in here</p>\n</div>\n' * 20
    string = {"type": "string"}
    record: dict[str, Any] = {
        "type": "object",
        "properties": {"name": string, "tags": {"type": "array", "items": string}, "text": string},
        "required": ["name", "tags", "text"],
        "additionalProperties": False,
    }
    short = {
        **record,
        "properties": {**record["properties"], "text": {**string, "maxLength": 9999}},
    }
    text = json.dumps({"name": "x y", "tags": ["a", "b"], "text": prose + code}, ensure_ascii=False)
    calls = [
        {"type": "function", "function": {"name": "write", "parameters": {
            "properties": {"path": string, "text": string, "mode": {"enum": ["a", "w"]}},
            "required": ["path", "text"]}}}
    ]  # fmt: skip
    write = Grammar.tool_calls(calls, choice="required")

    def call(value: str) -> str:
        return (
            "<tool_call>\n<function=write>\n<parameter=path>\na.py\n</parameter>\n"
            f"<parameter=text>\n{value}\n</parameter>\n</function>\n</tool_call>"
        )

    # As many parameters as come in any order, last declared first.
    names = [f"option_{number}" for number in range(64)]
    kinds: list[Any] = [string, {"type": "integer"}, {"enum": ["a", "w"]}, {"type": "boolean"}]
    values = ["a.py", "12", "w", "true"]
    fill = {"name": "fill", "parameters": {
        "properties": {name: kinds[n % 4] for n, name in enumerate(names)},
        "required": names[::2]}}  # fmt: skip
    filled = "".join(
        f"<parameter={name}>\n{values[n % 4]}\n</parameter>\n"
        for n, name in reversed([*enumerate(names)])
    )

    return {
        "JSON object": (Grammar.json_object(), text),
        "JSON by schema": (Grammar.json_schema(record), text),
        "JSON, string length limited": (Grammar.json_schema(short), text),
        "call, prose": (write, call(prose)),
        "call, code": (write, call(code)),
        "call, HTML": (write, call(page)),
        "call, 64 parameters": (
            Grammar.tool_calls([{"type": "function", "function": fill}]),
            f"<tool_call>\n<function=fill>\n{filled}</function>\n</tool_call>",
        ),
    }


def measure(vocabulary: Vocabulary, ids: list[int], grammar: Grammar) -> dict[str, Any]:
    begin = time.perf_counter()
    constraint = Constraint(vocabulary, grammar)
    start = time.perf_counter() - begin  # wall clock: it compiles in a thread of its own
    masks, steps = [], []
    for token in ids:
        begin = time.thread_time()
        constraint.forced()
        between = time.thread_time()
        constraint.mask()
        masks.append(time.thread_time() - between)
        constraint.accept(token)
        steps.append(time.thread_time() - begin)
    mask, step = np.array(masks) * 1e3, np.array(steps) * 1e3
    return {
        "tokens": len(ids),
        "start_ms": start * 1e3,
        "mask_median_ms": float(np.median(mask)),
        "mask_mean_ms": float(mask.mean()),
        "mask_p99_ms": float(np.percentile(mask, 99)),
        "mask_over_1ms": float((mask > 1).mean()),
        "step_mean_ms": float(step.mean()),
    }


def threads() -> int:
    """Threads of this process; 0 where the kernel does not say."""
    folder = Path("/proc/self/task")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def main() -> None:
    data = tokenizer_json()
    tokenizer = Tokenizer.from_bytes(data)
    before, count = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, threads()
    begin = time.thread_time()
    vocabulary = Vocabulary(data, SIZE, [WORDS, WORDS + 1])
    built = time.thread_time() - begin
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    results = {}
    print(f"{'':28} {'tokens':>6} {'median':>8} {'mean':>8} {'p99':>8} {'> 1 ms':>8}")
    for name, (grammar, text) in cases().items():
        found = results[name] = measure(vocabulary, tokenizer.encode(text), grammar)
        print(
            f"{name:28} {found['tokens']:6} {found['mask_median_ms']:8.3f} "
            f"{found['mask_mean_ms']:8.3f} {found['mask_p99_ms']:8.3f} "
            f"{found['mask_over_1ms']:8.1%}"
        )
    print(
        json.dumps(
            {
                "vocabulary": SIZE,
                "build_s": built,
                "build_peak_growth_bytes": grown * (1 if sys.platform == "darwin" else 1024),
                "threads_before": count,
                "threads_after": threads(),
                "cases": results,
            }
        )
    )


if __name__ == "__main__":
    main()
