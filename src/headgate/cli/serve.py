"""``headgate serve``: a model behind OpenAI's and Anthropic's APIs, and a page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headgate.cli.lossy import (
    ExpertBits,
    PreferCached,
    Refine,
    RouterFloor,
    RouterMass,
    TopShare,
)
from headgate.demo import demo_store
from headgate.engine import Engine, parse_size
from headgate.engine.budget import default_prefix_bytes, format_size
from headgate.errors import UsageError
from headgate.evals import gate
from headgate.measure.trace import TraceRecorder
from headgate.paths import cache_folder
from headgate.store import Store
from headgate.stream.profile import Profile, load_profile, profile_options

if TYPE_CHECKING:
    from headgate.assistant import Assistant


def serve(
    store: Annotated[
        Path | None,
        typer.Argument(help="A store made by `headgate convert`; without one, the embedded demo."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own needs a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8080,
    api_key: Annotated[str | None, typer.Option(help="Key that clients must present.")] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File that holds the key; others cannot see it there.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Web origin whose pages may use the server (CORS); repeatable."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory of the whole process, such as 8G; 70 % of what is free if not given."
        ),
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Longest sequence in tokens; 8192 or the model's limit.")
    ] = None,
    sequences: Annotated[int, typer.Option(help="Answers that are generated together.")] = 4,
    queue: Annotated[int, typer.Option(help="Requests that may wait beyond those.")] = 64,
    expert_bits: ExpertBits = None,
    top_share: TopShare = None,
    refine: Refine = False,
    router_mass: RouterMass = None,
    router_floor: RouterFloor = None,
    prefer_cached: PreferCached = None,
    experts_per_token: Annotated[
        int | None, typer.Option(help="Lossy: fewer experts than the model was trained with.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="One per core if not given.")] = None,
    no_profile: Annotated[
        bool, typer.Option("--no-profile", help="Without what `headgate lab search` found.")
    ] = False,
    prefix_memory: Annotated[
        str | None,
        typer.Option(
            help="Of the memory, for states of prompts; 0 keeps none. A sixteenth if not given."
        ),
    ] = None,
    prefix_disk: Annotated[
        str, typer.Option(help="On the drive, for states of prompts; 0 keeps none there.")
    ] = "4G",
    trace: Annotated[
        Path | None,
        typer.Option(help="Record which experts are used, for `headgate replay`; no text."),
    ] = None,
) -> None:
    """Serve a model: `headgate serve STORE`, or `headgate serve` for the demo.

    OpenAI's API is at /v1, Anthropic's at /v1/messages, a page to talk to the model at /.
    """
    # Other commands need not pay for these in time and memory.
    from headgate.assistant import Assistant
    from headgate.engine.prefix_cache import PrefixCache
    from headgate.server import ServerOptions, create_app
    from headgate.server import serve as serve_app
    from headgate.server.listen import allowed_hosts, is_loopback, listen, url_of

    key = _key(api_key, api_key_file)
    if key is None and not is_loopback(host):
        raise UsageError(
            f"listening on {host} needs --api-key or --api-key-file: "
            "without a key, whoever reaches the port could use the model"
        )
    budget = parse_size(memory) if memory else None
    if refine and prefix_memory is None:
        prefix_memory = "0"  # states depend on what was in memory then
    kept = default_prefix_bytes(budget) if prefix_memory is None else parse_size(prefix_memory)
    recorder = None if trace is None else TraceRecorder(trace)
    listening = listen(host, port)  # before minutes of loading
    with listening:
        path = demo_store() if store is None else store
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
            sequences=sequences,
            prefix_bytes=kept,
            recorder=recorder,
            **profile_options(profile, threads=threads, memory=budget),
        )
        prefixes = PrefixCache(engine, disk=parse_size(prefix_disk)) if kept else None
        assistant = Assistant(
            engine,
            sequences=sequences,
            queue=queue,
            prefix_cache=prefixes,
            name="headgate-demo" if store is None else None,
        )
        options = ServerOptions(key, allowed_hosts(host), tuple(allow_origin or ()))

        def close() -> None:
            assistant.close()
            if prefixes is not None:
                prefixes.close()
            if recorder is not None:
                recorder.close()

        if prefixes is not None:
            prefixes.preload()
        print(_greeting(assistant, url_of(listening), key, profile), file=sys.stderr, flush=True)
        serve_app(create_app(assistant, options), listening, close)
    print("headgate: stopped", file=sys.stderr)


def _key(given: str | None, file: Path | None) -> str | None:
    if given is not None and file is not None:
        raise UsageError("--api-key and --api-key-file exclude each other")
    if file is not None:
        try:
            given = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the key file {file}: {error}") from None
    if given is not None and not given.strip():
        raise UsageError("the API key is empty")
    return given


def _greeting(assistant: Assistant, url: str, key: str | None, profile: Profile | None) -> str:
    engine = assistant.engine
    lossy = "; ".join(engine.lossy) or "none"
    return "\n".join(
        [
            f"headgate: serving {assistant.name} at {url}"
            + ("" if key is None else ", to clients with the key"),
            f"  OpenAI API {url}/v1, Anthropic API {url}, page {url}/",
            f"  context {engine.context} tokens, {assistant.sequences} answers together, "
            f"memory {format_size(engine.budget.total)}, lossy: {lossy}",
            *([f"  {gate.describe(engine.store, engine.knobs)}"] if engine.lossy else []),
            *([] if profile is None else [f"  profile: {profile.name}"]),
        ]
    )
