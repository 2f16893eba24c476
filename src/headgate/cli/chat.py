"""``headgate chat``: a conversation in the terminal."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from headgate.cli.lossy import ExpertBits
from headgate.demo import demo_store
from headgate.engine import Engine, Sampling, parse_size
from headgate.engine.budget import default_prefix_bytes
from headgate.evals import gate
from headgate.paths import cache_folder
from headgate.store import Store
from headgate.stream.profile import load_profile, profile_options


def chat(
    store: Annotated[
        Path | None,
        typer.Argument(help="A store made by `headgate convert`; without one, the embedded demo."),
    ] = None,
    system: Annotated[str, typer.Option(help="System message.")] = "",
    tools: Annotated[
        list[Path] | None,
        typer.Option(
            help="Python file whose functions the model may call, or JSON file with "
            "declarations; repeatable."
        ),
    ] = None,
    mcp: Annotated[
        list[str] | None,
        typer.Option(help="Command of an MCP server to start, without a shell; repeatable."),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="Function that runs without asking; all others ask. Repeatable."),
    ] = None,
    thinking: Annotated[
        bool | None,
        typer.Option("--thinking/--no-thinking", help="As the model's template has it if neither."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Longest answer; the rest of the context if not given.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 always takes the likeliest token.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Keep the likeliest tokens with this mass.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Keep tokens this likely relative to the likeliest.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1 makes tokens already used less likely.")
    ] = None,
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
    expert_bits: ExpertBits = None,
    experts_per_token: Annotated[
        int | None, typer.Option(help="Lossy: fewer experts than the model was trained with.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="One per core if not given.")] = None,
    no_profile: Annotated[
        bool, typer.Option("--no-profile", help="Without what `headgate lab search` found.")
    ] = False,
) -> None:
    """Talk to a model: `headgate chat STORE`, or `headgate chat` for the demo.

    Sampling that is not given is as the model's generation_config.json says. Without a
    terminal, stdin has one message per line and the answers go to stdout.
    """
    # Other commands need not pay for these in time and memory.
    from headgate.assistant import Assistant
    from headgate.engine.prefix_cache import PrefixCache
    from headgate.terminal import ChatOptions, load_toolbox, run_chat
    from headgate.terminal.mcp_servers import McpServers

    asked: dict[str, Any] = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    sampling = {name: value for name, value in asked.items() if value is not None}
    Sampling(**sampling)  # refused before minutes of loading, as are files and servers
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    box = load_toolbox(tools or ())
    with McpServers() as servers:
        for command in mcp or ():
            found = servers.start(command)
            print(f"headgate: started {command}, tools: {len(found)}", file=sys.stderr)
            for tool in found:
                box.add(tool)
        for name in allow or ():
            box.allow(name)
        budget = parse_size(memory) if memory else None
        path = demo_store() if store is None else store
        profile = None if no_profile else load_profile(Store.open(path), cache_folder())
        engine = Engine.load(
            path,
            memory=budget,
            context=context,
            experts_per_token=experts_per_token,
            expert_bits=expert_bits,
            prefix_bytes=default_prefix_bytes(budget),
            **profile_options(profile, threads=threads, memory=budget),
        )
        if profile is not None:
            print(f"headgate: profile: {profile.name}", file=sys.stderr)
        if engine.lossy:
            known = gate.describe(engine.store, engine.knobs)
            print(f"headgate: lossy: {'; '.join(engine.lossy)}: {known}", file=sys.stderr)
        prefixes = PrefixCache(engine)
        prefixes.preload()
        assistant = Assistant(
            engine,
            sequences=1,
            prefix_cache=prefixes,
            name="headgate-demo" if store is None else None,
        )
        try:
            options = ChatOptions(
                replace(assistant.default_sampling, **sampling), max_tokens, thinking, interactive
            )
            run_chat(assistant, box, options, system)
        finally:
            assistant.close()
            prefixes.close()
