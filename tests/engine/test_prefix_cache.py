"""Prompts that begin from kept states."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headgate.engine import Engine, PrefixCache, PromptProgress, Scheduler, Session
from headgate.engine.chunks import chunk_end, grid_of
from headgate.engine.prefix_files import PrefixFiles
from headgate.engine.snapshot import HEADER, Snapshot
from headgate.errors import UsageError
from tests.conftest import DemoStore
from tests.engine.test_batch import tokens
from tests.engine.test_scheduler import alone, answer, figures, options

KILLS = Path(__file__).parent.parent.parent / "benchmarks" / "serving" / "kill_snapshots.py"
MEMORY = 64 << 20

Make = Callable[..., PrefixCache]


@pytest.fixture(scope="module")
def engine(demo_store: DemoStore) -> Engine:
    return Engine.load(demo_store(4, 8), sequences=2, context=600)


@pytest.fixture
def make(engine: Engine, tmp_path: Path) -> Iterator[Make]:
    made: list[PrefixCache] = []

    def cache(own: Engine = engine, **more: Any) -> PrefixCache:
        made.append(PrefixCache(own, **{"memory": MEMORY, "folder": tmp_path / "kept", **more}))
        return made[-1]

    yield cache
    for one in made:
        one.close()


def after(engine: Engine, ids: Sequence[int]) -> Session:
    session = engine.new_session()
    session.append(ids)
    return session


def size_of(engine: Engine, length: int) -> int:
    return engine.config.state_bytes(length) + 4 * length


def test_going_on_from_memory_gives_the_same_bits(engine: Engine, make: Make) -> None:
    prompt, cache = tokens(300, 1), make(disk=0)
    assert cache.save(after(engine, prompt[:128])) and cache.save(after(engine, prompt[:192]))
    session = engine.new_session()
    assert cache.longest(prompt) == cache.restore(session, prompt) == 192
    assert session.tokens == prompt[:192]
    whole = engine.new_session()
    assert np.array_equal(session.append(prompt[192:]), whole.append(prompt))
    for token in (5, 6, 7):
        assert np.array_equal(session.append([token]), whole.append([token]))


def test_going_on_in_another_engine_gives_the_same_bits(
    engine: Engine, make: Make, demo_store: DemoStore
) -> None:
    prompt = tokens(300, 2)
    first = make()
    first.save(after(engine, prompt[:256]))
    first.close()
    # Other threads, another budget: nothing that the bits depend on.
    other = Engine.load(demo_store(4, 8), context=400, threads=1)
    cache, session = make(other), other.new_session()
    assert cache.restore(session, prompt) == 256
    assert np.array_equal(session.append(prompt[256:]), engine.new_session().append(prompt))
    assert cache.figures()["in_memory"] == 0
    cache.remember(session)  # as it was then
    assert cache.figures()["in_memory"] == 1
    again = other.new_session()
    assert cache.restore(again, prompt) == 256 and again.restored is None
    assert np.array_equal(again.append(prompt[256:]), session.engine.new_session().append(prompt))


def test_what_was_used_last_is_read_before_it_is_asked_for(
    engine: Engine, make: Make, tmp_path: Path
) -> None:
    prompts, cache = [tokens(70, n) for n in range(4)], make()
    for at, prompt in enumerate(prompts):
        assert cache.save(after(engine, prompt[:64]))
        cache.flush()
        os.utime(
            next(x for x in (tmp_path / "kept").iterdir() if x.stat().st_mtime > 1e6), (at, at)
        )
    damaged = sorted((tmp_path / "kept").iterdir(), key=lambda x: x.stat().st_mtime)[2]
    data = bytearray(damaged.read_bytes())
    data[500] ^= 1
    damaged.write_bytes(data)
    os.utime(damaged, (2, 2))
    cache = make(memory=4 * size_of(engine, 64) + 100)
    cache.preload()
    until = time.monotonic() + 30
    while cache.figures()["in_memory"] < 2 and time.monotonic() < until:
        time.sleep(0.01)
    cache.close()
    shutil.rmtree(tmp_path / "kept")
    found = [cache.restore(engine.new_session(), prompt) for prompt in prompts]
    assert found == [0, 64, 0, 64]  # half of the memory, and not the damaged one
    assert cache.figures()["memory_bytes"] == 2 * size_of(engine, 64)


def test_only_what_begins_the_prompt_is_found(engine: Engine, make: Make) -> None:
    prompt, cache = tokens(200, 3), make(disk=0)
    cache.save(after(engine, prompt[:128]))
    assert cache.longest(prompt[:128]) == 128
    assert cache.longest(prompt[:127]) == 0
    assert cache.longest([*prompt[:100], 9, *prompt[101:]]) == 0
    # A token must be left to get logits from.
    assert cache.restore(engine.new_session(), prompt[:128]) == 0
    with pytest.raises(UsageError, match="empty session"):
        cache.restore(after(engine, [1]), prompt)


def test_other_settings_and_stores_have_states_of_their_own(
    engine: Engine, make: Make, demo_store: DemoStore
) -> None:
    prompt, cache = tokens(100, 4), make()
    cache.save(after(engine, prompt[:64]))
    cache.flush()
    for other in (
        Engine.load(demo_store(4, 8), experts_per_token=4),
        Engine.load(demo_store(4, 8), expert_bits=2),
        Engine.load(demo_store(4, 8), exact_activations=True),
        Engine.load(demo_store(4, 8), prompt_chunk=32),
        Engine.load(demo_store(2, 8)),
    ):
        assert make(other).longest(prompt) == 0
    assert make().longest(prompt) == 64


def test_states_at_the_ends_of_turns_are_kept(engine: Engine, make: Make) -> None:
    (stop, *_), prompt = sorted(engine.stop_ids), tokens(300, 9)
    cuts = [1, 30, 63, 64, 65, 120, 256]
    for at in cuts:
        prompt[at - 1] = stop
    whole = engine.new_session().append(prompt)
    for at in cuts:
        cache, session = make(disk=0), engine.new_session()
        assert cache.save(after(engine, prompt[:at]))
        assert cache.restore(session, prompt) == at
        assert np.array_equal(session.append(prompt[at:]), whole)


@pytest.mark.parametrize("chunk", [16, 48, 64, 100, 512])
def test_a_prompt_of_turns_begins_behind_the_last_one_that_is_shared(
    demo_store: DemoStore, chunk: int
) -> None:
    engine = Engine.load(demo_store(4, 8), sequences=2, prompt_chunk=chunk)
    (stop, *_), rng = sorted(engine.stop_ids), np.random.default_rng(chunk)
    system, *turns = [[5, *tokens(int(rng.integers(3, 90)), n), stop] for n in range(9)]
    cache = PrefixCache(engine, memory=MEMORY, disk=0)
    with Scheduler(engine, prefix_cache=cache) as scheduler:
        prompt, known = system, range(0, 1)
        for turn in turns:
            prompt = prompt + turn
            ticket = scheduler.submit([*prompt, 5, 6], options(3), snapshot_at=(len(prompt) + 1,))
            assert answer(ticket) == alone(engine, [*prompt, 5, 6], 3)
            assert figures(ticket).cached_tokens in known
            known = range(len(prompt), len(prompt) + 2)  # the 5 is shared, and may be a cut


def test_states_off_the_grid_are_not_kept(engine: Engine, make: Make) -> None:
    cache, prompt = make(disk=0), tokens(128, 5)
    answered = after(engine, prompt[:63])
    answered.append([7])  # as an answer's token is: a position of the grid, other bits
    answered.append([8])
    for session in (answered, after(engine, prompt[:100]), engine.new_session()):
        with pytest.raises(UsageError, match="multiple of 64 tokens"):
            cache.save(session)


@pytest.mark.parametrize("chunk", [16, 64, 100, 512])
def test_scheduler_gives_the_same_answer_with_and_without(
    demo_store: DemoStore, tmp_path: Path, chunk: int
) -> None:
    engine = Engine.load(demo_store(4, 8), sequences=2, prompt_chunk=chunk)
    grid, prompt = grid_of(chunk), tokens(230, 6)
    longer = [*prompt, *tokens(50, 7)]
    expected = [alone(engine, ids, 5) for ids in (prompt, longer)]
    cache = PrefixCache(engine, memory=MEMORY, folder=tmp_path)
    with Scheduler(engine, prefix_cache=cache) as scheduler:
        first = scheduler.submit(prompt, options(5), snapshot_at=(70, 200, 1000))
        assert answer(first) == expected[0] and figures(first).cached_tokens == 0
        again = scheduler.submit(longer, options(5), snapshot_at=(70, 200))
        assert answer(again) == expected[1]
        assert figures(again).cached_tokens == 200 // grid * grid
        begun = next(e for e in again if isinstance(e, PromptProgress))
        assert (begun.done, begun.cached) == (figures(again).cached_tokens,) * 2
        assert cache.figures()["in_memory"] == 2
    cache.close()
    # In another process, as it were.
    cache = PrefixCache(engine, memory=MEMORY, folder=tmp_path)
    with Scheduler(engine, prefix_cache=cache) as scheduler:
        third = scheduler.submit(longer, options(5))
        assert answer(third) == expected[1]
        assert figures(third).cached_tokens == 200 // grid * grid
        scored = scheduler.submit(longer, options(0), prompt_logprobs=0)
        assert figures(scored).cached_tokens == 0
    cache.close()


def test_chunks_end_on_the_grid() -> None:
    for size in (1, 16, 64, 100, 512):
        for start in (0, 64, 70):
            ends, at = [], start
            while at < 700:
                at = chunk_end(at, 700, size)
                ends.append(at)
            assert all(end % grid_of(size) == 0 for end in ends[:-1])
            assert all(0 < b - a <= size for a, b in zip([start, *ends], ends, strict=False))


def test_memory_holds_what_was_used_last(engine: Engine, make: Make) -> None:
    prompts = [tokens(70, n) for n in range(3)]
    cache = make(memory=2 * size_of(engine, 64) + 100, disk=0)
    for prompt in prompts[:2]:
        assert cache.save(after(engine, prompt[:64]))
    assert cache.restore(engine.new_session(), prompts[0]) == 64
    assert cache.save(after(engine, prompts[2][:64]))
    assert [cache.longest(prompt) for prompt in prompts] == [64, 0, 64]
    took = cache.figures()
    assert took["memory_bytes"] == 2 * size_of(engine, 64) <= took["memory_limit"]
    assert not cache.save(after(engine, tokens(256, 9)))  # larger than all of it
    assert cache.figures()["in_memory"] == 2


def test_broken_promises_leave_no_trace(engine: Engine, make: Make) -> None:
    cache = make(disk=0)
    assert cache.promise(tokens(300, 1), 0, 200, [70, 130, 131, 299]) == (64, 128)
    assert cache.figures()["memory_bytes"] == size_of(engine, 64) + size_of(engine, 128)
    cache.break_promises()
    assert cache.figures()["memory_bytes"] == 0


def test_files_hold_what_was_used_last(engine: Engine, make: Make, tmp_path: Path) -> None:
    cache = make(disk=2 * (size_of(engine, 64) + 1000))
    prompts = [tokens(70, n) for n in range(3)]
    for n, prompt in enumerate(prompts[:2]):
        cache.save(after(engine, prompt[:64]))
        cache.flush()
        (newest,) = [x for x in (tmp_path / "kept").iterdir() if x.stat().st_mtime > 1000]
        os.utime(newest, (n + 1, n + 1))
    assert make(memory=0).restore(engine.new_session(), prompts[0]) == 64  # used again
    cache.save(after(engine, prompts[2][:64]))
    cache.flush()
    assert [make().longest(prompt) for prompt in prompts] == [64, 0, 64]
    assert cache.figures()["disk_bytes"] == sum(
        x.stat().st_size for x in (tmp_path / "kept").iterdir()
    )


@pytest.mark.parametrize("where", [0, 9, 13, 20, HEADER.size + 8, 5000, -2])
def test_damaged_file_is_removed_and_not_used(
    engine: Engine,
    make: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    where: int,
) -> None:
    prompt = tokens(100, 1)
    cache = make()
    cache.save(after(engine, prompt[:64]))
    cache.flush()
    (path,) = (tmp_path / "kept").iterdir()
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    session, again = engine.new_session(), make()
    assert again.restore(session, prompt) == 0
    assert "removed the kept prefix" in capsys.readouterr().err
    assert not path.exists() and again.longest(prompt) == 0
    # The state that was read into is an empty one again.
    assert np.array_equal(session.append(prompt), engine.new_session().append(prompt))


def test_shorter_prefix_serves_if_the_longer_one_is_damaged(
    engine: Engine, make: Make, tmp_path: Path
) -> None:
    prompt, cache = tokens(200, 1), make()
    for length in (64, 128):
        cache.save(after(engine, prompt[:length]))
    cache.flush()
    longer = max((tmp_path / "kept").iterdir(), key=lambda x: x.stat().st_size)
    longer.write_bytes(longer.read_bytes()[:-1])
    session = engine.new_session()
    assert make().restore(session, prompt) == 64
    assert np.array_equal(session.append(prompt[64:]), engine.new_session().append(prompt))


def test_file_of_another_state_is_not_taken_for_this_one(
    engine: Engine, make: Make, tmp_path: Path
) -> None:
    one, other, cache = tokens(70, 1), tokens(70, 2), make()
    cache.save(after(engine, one[:64]))
    cache.flush()
    (first,) = (tmp_path / "kept").iterdir()
    cache.save(after(engine, other[:64]))
    cache.flush()
    (second,) = set((tmp_path / "kept").iterdir()) - {first}
    second.write_bytes(first.read_bytes())
    assert make().restore(engine.new_session(), other) == 0


def test_full_disk_costs_the_file_and_nothing_else(
    engine: Engine,
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache, prompt = make(), tokens(70, 1)
    with monkeypatch.context() as patch:
        patch.setattr("headgate.engine.snapshot._write", full)
        cache.save(after(engine, prompt[:64]))
        cache.flush()
    assert "No space left" in capsys.readouterr().err
    assert list((tmp_path / "kept").iterdir()) == []
    assert cache.restore(engine.new_session(), prompt) == 64  # from memory


def test_strangers_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / f".x.prefix.{os.getpid()}.tmp").write_text("being written")
    (tmp_path / ".x.prefix.999999999.tmp").write_text("left over")
    files = PrefixFiles(tmp_path, bytes(32), 1000)
    files.write(bytes(16), Snapshot(np.zeros(2, np.int32), [np.zeros(200, np.float32)]))
    files.write(bytes(15) + b"1", Snapshot(np.zeros(2, np.int32), [np.zeros(200, np.float32)]))
    assert sorted(x.name for x in tmp_path.iterdir() if x.suffix != ".prefix") == [
        f".x.prefix.{os.getpid()}.tmp",
        "notes.txt",
    ]
    assert len(files.lengths) == 1  # the limit holds


def test_killed_while_writing_leaves_nothing_that_reads_wrongly() -> None:
    command = [sys.executable, str(KILLS), "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = dict(re.findall(r"^ *(\S.*?) {2,}(\d+)", done.stdout, re.MULTILINE))
    assert int(rows["snapshots that were read afterwards"]) > 0
    assert rows["with other contents"] == "0"
    assert rows["files left over"] == "0"
