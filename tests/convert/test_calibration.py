"""Calibration: what is collected, and what a conversion makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import typer
from typer.testing import CliRunner

from headgate.cli.calibrate import calibrate
from headgate.convert import ConvertOptions, convert
from headgate.convert.calibration import Calibration, LayerMoments, write_calibration
from headgate.demo import CHECKPOINT
from headgate.engine import Engine
from headgate.errors import StoreError, UsageError
from headgate.measure.moments import MomentExperts, collect_moments, moment_shapes
from headgate.models import parse_config
from headgate.quant import Quantizer
from headgate.quant.affine import served
from headgate.store import Store
from headgate.store.record import build_record, record_matrices
from tests.checkpoints import (
    mlx_checkpoint,
    mlx_config,
    random_weights,
    tiny_checkpoint,
    write_checkpoint,
)
from tests.stores import digests, expert_weights

Floats = npt.NDArray[np.float32]
SIZES = {"vocab_size": 4096, "hidden_size": 72, "moe_intermediate_size": 40}
TEXT = "The quick brown fox jumps over the lazy dog. " * 12


@pytest.fixture(scope="module")
def src(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tiny_checkpoint(tmp_path_factory.mktemp("calibration") / "src", **SIZES)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (found / name).write_bytes((CHECKPOINT / name).read_bytes())
    return found


@pytest.fixture(scope="module")
def exact(src: Path) -> Path:
    convert(src, src.with_name("exact"), ConvertOptions(expert_bits=16, dense_bits=16))
    return src.with_name("exact")


@pytest.fixture(scope="module")
def moments(exact: Path) -> dict[int, LayerMoments]:
    engine = Engine.load(exact)
    ids = np.random.default_rng(0).integers(0, 4096, (12, 100)).tolist()
    return collect_moments(engine, ids)


@pytest.fixture(scope="module")
def calibration(src: Path, moments: dict[int, LayerMoments]) -> Path:
    path = src.with_name("src.calibration")
    write_calibration(path, moments)
    return path


class Spy:
    """An expert source that keeps all inputs."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self.seen: list[tuple[int, npt.NDArray[np.int32], Floats]] = []

    def request(self, layer: int, ids: npt.NDArray[np.int32]) -> Any:
        self._last = layer, ids.copy()
        return self._source.request(layer, ids)

    def compute(self, request: Any, x: Floats, *rest: Any) -> Any:
        self.seen.append((*self._last, x.copy()))
        return self._source.compute(request, x, *rest)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


def test_moments_are_means_over_what_each_expert_is_given(
    exact: Path, moments: dict[int, LayerMoments]
) -> None:
    engine = Engine.load(exact)
    spy = engine.experts = Spy(engine.experts)  # type: ignore[assignment]
    for ids in np.random.default_rng(0).integers(0, 4096, (12, 100)).tolist():
        engine.new_session().append(ids)
    record = np.fromfile(engine.store.expert_path(1), np.uint8)[: engine.store.layout.stride]
    w = record_matrices(engine.store.layout, record, 16)
    parts = [x[(ids == 0).any(1)] for layer, ids, x in spy.seen if layer == 1]
    x = np.concatenate(parts)
    gate = x @ w["gate"].T
    inner = gate / (1 + np.exp(-gate)) * (x @ w["up"].T)
    assert moments[1].tokens[0] == len(x) > 0
    assert np.allclose(moments[1].inputs[0], x.T @ x / len(x), rtol=1e-3, atol=1e-4)
    scale = float((inner**2).mean())
    assert np.allclose(moments[1].hidden[0], inner.T @ inner / len(x), rtol=1e-3, atol=scale * 1e-3)
    assert int(moments[1].tokens.sum()) == 12 * 100 * 2


def test_collecting_changes_no_logit_and_leaves_the_engine_as_it_was(exact: Path) -> None:
    engine = Engine.load(exact)
    before, stream = engine.new_session().append([1, 2, 3]), engine.experts
    collect_moments(engine, [[1, 2, 3, 4]])
    assert engine.experts is stream
    engine.experts = MomentExperts(stream, engine.store)  # type: ignore[assignment]
    assert np.array_equal(engine.new_session().append([1, 2, 3]), before)


def test_moments_become_coarser_as_models_grow() -> None:
    whole = 4 * 2 * (8 * 16 * 16 + 8 * 4 * 4)
    assert moment_shapes(8, 16, 4, 2, whole) == ((8, 16, 16), (8, 4, 4))
    assert moment_shapes(8, 16, 4, 2, whole - 1) == ((16, 16), (8, 4, 4))
    assert moment_shapes(8, 16, 4, 2, 4 * 2 * (16 * 16 + 8 * 4)) == ((16, 16), (8, 4))
    assert moment_shapes(8, 16, 4, 2, 0) == ((16,), (8, 4))


def output_error(store: Store, exact: Store, moments: dict[int, LayerMoments], bits: int) -> float:
    """Relative error of the experts' outputs, the mean over all matrices."""
    ours, right = expert_weights(store, bits), expert_weights(exact)
    found = []
    for name, w in right.items():
        layer, expert = int(name.split(".")[1]), int(name.split(".")[4])
        m = moments[layer]
        h = m.hidden_of(expert) if "down" in name else m.inputs_of(expert)
        off = w - ours[name]
        found.append(((off @ h) * off).sum() / ((w @ h) * w).sum())
    return float(np.mean(found))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_outputs_are_closer_and_bytes_are_as_many(
    src: Path,
    exact: Path,
    calibration: Path,
    moments: dict[int, LayerMoments],
    tmp_path: Path,
    bits: int,
) -> None:
    convert(src, tmp_path / "plain", ConvertOptions(expert_bits=bits))
    report = convert(src, tmp_path / "ours", ConvertOptions(bits, calibration=calibration))
    plain, ours = Store.open(tmp_path / "plain"), Store.open(tmp_path / "ours")
    assert any("calibration" in note for note in report.notes)
    assert ours.layout == plain.layout
    assert ours.expert_path(0).stat().st_size == plain.expert_path(0).stat().st_size
    before, after = (
        {p: output_error(store, Store.open(exact), moments, p) for p in served(bits)}
        for store in (plain, ours)
    )
    # The inputs of a random model have little in common: the gain is small here.
    assert after[2] < 0.9 * before[2]
    assert sum(after.values()) < 0.95 * sum(before.values())
    print(bits, before, after)
    logits = Engine.load(tmp_path / "ours").new_session().append([1, 2, 3])
    assert np.isfinite(logits).all()


def test_without_calibration_records_are_those_of_the_search(src: Path, tmp_path: Path) -> None:
    convert(src, tmp_path / "out", ConvertOptions(expert_bits=4))
    store = Store.open(tmp_path / "out")
    assert "calibration" not in (tmp_path / "out" / "conversion.json").read_text()
    weights = expert_weights(Store.open(src.with_name("exact")))
    expert = {
        m: Quantizer(1).quantize(weights[f"layers.0.mlp.experts.0.{m}_proj.weight"], 4, 64)
        for m in ("gate", "up", "down")
    }
    record = build_record(store.layout, expert, Quantizer(1))  # type: ignore[arg-type]
    found = np.fromfile(store.expert_path(0), np.uint8)[: store.layout.stride]
    assert np.array_equal(found, record)


def test_an_interrupted_conversion_ends_in_the_same_bytes(
    src: Path, calibration: Path, tmp_path: Path
) -> None:
    options = ConvertOptions(3, calibration=calibration)
    convert(src, tmp_path / "whole", options)

    def stop(done: int, total: int, doing: str) -> None:
        if doing == "experts of layer 1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(src, tmp_path / "out", options, stop)
    with pytest.raises(StoreError):  # begun with a calibration
        convert(src, tmp_path / "out", ConvertOptions(3))
    report = convert(src, tmp_path / "out", options)
    assert report.written_bytes < report.store_bytes
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_another_calibration_does_not_resume(
    src: Path, calibration: Path, moments: dict[int, LayerMoments], tmp_path: Path
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(src, tmp_path / "out", ConvertOptions(3, calibration=calibration), stop)
    other = {n: LayerMoments(m.tokens, m.inputs * 2, m.hidden) for n, m in moments.items()}
    write_calibration(tmp_path / "other", other)
    with pytest.raises(StoreError):
        convert(src, tmp_path / "out", ConvertOptions(3, calibration=tmp_path / "other"))


def test_coarser_moments_are_used_too(
    src: Path,
    exact: Path,
    moments: dict[int, LayerMoments],
    tmp_path: Path,
) -> None:
    convert(src, tmp_path / "plain", ConvertOptions(expert_bits=2))
    before = output_error(Store.open(tmp_path / "plain"), Store.open(exact), moments, 2)
    for number, diagonal in enumerate((False, True)):
        coarse = {}
        for layer, m in moments.items():
            inputs = m.inputs.mean(0)
            hidden = np.einsum("eii->ei", m.hidden).copy()
            coarse[layer] = LayerMoments(
                m.tokens, np.diagonal(inputs).copy() if diagonal else inputs, hidden
            )
        file = tmp_path / f"{number}.calibration"
        write_calibration(file, coarse)
        convert(src, tmp_path / str(number), ConvertOptions(2, calibration=file))
        store = Store.open(tmp_path / str(number))
        assert output_error(store, Store.open(exact), moments, 2) < before


def test_moments_of_another_precision_are_written_as_the_file_says(
    exact: Path, tmp_path: Path
) -> None:
    engine = Engine.load(exact)
    found = collect_moments(engine, [[1, 2, 3, 4, 5]])
    write_calibration(tmp_path / "a", found)
    wide = {
        n: LayerMoments(m.tokens.astype(np.int32), m.inputs.astype(float), m.hidden.astype(float))
        for n, m in found.items()
    }
    write_calibration(tmp_path / "b", wide)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_experts_without_inputs_borrow_from_their_layer() -> None:
    r = np.random.default_rng(3)
    x = r.standard_normal((2, 50, 8)).astype(np.float32)
    inputs = np.einsum("etc,etd->ecd", x, x) / 50
    inputs = np.concatenate([inputs, np.zeros((1, 8, 8), np.float32)])
    m = LayerMoments(np.array([50, 150, 0], np.int32), inputs, inputs)
    mean = (inputs[0] + 3 * inputs[1]) / 4
    assert np.allclose(m.inputs_of(2), mean)
    share = 150 / (150 + 64)
    assert np.allclose(m.inputs_of(1), inputs[1] * share + mean * (1 - share))
    assert np.allclose(m.hidden_of(2), np.eye(8) * np.trace(mean) / 8)


def test_bad_files_are_refused_in_one_line(
    src: Path, moments: dict[int, LayerMoments], tmp_path: Path
) -> None:
    def attempt(path: Path) -> str:
        with pytest.raises(UsageError) as error:
            convert(src, tmp_path / "out", ConvertOptions(calibration=path))
        assert not (tmp_path / "out").exists() and "\n" not in str(error.value)
        return str(error.value)

    assert "No such file" in attempt(tmp_path / "none")
    (tmp_path / "junk").write_bytes(b"junk")
    assert "no calibration" in attempt(tmp_path / "junk")
    some = {0: moments[0]}
    write_calibration(tmp_path / "some", some)
    assert "no tokens of layer 1" in attempt(tmp_path / "some")
    other = {n: LayerMoments(m.tokens, m.inputs, m.hidden[:, :8, :8]) for n, m in moments.items()}
    write_calibration(tmp_path / "other", other)
    assert "another model" in attempt(tmp_path / "other")
    bad = dict(moments)
    bad[0] = LayerMoments(moments[0].tokens, moments[0].inputs * np.nan, moments[0].hidden)
    write_calibration(tmp_path / "bad", bad)
    assert "bad values" in attempt(tmp_path / "bad")


def test_calibration_is_refused_where_nothing_is_quantised(
    src: Path, calibration: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="16 bits"):
        convert(src, tmp_path / "out", ConvertOptions(16, calibration=calibration))
    config = mlx_config()
    mlx = mlx_checkpoint(config, random_weights(config))
    write_checkpoint(tmp_path / "mlx", mlx.config, mlx.tensors)
    with pytest.raises(UsageError, match="quantised already"):
        convert(tmp_path / "mlx", tmp_path / "out", ConvertOptions(calibration=calibration))


app = typer.Typer()
app.command()(calibrate)


def test_command_reads_text_and_transcripts(src: Path, exact: Path, tmp_path: Path) -> None:
    text, lines = tmp_path / "text.txt", tmp_path / "lines.jsonl"
    text.write_text(TEXT)
    messages = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "Yes."}]
    lines.write_text(json.dumps({"messages": messages, "thinking": False}) + "\n\n")
    for number, (model, file) in enumerate([(exact, text), (src, lines)]):
        out = tmp_path / f"{number}.calibration"
        args = [str(model), "--text", str(file), "--out", str(out), "--max-tokens", "90"]
        done = CliRunner().invoke(app, args)
        assert done.exit_code == 0, done.output
        assert "90 tokens" in done.output
        config = parse_config(json.loads((src / "config.json").read_text()))
        assert Calibration.open(out, config, 64).tokens(0) == 90
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "0.calibration",
        "1.calibration",
        "lines.jsonl",
        "text.txt",
    ]


def test_command_refuses_what_it_cannot_use(src: Path, exact: Path, tmp_path: Path) -> None:
    def attempt(model: Path, content: str, name: str = "text.txt") -> str:
        (tmp_path / name).write_text(content)
        args = [str(model), "--text", str(tmp_path / name), "--out", str(tmp_path / "out")]
        done = CliRunner().invoke(app, args)
        assert isinstance(done.exception, UsageError | StoreError)
        return str(done.exception)

    convert(src, tmp_path / "four", ConvertOptions(expert_bits=4))
    assert "4-bit experts" in attempt(tmp_path / "four", TEXT)
    assert "no text" in attempt(exact, "")
    assert "line 2: not an object with messages" in attempt(exact, "\n{}\n", "x.jsonl")
    assert "does not exist" in attempt(tmp_path / "none", TEXT)
    assert not (tmp_path / "out").exists()
