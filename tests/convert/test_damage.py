"""No damaged byte of a store goes unnoticed, and the message says where it is."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from headgate.convert import ConvertOptions, convert
from headgate.errors import DamagedStore, StoreError
from headgate.store import Store, verify
from headgate.store.verify import Damage, total_bytes
from tests.checkpoints import tiny_checkpoint

POSITIONS = 200


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    src = tiny_checkpoint(folder / "src")
    convert(src, folder / "out", ConvertOptions(expert_bits=8))
    return folder / "out"


def damages(path: Path) -> list[Damage] | StoreError:
    try:
        return list(verify(Store.open(path)))
    except StoreError as error:
        return error


def test_intact_store_has_no_damage_and_every_byte_is_counted(store: Path) -> None:
    seen: list[int] = []
    assert list(verify(Store.open(store), seen.append)) == []
    size = sum(p.stat().st_size for p in store.rglob("*") if p.is_file())
    assert sum(seen) == size - (store / "store.json").stat().st_size
    assert sum(seen) == total_bytes(Store.open(store))


def test_damaged_byte_is_found_at_random_positions_in_every_file(store: Path) -> None:
    rng = random.Random(1)
    files = sorted(p for p in store.rglob("*") if p.is_file())
    assert {p.name for p in files} >= {
        "store.json",
        "checksums.bin",
        "conversion.json",
        "dense.safetensors",
        "tokenizer.json",
        "02.bin",
    }
    for number in range(POSITIONS):
        path = files[number % len(files)]
        intact = path.read_bytes()
        at, bit = rng.randrange(len(intact)), rng.randrange(8)
        path.write_bytes(intact[:at] + bytes([intact[at] ^ 1 << bit]) + intact[at + 1 :])
        found = damages(store)
        path.write_bytes(intact)
        assert found, f"{path.name}, byte {at}, bit {bit}"
        if path.parent.name == "experts":
            assert isinstance(found, list) and len(found) == 1
            stride = Store.open(store).layout.stride
            assert (found[0].layer, found[0].expert) == (int(path.stem), at // stride)
            assert f"layer {int(path.stem)}, expert {at // stride}," in found[0].what
        else:
            text = str(found) if isinstance(found, StoreError) else found[0].file + found[0].what
            assert path.name in text or path.name == "store.json"
    assert damages(store) == []


def test_damaged_dense_tensor_is_named(store: Path) -> None:
    opened = Store.open(store)
    header = opened.dense_header()
    path = store / "dense.safetensors"
    intact = path.read_bytes()
    for name, info in list(header.tensors.items())[::7]:
        at = header.data_start + info.end - 1
        path.write_bytes(intact[:at] + bytes([intact[at] ^ 128]) + intact[at + 1 :])
        assert damages(store) == [Damage("dense.safetensors", f"dense tensor {name}")]
        with pytest.raises(DamagedStore, match=name):
            opened.load_dense()
        path.write_bytes(intact)


@pytest.mark.parametrize("name", ["dense.safetensors", "experts/01.bin", "checksums.bin"])
def test_missing_or_shortened_file_is_an_error(name: str, store: Path) -> None:
    path = store / name
    intact = path.read_bytes()
    path.write_bytes(intact[:-1])
    assert damages(store)
    path.unlink()
    found = damages(store)
    assert isinstance(found, StoreError) and path.name in str(found)
    path.write_bytes(intact)
    assert damages(store) == []
