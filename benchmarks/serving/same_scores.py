"""Whether a suite scores the same through a server as in this process.

    .venv/bin/python benchmarks/serving/same_scores.py              # tools, all prompts
    .venv/bin/python benchmarks/serving/same_scores.py --limit 2    # of each kind

Every prompt is asked of the demo model's engine in this process, and through OpenAI's own
Python SDK of ``headgate serve``, four at a time, free and held to the grammar. Outcomes are
compared one by one: what was said, whether it was right, and why not.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import openai
from checks import Figures, Server

from headgate.demo import demo_store
from headgate.engine import Engine
from headgate.evals.engine_target import engine_target
from headgate.evals.http_target import VARIABLES, parse_response, request_body
from headgate.evals.run import run_suite, summary
from headgate.evals.suites import find_suite
from headgate.evals.suites.items import load_items, some, suite_file
from headgate.evals.target import Answer, Question, Speed

BATCH, CONTEXT = 4, 4096


class SdkTarget:
    """A server, asked through the SDK as its users ask it."""

    constrains = True

    def __init__(self, url: str) -> None:
        self._client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=600)
        self._model = self._client.models.list().data[0].id
        self.name, self.speed = f"{self._model} over the SDK", Speed()

    def answer(self, question: Question) -> Answer:
        """See :class:`headgate.evals.target.Target`."""
        body: dict[str, Any] = request_body(self._model, question)
        own = {VARIABLES: body.pop(VARIABLES)}
        found = self._client.chat.completions.create(**body, extra_body=own)
        return parse_response(found.model_dump())

    def describe(self) -> dict[str, Any]:
        """Its name."""
        return {"name": self.name}


def main() -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--suite", default="tools")
    parser.add_argument("--limit", type=int, help="prompts of each kind")
    args = parser.parse_args()
    suite, figures = find_suite(args.suite), Figures()
    items = some(load_items(suite_file(args.suite)), args.limit)
    modes = [mode for mode in ("free", "constrained") if mode in suite.modes]
    with engine_target(Engine.load(demo_store(), sequences=BATCH, context=CONTEXT), BATCH) as here:
        inside = {mode: run_suite(suite, here, items, mode, batch=BATCH) for mode in modes}
    with Server(demo_store(), ["--context", str(CONTEXT)]) as server:
        target = SdkTarget(server.url)
        served = {mode: run_suite(suite, target, items, mode, batch=BATCH) for mode in modes}
    for mode in modes:
        for name, found in (("in this process", inside), ("over the SDK", served)):
            figure = summary(found[mode])
            figures.tell(f"{suite.name}, {mode}, {name}", f"{figure['score']:.4f} of {figure['n']}")
        same = sum(a == b for a, b in zip(inside[mode], served[mode], strict=True))
        figures.check("  the same", f"{same} of {len(items)}", "all", same == len(items))
    return figures.status


if __name__ == "__main__":
    sys.exit(main())
