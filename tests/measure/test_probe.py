"""The probe measures, fits, saves, draws and cleans up; how fast is nobody's claim."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from headgate import _native
from headgate.errors import ResourceError, UsageError
from headgate.measure.drive import DriveProbe, ReadRate, cached_share, drop_cache, scratch_file
from headgate.measure.machine import describe_drive, describe_machine
from headgate.measure.plots import plot_probe, require_matplotlib
from headgate.measure.probe import Plan, ProbeReport, probe
from headgate.paths import probe_file
from headgate.stream.cost_model import CostModel
from tests.cli.test_run import headgate

KIB, MIB = 1 << 10, 1 << 20
SMALL = Plan(
    file_bytes=64 * MIB,
    sizes=[64 * KIB, 256 * KIB],
    depths=[1, 4, 16],
    other_sizes=[64 * KIB],
    other_depths=[4],
    rounds=1,
    round_s=1,
    limit_s=20,
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> ProbeReport:
    folder = tmp_path_factory.mktemp("probe")
    doing: list[str] = []
    found, saved = probe(folder, SMALL, doing.append)
    assert doing[0] == "writing a scratch file" and len(doing) == 2
    assert not list(folder.iterdir())  # the scratch file has gone
    assert saved == probe_file(folder) and json.loads(saved.read_text()) == found.to_dict()
    assert CostModel.load(saved) == found.cost_model
    return found


def test_every_combination_is_measured(report: ProbeReport) -> None:
    combinations = {(rate.nbytes, rate.depth) for rate in report.of("direct")}
    assert combinations == {(size, depth) for size in SMALL.sizes for depth in SMALL.depths}
    assert len(report.errors) == len(combinations)
    assert [rate.depth for rate in report.of("buffered")] == [4]
    assert [rate.depth for rate in report.of("mmap")] == [1]
    assert all(rate.bytes_per_s > 0 for rate in report.reads)


def test_memory_by_threads_and_kernels_by_bits(report: ProbeReport) -> None:
    threads = [rate.threads for rate in report.memory]
    assert threads[0] == 1 and threads == sorted(set(threads))
    assert threads[-1] == report.machine["cores"]
    for cached in (True, False):
        kernels = [kernel for kernel in report.kernels if kernel.cached == cached]
        assert [kernel.bits for kernel in kernels] == [2, 3, 4, 8, 16]
        for kernel in kernels:
            # Scales and biases are 32 bits for every 64 weights.
            bits = kernel.bits + (0.5 if kernel.bits < 16 else 0)
            assert kernel.nbytes * 8 == kernel.weights * bits
            assert kernel.bytes_per_s * 8 == pytest.approx(kernel.weights_per_s * bits)
            assert (kernel.nbytes <= MIB) == cached


def test_figures_are_medians_of_their_rounds() -> None:
    rate = ReadRate("direct", MIB, 1, [3.0, 1.0, 2.0])
    assert (rate.seconds, rate.bytes_per_s) == (2.0, MIB / 2)
    assert rate.to_dict()["seconds"] == 2.0


def test_drawing(report: ProbeReport, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot_probe(report, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="cannot draw"):
        plot_probe(report, tmp_path / "p.nothing")
    with pytest.raises(ResourceError, match="cannot write"):
        plot_probe(report, tmp_path / "absent" / "p.png")


def test_missing_matplotlib_is_named_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"headgate\[plots\]"):
        require_matplotlib()


def test_command(tmp_path: Path) -> None:
    refused = headgate("probe", tmp_path / "absent")
    assert refused.returncode == 2 and "cannot probe" in refused.stderr


def test_scratch_file_is_random_and_removed_when_measuring_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError), scratch_file(tmp_path, 64 * MIB, seconds=9) as path:
        pages = np.fromfile(path, np.uint8).reshape(-1, 4096)
        assert len(pages) == 64 * MIB // 4096
        assert len(np.unique(pages[:, :8].copy().view(np.uint64))) == len(pages)
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_slow_drive_gets_a_smaller_file(tmp_path: Path) -> None:
    with scratch_file(tmp_path, 1 << 30, seconds=0) as path:
        assert path.stat().st_size == 64 * MIB


def test_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot probe"), scratch_file(tmp_path / "x", MIB, 1):
        pass


def test_page_cache_of_a_file_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(4 * MIB))
    if cached_share(path) is None:
        pytest.skip("this system does not tell")
    assert cached_share(path) == 1.0
    drop_cache(path)  # may be refused: nothing to assert


def test_reads_go_to_different_places(tmp_path: Path) -> None:
    with scratch_file(tmp_path, 64 * MIB, seconds=9) as path:
        drive = DriveProbe(path)
        offsets = drive._offsets(MIB, 100)
        assert sorted(offsets[:64]) == [i * MIB for i in range(64)]
        assert len(offsets) == 100 and max(offsets) < 64 * MIB


def test_machine_and_drive_are_described(tmp_path: Path) -> None:
    machine = describe_machine()
    assert machine["cores"] >= 1 and machine["memory_bytes"] > 1 << 20 and machine["cpu"]
    if sys.platform == "linux":
        assert describe_drive(tmp_path)["file_system"]


@pytest.mark.parametrize("threads", [1, 3])
def test_every_word_of_memory_is_read(threads: int) -> None:
    rng = np.random.default_rng(0)
    pool = _native.ThreadPool(threads)
    for lines in (0, 1, 3, 5, 1 << 14, (1 << 16) + 7):
        buffer = _native.AlignedBuffer(64 * lines + 64).array(0, 64 * lines)
        words = buffer.view(np.uint64)
        words[:] = rng.integers(0, 1 << 64, len(words), np.uint64)
        assert _native.read_memory(pool, buffer) == int(np.bitwise_xor.reduce(words))


def test_memory_that_is_not_whole_lines_is_refused() -> None:
    pool, buffer = _native.ThreadPool(1), _native.AlignedBuffer(256).array()
    for part in (buffer[:100], buffer[8:72]):
        with pytest.raises(ValueError, match=r"multiple|aligned"):
            _native.read_memory(pool, part)
