"""``headgate calibrate``: what experts are given, for a better quantisation."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from headgate.chat import ChatTemplate
from headgate.cli.progress import ProgressBar
from headgate.convert import ConvertOptions
from headgate.convert import convert as convert_checkpoint
from headgate.convert.calibration import write_calibration
from headgate.engine import Engine, parse_size
from headgate.engine.budget import format_size
from headgate.errors import UsageError
from headgate.measure.moments import collect_moments

#: Tokens of a piece of plain text, and the most that are read unless told otherwise.
WINDOW, MOST_TOKENS = 512, 100_000
TEMPLATE_FILES = ("chat_template.jinja", "tokenizer_config.json")
#: Experts of a checkpoint's temporary store: moments of 8 bits are those of 16.
OPTIONS = ConvertOptions(expert_bits=8, dense_bits=8)


def calibrate(
    model: Annotated[
        Path, typer.Argument(help="A store of 8 or 16 bits, or the checkpoint itself.")
    ],
    text: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Text like what the model is used for; or transcripts, JSON lines with "
            "messages and perhaps tools.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="File to write; MODEL.calibration unless given.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens to read at most.")] = MOST_TOKENS,
    memory: Annotated[
        str | None, typer.Option(help="Memory of the engine, such as 8G; moments come on top.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="One per core if not given.")] = None,
) -> None:
    """Collect second moments of the inputs of every routed expert.

    `headgate convert --calibration FILE` quantises for them. A checkpoint is converted
    to a temporary store of 8 bits first, which lies beside the file and is deleted.
    """
    if max_tokens < 1:
        raise UsageError(f"max tokens is {max_tokens}, expected at least 1")
    out = out or model.with_name(model.name.removesuffix(".headgate") + ".calibration")
    options = {"memory": parse_size(memory) if memory else None, "threads": threads}
    if (model / "store.json").is_file() or not (model / "config.json").is_file():
        _calibrate(model, text, out, max_tokens, options)
        return
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.") as folder:
        store = Path(folder) / "temporary.headgate"
        with ProgressBar(f"converting {model} for the time of the calibration") as bar:
            convert_checkpoint(model, store, OPTIONS, bar.update)
        _calibrate(store, text, out, max_tokens, options)


def _calibrate(
    store: Path, text: Path, out: Path, max_tokens: int, options: dict[str, int | None]
) -> None:
    engine = Engine.load(store, **options)
    bits = engine.store.manifest.experts.bits
    if bits < 8:
        raise UsageError(f"{store} has {bits}-bit experts: calibrate a store of 8 or 16 bits")
    texts = _texts(engine, text, max_tokens)
    with ProgressBar(f"reading {sum(map(len, texts))} tokens") as bar:
        layers = collect_moments(engine, texts, lambda a, b: bar.update(a, b, "tokens"))
    write_calibration(out, layers)
    least = min(int(moments.tokens.min()) for moments in layers.values())
    size = format_size(out.stat().st_size)
    print(f"{out}: {size}, {sum(map(len, texts))} tokens, an expert saw {least} or more")


def _texts(engine: Engine, path: Path, max_tokens: int) -> list[list[int]]:
    """Token ids of sequences, no more than asked for."""
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None
    size = min(WINDOW, engine.context)
    if path.suffix == ".jsonl":
        found = [ids[: engine.context] for ids in _transcripts(engine, content, path)]
    else:
        ids = engine.tokenizer.encode(content)
        found = [ids[at : at + size] for at in range(0, len(ids), size)]
    kept: list[list[int]] = []
    for ids in found:
        left = max_tokens - sum(map(len, kept))
        if left <= 0:
            break
        kept.append(ids[:left])
    if not any(kept):
        raise UsageError(f"{path} has no text")
    return [ids for ids in kept if ids]


def _transcripts(engine: Engine, content: str, path: Path) -> list[list[int]]:
    files = engine.store.manifest.files
    template = ChatTemplate.from_files(
        {name: engine.store.read_file(name) for name in TEMPLATE_FILES if name in files}
    )
    if template is None:
        raise UsageError("the store has no chat template, which transcripts need")
    found = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            t = json.loads(line)
            messages, tools = t["messages"], t.get("tools")
            thinking = {"enable_thinking": bool(t["thinking"])} if "thinking" in t else {}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UsageError(f"{path}, line {number}: not an object with messages") from None
        try:
            rendered = template.render(messages, tools, add_generation_prompt=False, **thinking)
        except UsageError as error:
            raise UsageError(f"{path}, line {number}: {error}") from None
        found.append(engine.tokenizer.encode(rendered))
    return found
