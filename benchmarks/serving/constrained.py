"""Whether answers follow their JSON schema, and how many would without the constraint.

    .venv/bin/python benchmarks/serving/constrained.py

200 schemas of growing complexity (``schemas.py``), each asked for once through
``response_format`` and once with the schema in the prompt only, from the demo model with
experts of 2, 4 and 8 bits. Half of the answers are drawn at a temperature of 1. Answers are
validated by the jsonschema package. An answer that reaches ``--tokens`` is counted apart: as
wrong where the schema's documents have a greatest length, and otherwise not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from checks import Figures, Server
from jsonschema import Draft202012Validator
from schemas import LEVELS, Case, cases

from headgate.convert import ConvertOptions, convert
from headgate.demo import CHECKPOINT


def ask(client: httpx.Client, number: int, case: Case, bound: bool, tokens: int) -> dict[str, Any]:
    """The response to a request for a document."""
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": case.prompt}],
        "max_tokens": tokens,
        "temperature": number // LEVELS % 2,
        "seed": number,
    }
    if bound:
        schema = {"name": "document", "schema": case.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    found: dict[str, Any] = client.post("/v1/chat/completions", json=body).json()
    return found


def verdict(case: Case, response: dict[str, Any]) -> str:
    """``valid``, or what is wrong."""
    if "error" in response:
        return "refused"
    (choice,) = response["choices"]
    try:
        document = json.loads(choice["message"]["content"])
        Draft202012Validator(case.schema).validate(document)
    except Exception as error:
        if choice["finish_reason"] == "length":
            return "cut" if case.bounded else "cut, unbounded"
        return type(error).__name__
    return "valid"


def measure(
    client: httpx.Client, asked: list[Case], bound: bool, tokens: int
) -> tuple[Counter[str], list[str]]:
    """Verdicts, and what to say of the wrong ones."""

    def one(item: tuple[int, Case]) -> tuple[str, str]:
        number, case = item
        response = ask(client, number, case, bound, tokens)
        found = verdict(case, response)
        said = response.get("error") or response["choices"][0]["message"]["content"]
        return found, f"{number} {found}: {json.dumps(case.schema)}\n    {said!r}"

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(one, enumerate(asked)))
    wrong = [text for found, text in results if found not in ("valid", "cut, unbounded")]
    return Counter(found for found, _ in results), wrong


def main() -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=600, help="of an answer, at most")
    parser.add_argument("--bits", type=int, nargs="*", default=[2, 4, 8], choices=[2, 3, 4, 8])
    args = parser.parse_args()
    figures, asked = Figures(), cases(args.requests)
    with tempfile.TemporaryDirectory(prefix="headgate-constrained-") as folder:
        store = Path(folder) / "demo.headgate"
        convert(CHECKPOINT, store, ConvertOptions(expert_bits=8, dense_bits=8))
        for bits in args.bits:
            options = ["--expert-bits", str(bits), "--prefix-disk", "0"]
            with Server(store, options, Path(folder)) as server, server.client() as client:
                found, wrong = measure(client, asked, True, args.tokens)
                free, _ = measure(client, asked, False, args.tokens)
            unbounded = found.pop("cut, unbounded", 0)
            whole = len(asked) - unbounded
            share = f"{found['valid']} of {whole}"
            what = f"{bits} bits, constrained: valid answers"
            figures.check(what, share, "all", found["valid"] == whole)
            figures.tell("  cut at the limit, schema without a greatest length", str(unbounded))
            figures.tell("  without the constraint: valid answers", str(free["valid"]))
            for text in wrong:
                print(text, file=sys.stderr)
    return figures.status


if __name__ == "__main__":
    sys.exit(main())
