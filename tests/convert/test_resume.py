"""A conversion survives kills, a full disk and Ctrl-C, and ends in the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headgate.convert import ConvertOptions, convert
from headgate.errors import CheckpointError, ResourceError, StoreError
from headgate.store import StoreWriter
from tests.checkpoints import tiny_checkpoint
from tests.stores import digests

ROOT = Path(__file__).parents[2]
MOMENTS = 20

# Large enough that a kill finds it in the middle, small enough for many kills.
SIZES = {"hidden_size": 128, "moe_intermediate_size": 64, "num_experts": 24, "vocab_size": 2000}


@pytest.fixture(scope="module")
def src(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "src", **SIZES)


@pytest.fixture(scope="module")
def whole(src: Path) -> dict[str, str]:
    """The files of an uninterrupted conversion."""
    convert(src, src.with_name("whole"))
    return digests(src.with_name("whole"))


def run(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, args)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def test_killed_conversions_resume_to_the_same_bytes(src: Path, tmp_path: Path) -> None:
    done = run("-m", "tests.convert.interrupt", src, tmp_path, MOMENTS, 7)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    results = found["results"]
    assert len(results) == MOMENTS + 1
    assert all(r["same"] and r["clean"] for r in results)
    in_the_middle = [r for r in results[:MOMENTS] if 0 < r["killed_at"] < found["total"]]
    assert len(in_the_middle) >= MOMENTS // 2
    assert results[-1]["kills"] > 1


def test_exception_in_the_middle_leaves_a_resumable_state(
    src: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    def stop(done: int, total: int, doing: str) -> None:
        if done > total // 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(src, tmp_path / "out", progress=stop)
    report = convert(src, tmp_path / "out")
    assert digests(tmp_path / "out") == whole
    assert 0 < report.written_bytes < report.store_bytes


def test_kill_before_the_last_step_leaves_only_that_to_do(
    src: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: StoreWriter) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "_publish", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(src, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    convert(src, tmp_path / "out")
    assert digests(tmp_path / "out") == whole


def test_resume_with_other_options_or_another_source_is_refused(
    src: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(src, tmp_path / "out", progress=stop)
    with pytest.raises(StoreError, match="other options"):
        convert(src, tmp_path / "out", ConvertOptions(expert_bits=3))
    other = tiny_checkpoint(tmp_path / "src", seed=1, **SIZES)  # equal headers, other weights
    with pytest.raises(StoreError, match="another source"):
        convert(other, tmp_path / "out")
    convert(src, tmp_path / "out", ConvertOptions(expert_bits=4, dense_bits=8, group_size=64))
    assert digests(tmp_path / "out") == whole


def test_existing_store_is_not_overwritten(src: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(StoreError, match="exists already"):
        convert(src, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_damage_to_a_partial_store_is_repaired_by_the_resume(
    src: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    def stop(done: int, total: int, doing: str) -> None:
        if doing.startswith("dense"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(src, tmp_path / "out", progress=stop)
    path = tmp_path / "out.partial" / "experts" / "01.bin"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    convert(src, tmp_path / "out")
    assert digests(tmp_path / "out") == whole


LIMITED = """
import resource, sys
from headgate.convert import convert
from headgate.errors import CheckpointError, ResourceError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    convert(sys.argv[1], sys.argv[2])
except ResourceError as error:
    sys.exit(f"ResourceError: {error}")
"""


@pytest.mark.parametrize("limit", [0, 5_000, 100_000, 700_000])
def test_write_error_is_reported_and_resumable(
    limit: int, src: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    done = run("-c", LIMITED, src, tmp_path / "out", limit)
    assert done.returncode == 1
    assert done.stderr.startswith("ResourceError: cannot write"), done.stderr
    convert(src, tmp_path / "out")
    assert digests(tmp_path / "out") == whole


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, where the system lets us make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        made = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        made = False
    if not made:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_too_small_a_disk_is_refused_before_anything_is_written(
    src: Path, small_disk: Path
) -> None:
    with pytest.raises(ResourceError, match=r"needs 0.00 GB of disk, .* has 0.00 GB free"):
        convert(src, small_disk / "out")
    assert list(small_disk.iterdir()) == []


def test_full_disk_is_reported_and_resumable(
    src: Path, whole: dict[str, str], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["headgate.convert.convert"]
    monkeypatch.setattr(module, "check_free_space", lambda *_: None)
    with pytest.raises(ResourceError, match=r"the disk is full .* run the same command again"):
        convert(src, small_disk / "out")
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    report = convert(src, small_disk / "out")
    assert digests(small_disk / "out") == whole
    assert report.written_bytes < report.store_bytes


def test_read_only_disk_is_refused(src: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro,size=64m", str(small_disk)], check=True)
    with pytest.raises(ResourceError, match=r"cannot write .*: Read-only file system"):
        convert(src, small_disk / "out")


def test_target_that_cannot_be_made_is_refused(src: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "out", tmp_path / ("x" * 300)):
        with pytest.raises(ResourceError, match="cannot write"):
            convert(src, out)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind this user")
def test_folder_without_permission_is_refused(src: Path, tmp_path: Path) -> None:
    for mode in (0o555, 0o000):
        folder = tmp_path / f"folder{mode}"
        folder.mkdir(mode=mode)
        with pytest.raises(ResourceError, match="cannot write"):
            convert(src, folder / "out")
        with pytest.raises(CheckpointError):
            convert(folder / "src", tmp_path / "out")


def test_two_processes_do_not_write_the_same_store(src: Path, tmp_path: Path) -> None:
    def second(*_: object) -> None:
        with pytest.raises(StoreError, match="another process is writing"):
            convert(src, tmp_path / "out")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(src, tmp_path / "out", progress=second)


def test_ctrl_c_says_how_to_resume(tmp_path: Path) -> None:
    large = {**SIZES, "num_experts": 256}
    src, out = tiny_checkpoint(tmp_path / "src", **large), tmp_path / "out"
    command = [sys.executable, "-m", "headgate", "convert", str(src), str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    first = out.with_name("out.partial") / "experts" / "00.bin"
    while process.poll() is None and not (first.exists() and first.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == ("headgate: interrupted: run the same command again to resume")
    assert "Traceback" not in said
    assert not out.exists() and out.with_name("out.partial").exists()


# Not ru_maxrss: a process inherits that from the one that started it.
BIG = """
import sys
from pathlib import Path
from headgate.convert import ConvertOptions, convert
def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
small, large, out = sys.argv[1:]
convert(small, out + ".small", ConvertOptions(expert_bits=2))
before = peak()
convert(large, out + ".large", ConvertOptions(expert_bits=2))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_layers_or_heads(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "num_hidden_layers": 1,
        "layer_types": ["full_attention"],
        "hidden_size": 1024,
        "moe_intermediate_size": 512,
        "num_experts": 32,
        "vocab_size": 32_000,
    }
    small = tiny_checkpoint(tmp_path / "small")
    large = tiny_checkpoint(tmp_path / "large", **config)
    # 100 MB of experts and 66 MB of head, twice that in float32.
    done = run("-c", BIG, small, large, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 80e6
