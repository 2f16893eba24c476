"""What a kept prefix is worth: time to first token behind the same system message and tools.

    .venv/bin/python benchmarks/serving/prefix.py

Every round has a prefix of its own of a thousand tokens or a few more, and asks the demo
model's server a question behind it (nothing is kept yet), another one (kept in memory), and
after a restart of the server a third (kept on the drive, of which a server reads what was
used last when it starts), each time right after one behind a prefix that is new. Times are a
streaming client's, to the first piece of the answer; shares are medians of those of each
round, so that a busy machine matters less. Both servers have answered a question before.
Answers are compared with those of a server that keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from checks import Figures, Server

from headgate.demo import demo_store

QUESTIONS = ("Which country is Oslo in?", "Please look up Paris.", "Tell me a short story.")
MOST = 0.1
FILLER = "Answer every question of the customer truthfully and in one short sentence. "
PREFIX_TOKENS = 1000

Body = dict[str, Any]


def prefixes(client: httpx.Client, rounds: int) -> list[Body]:
    """Requests without a question, whose prompts differ from the first tokens on."""
    return [_grown(client, number) for number in range(rounds)]


def _grown(client: httpx.Client, number: int) -> Body:
    tools = [_tool(f"{what}_{number}") for what in ("look_up", "order", "remove", "rename")]
    repeats, more = 0, "Well. " * (4 * number % 21)  # states are kept at multiples of a number
    while True:
        system = {"role": "system", "content": f"You are number {number}. {FILLER * repeats}{more}"}
        body = {"messages": [system], "tools": tools}
        count: Body = {
            "model": "",
            "system": system["content"],
            "messages": [{"role": "user", "content": "x"}],
            "tools": [
                {
                    "name": tool["function"]["name"],
                    "description": tool["function"]["description"],
                    "input_schema": tool["function"]["parameters"],
                }
                for tool in tools
            ],
        }
        del count["model"]
        found = client.post("/v1/messages/count_tokens", json=count).json()
        if found["input_tokens"] >= PREFIX_TOKENS:
            return body
        repeats += 1


def _tool(name: str) -> Body:
    properties = {
        "key": {"type": "string", "description": "What to look for"},
        "count": {"type": "integer", "description": "How many"},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        },
    }
    parameters = {"type": "object", "properties": properties, "required": ["key"]}
    function = {"name": name, "description": f"{name} of a thing", "parameters": parameters}
    return {"type": "function", "function": function}


def ask(client: httpx.Client, prefix: Body, question: str) -> tuple[float, str, int]:
    """(seconds to the first piece, answer, tokens of the prompt that were kept)."""
    messages = [*prefix["messages"], {"role": "user", "content": question}]
    body = {**prefix, "messages": messages, "temperature": 0, "max_tokens": 40, "stream": True}
    body["stream_options"] = {"include_usage": True}
    began, first, said, cached = time.perf_counter(), 0.0, "", 0
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            for choice in chunk["choices"]:
                delta = {k: v for k, v in choice["delta"].items() if k != "role" and v}
                if delta and not first:
                    first = time.perf_counter() - began
                for call in delta.pop("tool_calls", ()):
                    call.pop("id", None)  # drawn at random
                    said += json.dumps(call)
                said += json.dumps(delta) if delta else ""
            if chunk.get("usage"):
                cached = chunk["usage"]["prompt_tokens_details"]["cached_tokens"]
    return first, said, cached


def run(
    server: Server, asked: Sequence[tuple[Body, str]], warm: Body
) -> list[tuple[float, str, int]]:
    """The answers, in turn."""
    with server.client() as client:
        ask(client, warm, QUESTIONS[0])
        return [ask(client, *one) for one in asked]


def _ms(seconds: Sequence[float]) -> str:
    return f"{1e3 * statistics.median(seconds):.1f} ms"


def main() -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    figures, store = Figures(), demo_store()
    first, second, third = QUESTIONS
    with tempfile.TemporaryDirectory(prefix="headgate-prefix-") as folder:
        cache = Path(folder)
        keeping = ["--prefix-memory", "256M"]
        with Server(store, keeping, cache) as server:
            with server.client() as client:
                warm, other, *mine = prefixes(client, 2 + 2 * args.rounds)
            new, mine = mine[args.rounds :], mine[: args.rounds]
            asked = [(prefix, q) for prefix in mine for q in (first, second)]
            before = run(server, asked, warm)
        again = [x for i in range(args.rounds) for x in ((new[i], first), (mine[i], third))]
        with Server(store, keeping, cache) as server:
            after = run(server, again, other)
        with Server(store, ["--prefix-memory", "0"], cache) as server:
            plain = run(server, [*asked, *again], warm)
    for name, found in (("in memory", before), ("over a restart", after)):
        nothing, kept = [x[0] for x in found[::2]], [x[0] for x in found[1::2]]
        share = statistics.median(b / a for a, b in zip(nothing, kept, strict=True))
        figures.tell("time to first token, nothing kept", _ms(nothing))
        figures.tell(f"time to first token, kept {name}", _ms(kept))
        figures.check("  of that with nothing kept", f"{share:.3f}", f"<= {MOST}", share <= MOST)
        figures.tell("  tokens kept, least", str(min(count for *_, count in found[1::2])))
    same = sum(a[1] == b[1] for a, b in zip([*before, *after], plain, strict=True))
    figures.check(
        "answers equal to those of a server that keeps nothing",
        f"{same} of {len(plain)}",
        "all",
        same == len(plain),
    )
    return figures.status


if __name__ == "__main__":
    sys.exit(main())
