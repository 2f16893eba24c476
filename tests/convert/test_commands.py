"""``headgate convert``, ``inspect`` and ``verify``: answers on stdout, status 2 on bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from headgate.convert import convert
from headgate.store import Store
from tests.checkpoints import (
    extras,
    hf_tensors,
    multimodal,
    random_weights,
    tiny_checkpoint,
    tiny_config,
    write_checkpoint,
)


def headgate(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headgate", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    convert(tiny_checkpoint(folder / "src"), folder / "tiny.headgate")
    return folder / "tiny.headgate"


def test_convert_reports_on_stdout_and_progress_on_stderr(tmp_path: Path) -> None:
    config = tiny_config()
    tensors = {**extras(), **hf_tensors(config, random_weights(config))}
    src = write_checkpoint(tmp_path / "src", multimodal(config), tensors)
    done = headgate("convert", src, tmp_path / "out", "--expert-bits", 3, "--group-size", 32)
    assert done.returncode == 0, done.stderr
    assert "3-bit experts from bf16" in done.stdout
    assert "left out: 2 vision tensors" in done.stdout and "2 MTP tensors" in done.stdout
    assert done.stderr.splitlines() == [f"converting {src} to {tmp_path / 'out'} ..."]
    manifest = Store.open(tmp_path / "out").manifest
    assert (manifest.experts.bits, manifest.experts.group_size) == (3, 32)


def test_convert_prints_one_json_document(tmp_path: Path) -> None:
    src = tiny_checkpoint(tmp_path / "src")
    (src / "tokenizer.json").unlink()
    done = headgate(
        "convert", src, tmp_path / "out", "--json", "--expert-bits", 16, "--dense-bits", 16
    )
    report = json.loads(done.stdout)
    assert report["expert_bits"] == 16 and report["written_bytes"] == report["store_bytes"]
    assert "no tokenizer.json" in done.stderr and "no tokenizer.json" in report["notes"][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--expert-bits", "5"], "expert bits 5 is none of 2, 3, 4, 8, 16"),
        (["--dense-bits", "4"], "dense bits 4 is none of 8, 16"),
        (["--group-size", "16"], "group size 16 is none of 32, 64, 128"),
        ([], "does not exist"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    options: list[str], message: str, tmp_path: Path
) -> None:
    done = headgate("convert", tmp_path / "nothing", tmp_path / "out", *options)
    assert done.returncode == 2 and done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("headgate: error: ") and message in last


def test_inspect_adds_up(store: Path) -> None:
    found = json.loads(headgate("inspect", store, "--json").stdout)
    assert found["bytes"] == sum(p.stat().st_size for p in store.rglob("*") if p.is_file())
    layout = Store.open(store).layout
    assert found["experts"]["bytes"] == 3 * 5 * layout.stride
    assert found["bytes_per_token"].keys() == {"2", "3", "4"}
    for bits, by_count in found["bytes_per_token"].items():
        assert by_count == {"2": 3 * 2 * layout.prefix_bytes(int(bits))}
    dense = Store.open(store).dense_header().tensors
    assert sum(role["bytes"] for role in found["dense"].values()) == sum(
        info.nbytes for info in dense.values()
    )


def test_inspect_shows_precisions_and_segments(store: Path) -> None:
    text = headgate("inspect", store).stdout
    assert "5 experts in each of 3 layers, 2 per token" in text
    assert "4 bits, groups of 64" in text and "8 bits, groups of 64" in text
    assert "bytes per token" in text


def test_verify_accepts_an_intact_store(store: Path) -> None:
    done = headgate("verify", store)
    assert done.returncode == 0 and "are intact" in done.stdout
    assert json.loads(headgate("verify", store, "--json").stdout)["damages"] == []


def test_verify_lists_damage_and_exits_with_2(store: Path) -> None:
    path = store / "experts" / "01.bin"
    intact = path.read_bytes()
    stride = Store.open(store).layout.stride
    data = bytearray(intact)
    for expert in (2, 4):
        data[expert * stride] ^= 255
    path.write_bytes(data)
    done = headgate("verify", store)
    as_json = headgate("verify", store, "--json")
    path.write_bytes(intact)
    assert done.returncode == as_json.returncode == 2
    assert [line.split(",")[:2] for line in done.stdout.splitlines()] == [
        ["experts/01.bin: layer 1", " expert 2"],
        ["experts/01.bin: layer 1", " expert 4"],
    ]
    assert done.stderr.splitlines()[-1] == f"headgate: error: {store} has 2 damaged places"
    assert [d["expert"] for d in json.loads(as_json.stdout)["damages"]] == [2, 4]


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_what_is_no_store_says_what_it_is(command: str, store: Path, tmp_path: Path) -> None:
    for path, message in (
        (store.parent / "src", "is a checkpoint, not a store"),
        (tmp_path / "nothing", "does not exist"),
        (tmp_path, "is not an expert store"),
    ):
        done = headgate(command, path)
        assert done.returncode == 2 and message in done.stderr
