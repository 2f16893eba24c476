"""``headgate run``: one prompt, one answer."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from headgate.chat import (
    ChatTemplate,
    Constraint,
    Grammar,
    StreamDecoder,
    Vocabulary,
    load_tools,
    opens_thinking,
    parse_tool_calls,
)
from headgate.chat.tools import Tool
from headgate.cli.lossy import (
    ExpertBits,
    PreferCached,
    Refine,
    RouterFloor,
    RouterMass,
    TopShare,
)
from headgate.demo import demo_store
from headgate.engine import Engine, Generation, Sampling, parse_size
from headgate.engine.budget import format_size, peak_bytes
from headgate.errors import UsageError
from headgate.evals import gate
from headgate.measure.trace import TraceRecorder
from headgate.paths import cache_folder
from headgate.store import Store
from headgate.stream.profile import Profile, load_profile, profile_options

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
    grammar: Annotated[
        Path | None,
        typer.Option(
            help="Hold the answer to this grammar: a JSON schema (.json) or llguidance's Lark."
        ),
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
    expert_bits: ExpertBits = None,
    top_share: TopShare = None,
    refine: Refine = False,
    router_mass: RouterMass = None,
    router_floor: RouterFloor = None,
    prefer_cached: PreferCached = None,
    threads: Annotated[int | None, typer.Option(help="One per core if not given.")] = None,
    no_profile: Annotated[
        bool, typer.Option("--no-profile", help="Without what `headgate lab search` found.")
    ] = False,
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
    rules = _grammar(grammar) if grammar else None
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    recorder = None if trace is None else TraceRecorder(trace)
    budget = parse_size(memory) if memory else None
    profile = None if no_profile else load_profile(Store.open(path), cache_folder())
    engine = Engine.load(
        path,
        memory=budget,
        context=context,
        experts_per_token=experts_per_token,
        expert_bits=expert_bits,
        top_share=top_share,
        refine=refine,
        router_mass=router_mass,
        router_floor=router_floor,
        prefer_cached=prefer_cached,
        recorder=recorder,
        **profile_options(profile, threads=threads, memory=budget),
    )
    text = question if raw else _render(engine.store, question, system, declared)
    ids = engine.tokenizer.encode(text)
    constraint = None if rules is None else _constraint(engine, rules, text)
    session, decoder, answer = engine.new_session(), StreamDecoder(engine.tokenizer), []

    def emit(piece: str) -> None:
        answer.append(piece)
        if not as_json and piece:
            sys.stdout.write(piece)
            sys.stdout.flush()

    with recorder or nullcontext():
        for token in session.generate(ids, max_tokens, sampling, constraint=constraint):
            emit(decoder.push(token))
    emit(decoder.flush())
    assert session.generation is not None
    if as_json:
        print(json.dumps(_document(engine, session.generation, "".join(answer), declared, profile)))
    else:
        print()
        print(_summary(engine, session.generation, profile), file=sys.stderr)
        if engine.lossy:
            print(gate.describe(engine.store, engine.knobs), file=sys.stderr)


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


def _grammar(path: Path) -> Grammar:
    try:
        text = path.read_text(encoding="utf-8")
        return (
            Grammar.json_schema(json.loads(text)) if path.suffix == ".json" else Grammar.lark(text)
        )
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the grammar {path}: {error}") from None
    except ValueError:
        raise UsageError(f"the schema {path} is not valid JSON") from None


def _constraint(engine: Engine, grammar: Grammar, prompt: str) -> Constraint:
    """Holds the answer to ``grammar``, once the reasoning that the prompt opens has ended."""
    thinking = engine.tokenizer.thinking_ids()
    end = thinking[1] if thinking and opens_thinking(prompt) else None
    data = engine.store.read_file("tokenizer.json")
    vocabulary = Vocabulary(data, engine.config.vocab_size, engine.stop_ids)
    return Constraint(vocabulary, grammar, after=end)


def _document(
    engine: Engine,
    figures: Generation,
    text: str,
    tools: list[Tool],
    profile: Profile | None,
) -> dict[str, Any]:
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
        "quality": gate.describe(engine.store, engine.knobs) if engine.lossy else None,
        "profile": None if profile is None else profile.to_dict(),
    }


def _summary(engine: Engine, figures: Generation, profile: Profile | None) -> str:
    lossy = "; ".join(engine.lossy) or "none"
    followed = "" if profile is None else f", profile: {profile.name}"
    return (
        f"{figures.generated_tokens} tokens, {figures.tokens_per_s:.1f} tokens/s, "
        f"first after {figures.ttft_s:.2f} s, hit rate {figures.hit_rate:.0%}, "
        f"{format_size(figures.bytes_read_per_token)} read per token, "
        f"peak memory {format_size(peak_bytes())}, lossy: {lossy}{followed}"
    )
