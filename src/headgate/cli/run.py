"""``headgate run``: one prompt, one answer."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from headgate.chat import ChatTemplate, StreamDecoder, load_tools, parse_tool_calls
from headgate.chat.tools import Tool
from headgate.demo import demo_store
from headgate.engine import Engine, Generation, Sampling, parse_size
from headgate.engine.budget import format_size, peak_bytes
from headgate.errors import UsageError
from headgate.measure.trace import TraceRecorder
from headgate.store import Store

TEMPLATE_FILES = ("chat_template.jinja", "tokenizer_config.json")


def run(
    store: Annotated[
        str | None,
        typer.Argument(help="A store made by `headgate convert`; without one, the embedded demo."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Argument(help="What to ask; read from stdin if not given.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    tools: Annotated[
        Path | None, typer.Option(help="JSON file with functions that the model may call.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it is, without a chat template.")
    ] = False,
    max_tokens: Annotated[
        int | None, typer.Option(help="Longest answer; the rest of the context if not given.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens with this mass.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")] = 0,
    min_p: Annotated[
        float, typer.Option(help="Keep tokens this likely relative to the likeliest.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1 makes tokens already used less likely.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Make sampling repeatable.")] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory of the whole process, such as 8G; 70 % of what is free if not given."
        ),
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Longest sequence in tokens; 8192 or the model's limit.")
    ] = None,
    experts_per_token: Annotated[
        int | None, typer.Option(help="Lossy: fewer experts than the model was trained with.")
    ] = None,
    expert_bits: Annotated[
        int | None, typer.Option(help="Lossy: read experts at fewer bits than the store has.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="One per core if not given.")] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Record which experts are used, for `headgate replay`; no text."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of the answer.")
    ] = False,
) -> None:
    """Answer a prompt: `headgate run STORE "PROMPT"`, or `headgate run "PROMPT"` for the demo.

    The answer goes to stdout as it is generated, a summary to stderr.
    """
    path, question = _store_and_prompt(store, prompt)
    declared = load_tools(tools) if tools else []
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    recorder = None if trace is None else TraceRecorder(trace)
    engine = Engine.load(
        path,
        memory=parse_size(memory) if memory else None,
        context=context,
        experts_per_token=experts_per_token,
        expert_bits=expert_bits,
        threads=threads,
        recorder=recorder,
    )
    text = question if raw else _render(engine.store, question, system, declared)
    ids = engine.tokenizer.encode(text)
    session, decoder, answer = engine.new_session(), StreamDecoder(engine.tokenizer), []

    def emit(piece: str) -> None:
        answer.append(piece)
        if not as_json and piece:
            sys.stdout.write(piece)
            sys.stdout.flush()

    with recorder or nullcontext():
        for token in session.generate(ids, max_tokens, sampling):
            emit(decoder.push(token))
    emit(decoder.flush())
    assert session.generation is not None
    if as_json:
        print(json.dumps(_document(engine, session.generation, "".join(answer), declared)))
    else:
        print()
        print(_summary(engine, session.generation), file=sys.stderr)


def _store_and_prompt(store: str | None, prompt: str | None) -> tuple[Path, str]:
    if store is not None and prompt is None and not _looks_like_path(store):
        store, prompt = None, store
    if prompt is None:
        if sys.stdin.isatty():
            raise UsageError('no prompt: give one as `headgate run "PROMPT"` or on stdin')
        prompt = sys.stdin.read()
    if not prompt.strip():
        raise UsageError("the prompt is empty")
    return (demo_store() if store is None else Path(store)), prompt


def _looks_like_path(text: str) -> bool:
    """One argument is a store if it names something on disk or looks like a path."""
    try:
        exists = Path(text).exists()
    except (OSError, ValueError):  # too long for a path, or with a NUL
        return False
    return exists or ("/" in text and " " not in text) or text.endswith((".headgate", ".partial"))


def _render(store: Store, question: str, system: str | None, tools: list[Tool]) -> str:
    present = {
        name: store.read_file(name) for name in TEMPLATE_FILES if name in store.manifest.files
    }
    template = ChatTemplate.from_files(present)
    if template is None:
        raise UsageError("the store has no chat template: use --raw")
    messages = [{"role": "system", "content": system}] if system else []
    return template.render([*messages, {"role": "user", "content": question}], tools)


def _document(engine: Engine, figures: Generation, text: str, tools: list[Tool]) -> dict[str, Any]:
    _, calls = parse_tool_calls(text, tools)
    return {
        "text": text,
        "tool_calls": [{"name": call.name, "arguments": call.arguments} for call in calls],
        "finish_reason": figures.finish_reason,
        "prompt_tokens": figures.prompt_tokens,
        "generated_tokens": figures.generated_tokens,
        "tokens_per_s": figures.tokens_per_s,
        "ttft_s": figures.ttft_s,
        "hit_rate": figures.hit_rate,
        "bytes_read_per_token": figures.bytes_read_per_token,
        "peak_memory_bytes": peak_bytes(),
        "budget_bytes": engine.budget.total,
        "lossy": engine.lossy,
    }


def _summary(engine: Engine, figures: Generation) -> str:
    lossy = "; ".join(engine.lossy) or "none"
    return (
        f"{figures.generated_tokens} tokens, {figures.tokens_per_s:.1f} tokens/s, "
        f"first after {figures.ttft_s:.2f} s, hit rate {figures.hit_rate:.0%}, "
        f"{format_size(figures.bytes_read_per_token)} read per token, "
        f"peak memory {format_size(peak_bytes())}, lossy: {lossy}"
    )
