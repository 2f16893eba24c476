"""Loading, budgets and sessions."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from headgate.convert import ConvertOptions, convert
from headgate.engine import Engine, Sampling, parse_size
from headgate.errors import (
    BudgetTooSmall,
    HeadgateError,
    PromptTooLong,
    StoreError,
    UsageError,
)
from headgate.stream import ExpertStream
from tests.checkpoints import tiny_checkpoint
from tests.conftest import DemoStore

PROMPT = "<|im_start|>user\nWhich country is Oslo in?<|im_end|>\n<|im_start|>assistant\n"


def ask(engine: Engine, prompt: str = PROMPT, tokens: int = 24) -> str:
    ids = engine.tokenizer.encode(prompt)
    return engine.tokenizer.decode(list(engine.new_session().generate(ids, tokens)))


def test_demo_answers(demo_store: DemoStore) -> None:
    assert ask(Engine.load(demo_store())) == "Oslo is in Norway."


def test_threads_and_cache_size_do_not_change_the_answer(demo_store: DemoStore) -> None:
    store = demo_store(4, 8)
    prompt = PROMPT.replace("Which country is Oslo in?", "Tell me a short story about Mona.")
    full = Engine.load(store, threads=1)
    small = Engine.load(store, threads=2)
    small.experts = ExpertStream(small.store, small.ops, 12, 4)
    assert full.budget.slots > 12
    assert ask(small, prompt, 48) == ask(full, prompt, 48)


def smallest_budget(store: Path) -> int:
    with pytest.raises(BudgetTooSmall) as caught:
        Engine.load(store, memory=1 << 20)
    assert f"{caught.value.smallest >> 20}M" in str(caught.value)
    return caught.value.smallest


def test_smallest_budget_named_is_one_that_works(demo_store: DemoStore) -> None:
    """In this process, which other tests make grow meanwhile, perhaps not at first;
    tests/cli does it in fresh ones."""
    store = demo_store(16, 16)
    smallest = smallest_budget(store)
    for _ in range(5):
        budget = smallest + (4 << 20)
        try:
            engine = Engine.load(store, memory=budget)
            break
        except BudgetTooSmall as error:
            smallest = error.smallest
    assert engine.budget.total <= budget
    assert engine.budget.slots >= engine.config.num_experts_per_tok
    assert ask(engine) == "Oslo is in Norway."


def test_lossy_knobs_are_listed_and_exact_is_the_default(demo_store: DemoStore) -> None:
    store = demo_store(4, 8)
    assert Engine.load(store).lossy == []
    lossy = Engine.load(store, experts_per_token=4, expert_bits=2).lossy
    assert lossy == ["experts-per-token 4 (trained 8)", "expert-bits 2 (stored 4)"]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"experts_per_token": 0}, UsageError, "experts per token is 0"),
        ({"experts_per_token": 999}, UsageError, r"has \d+ experts"),
        ({"expert_bits": 8}, StoreError, "no 8-bit experts; it can be read at 2, 3, 4 bits"),
        ({"expert_bits": 5}, StoreError, "no 5-bit experts"),
        ({"context": 5000}, UsageError, r"1\.\.4096"),
        ({"threads": 0}, UsageError, "threads is 0"),
        ({"backend": "abacus"}, UsageError, "abacus"),
    ],
)
def test_options_out_of_range_are_refused(
    demo_store: DemoStore, options: dict[str, object], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        Engine.load(demo_store(4, 8), **options)


def test_context_is_a_limit(demo_store: DemoStore) -> None:
    engine = Engine.load(demo_store(), context=40)
    session = engine.new_session()
    with pytest.raises(PromptTooLong, match="makes 41 tokens, the context holds 40"):
        session.append([5] * 41)
    assert session.tokens == []
    out = list(session.generate([5] * 35, stop=frozenset()))
    # The last token drawn need not be processed.
    assert len(out) == 6 and session.generation is not None
    assert session.generation.finish_reason == "length"


def test_session_goes_on_where_it_was(demo_store: DemoStore) -> None:
    engine = Engine.load(demo_store())
    ids = engine.tokenizer.encode(PROMPT)
    parts = engine.new_session()
    for part in (ids[:3], ids[3:4], ids[4:]):
        last = parts.append(part)
    assert np.abs(last - engine.new_session().append(ids)).max() < 1e-3
    assert parts.tokens == ids


@pytest.mark.parametrize("ids", [[], [-1], [4096]])
def test_tokens_outside_the_vocabulary_are_refused(demo_store: DemoStore, ids: list[int]) -> None:
    with pytest.raises(UsageError):
        Engine.load(demo_store()).new_session().append(ids)


def test_seeded_sampling_repeats(demo_store: DemoStore) -> None:
    engine = Engine.load(demo_store())
    ids = engine.tokenizer.encode(PROMPT)
    draws = [
        list(engine.new_session().generate(ids, 20, Sampling(1.5, seed=4), stop=frozenset()))
        for _ in range(2)
    ]
    assert draws[0] == draws[1]


def test_generation_counts(demo_store: DemoStore) -> None:
    engine = Engine.load(demo_store(4, 8), expert_bits=2)
    session = engine.new_session()
    ids = engine.tokenizer.encode(PROMPT)
    out = list(session.generate(ids, 5, stop=frozenset()))
    g = session.generation
    assert g is not None and g.prompt_tokens == len(ids) and g.generated_tokens == len(out) == 5
    assert g.ttft_s > 0 and g.tokens_per_s > 0 and 0 < g.hit_rate < 1
    assert g.bytes_read == g.misses * engine.store.layout.prefix_bytes(2)


def test_store_without_tokenizer_says_so(tmp_path: Path) -> None:
    src = tiny_checkpoint(tmp_path / "src")
    (src / "tokenizer.json").unlink(missing_ok=True)
    convert(src, tmp_path / "out", ConvertOptions(expert_bits=4))
    engine = Engine.load(tmp_path / "out")
    assert len(list(engine.new_session().generate([1, 2], 3, stop=frozenset()))) == 3
    with pytest.raises(UsageError, match=r"no tokenizer\.json"):
        _ = engine.tokenizer


def test_no_flipped_byte_changes_an_answer_silently(demo_store: DemoStore, tmp_path: Path) -> None:
    """200 positions over all files: the answer is the same or an error is raised."""
    store = tmp_path / "store"
    shutil.copytree(demo_store(2, 8), store)
    expected = ask(Engine.load(store))
    files = [p for p in sorted(store.rglob("*")) if p.is_file()]
    rng, reported = random.Random(5), 0
    for n in range(200):
        path = files[n % len(files)]
        data = bytearray(path.read_bytes())
        position = rng.randrange(len(data))
        data[position] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            assert ask(Engine.load(store)) == expected, (path.name, position)
        except HeadgateError:
            reported += 1
        shutil.copyfile(demo_store(2, 8) / path.relative_to(store), path)
    # Damage to what every run reads is always reported.
    assert reported > 50


@pytest.mark.parametrize(
    ("text", "size"),
    [("8G", 8 << 30), ("1.5GiB", 3 << 29), ("900M", 900 << 20), ("12 kb", 12 << 10), ("77", 77)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "8X", "-1", "8 G B", "1e9"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


def test_unfinished_store_is_not_taken_for_one(demo_store: DemoStore, tmp_path: Path) -> None:
    shutil.copytree(demo_store(), tmp_path / "x.headgate.partial")
    (tmp_path / "x.headgate.partial" / "store.json").unlink()
    for name in ("x.headgate", "x.headgate.partial"):
        with pytest.raises(StoreError, match="unfinished"):
            Engine.load(tmp_path / name)


def test_checkpoint_is_not_taken_for_a_store(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(StoreError, match="headgate convert"):
        Engine.load(tmp_path)
