"""Score a demo checkpoint on the held-out set, generating freely and greedily.

    python demo/evaluate.py                          # the embedded checkpoint, bfloat16
    python demo/evaluate.py --bits 16 8 4 3 2 --experts-per-token 6 4 3 2 --limit 25

Prints one table; its last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing as mp
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from routing import Trace, hit_rates, overlap

from headgate.chat import ChatTemplate, parse_tool_calls
from headgate.convert import ConvertOptions, convert
from headgate.demo import CHECKPOINT
from headgate.engine import Engine

HELD_OUT = Path(__file__).parent / "held_out.jsonl"
#: Tokens that an answer may be longer than the right one.
SLACK = 48


def valid(value: Any, schema: dict[str, Any]) -> bool:
    """Whether ``value`` follows the parts of JSON Schema that the corpus uses."""
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        known = all(k in properties and valid(v, properties[k]) for k, v in value.items())
        return known and all(k in value for k in schema.get("required", []))
    if isinstance(value, list):
        return all(valid(v, schema.get("items", {})) for v in value)
    return True


def _is(value: Any, kind: str) -> bool:
    if kind in ("integer", "number"):
        whole = isinstance(value, int) or (kind == "number" and isinstance(value, float))
        return whole and not isinstance(value, bool)
    types = {"string": str, "boolean": bool, "null": type(None), "array": list, "object": dict}
    return isinstance(value, types[kind])


def same(a: Any, b: Any) -> bool:
    """Equality that tells true from 1."""
    return bool(a == b) and json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


class Scorer:
    """One engine and what it has been asked.

    Attributes:
        used: int [layers, experts], times that an expert was used.
        trace: experts of every layer of every call, in order; with the calls' tokens.
    """

    def __init__(self, store: Path, options: dict[str, Any]) -> None:
        self.engine = Engine.load(store, threads=1, **options)
        files = {"chat_template.jinja": self.engine.store.read_file("chat_template.jinja")}
        template = ChatTemplate.from_files(files)
        assert template is not None
        self.template = template
        c = self.engine.config
        self.used = np.zeros((c.num_hidden_layers, c.num_experts), np.int64)
        self.tokens = 0
        self.trace: Trace = []
        inner = self.engine.experts.request

        def request(layer: int, ids: Any) -> Any:
            self.used[layer] += np.bincount(ids.ravel(), minlength=c.num_experts)
            self.tokens += len(ids) if layer == 0 else 0
            self.trace.append((layer, len(ids), np.unique(ids).tolist()))
            return inner(layer, ids)

        self.engine.experts.request = request  # type: ignore[method-assign]

    def answer(self, t: dict[str, Any], at: int) -> str:
        """What the model says as message ``at``."""
        prompt = self.template.render(t["messages"][:at], t["tools"], enable_thinking=t["thinking"])
        right = json.dumps(t["messages"][at], ensure_ascii=False)
        encode, session = self.engine.tokenizer.encode, self.engine.new_session()
        limit = len(encode(right)) + SLACK
        return self.engine.tokenizer.decode(list(session.generate(encode(prompt), limit)))

    def score(self, t: dict[str, Any]) -> dict[str, Any]:
        """Figures of one transcript."""
        result: dict[str, Any] = {"id": t["id"], "kind": t["kind"], "exact": True, "name": True}
        if t["kind"] == "story":
            return {**result, **self._perplexity(t)}
        said = []
        for at, message in enumerate(t["messages"]):
            if message["role"] != "assistant":
                continue
            text = self.answer(t, at)
            said.append(text)
            text = text.split("</think>")[-1] if t["thinking"] else text
            content, calls = parse_tool_calls(text, t["tools"])
            wanted = [c["function"] for c in message.get("tool_calls", [])]
            result["name"] &= [c.name for c in calls] == [w["name"] for w in wanted]
            if t["kind"] == "json":
                result |= self._json(text, t, message["content"])
                result["exact"] &= result["equal"]
                continue
            pairs = zip(calls, wanted, strict=False)
            right = result["name"] and len(calls) == len(wanted)
            right &= all(same(c.arguments, w["arguments"]) for c, w in pairs)
            result["exact"] &= right and content == message["content"].strip()
        return {**result, "said": said}

    def _json(self, text: str, t: dict[str, Any], right: str) -> dict[str, bool]:
        question = t["messages"][-2]["content"]
        schema = json.JSONDecoder().raw_decode(question, question.index("{"))[0]
        try:
            value = json.loads(text)
        except ValueError:
            return {"valid": False, "equal": False}
        return {"valid": valid(value, schema), "equal": same(value, json.loads(right))}

    def _perplexity(self, t: dict[str, Any]) -> dict[str, Any]:
        text = self.template.render(t["messages"], None, add_generation_prompt=False)
        ids = self.engine.tokenizer.encode(text)
        logits = self.engine.new_session().append(ids, all_logits=True).astype(np.float64)
        start = len(self.engine.tokenizer.encode(text[: text.index("</think>\n\n") + 10]))
        top = logits.max(-1)
        total = top + np.log(np.exp(logits - top[:, None]).sum(-1))
        nll = [total[i - 1] - logits[i - 1, ids[i]] for i in range(start, len(ids))]
        return {"nll": float(np.sum(nll)), "count": len(nll)}


def _work(args: tuple[Path, dict[str, Any], list[dict[str, Any]]]) -> dict[str, Any]:
    store, options, transcripts = args
    scorer = Scorer(store, options)
    results = [scorer.score(t) for t in transcripts]
    rates = hit_rates(scorer.trace, scorer.used.size)
    shared = overlap(scorer.trace)
    return {"results": results, "used": scorer.used, "tokens": scorer.tokens, "rates": rates, "overlap": shared}  # fmt: skip


def evaluate(store: Path, options: dict[str, Any], transcripts: list[dict[str, Any]], processes: int) -> dict[str, Any]:  # fmt: skip
    """All figures of one setting."""
    begin = time.time()
    parts = [(store, options, transcripts[i::processes]) for i in range(processes)]
    with mp.get_context("spawn").Pool(processes) as pool:
        done = pool.map(_work, parts)
    results = [r for part in done for r in part["results"]]
    found: dict[str, Any] = {}
    for kind in dict.fromkeys(t["kind"] for t in transcripts):
        mine = [r for r in results if r["kind"] == kind]
        if kind == "story":
            found["story_perplexity"] = math.exp(
                sum(r["nll"] for r in mine) / sum(r["count"] for r in mine)
            )
            continue
        found[kind] = sum(r["exact"] for r in mine) / len(mine)
        if kind == "json":
            found["json_valid"] = sum(r["valid"] for r in mine) / len(mine)
        if kind in ("seen", "unseen"):
            found[f"{kind}_name"] = sum(r["name"] for r in mine) / len(mine)
    tokens = sum(part["tokens"] for part in done)
    share = sum(part["used"] for part in done) / tokens
    return {
        "scores": found,
        "wrong": [r for r in results if not r["exact"]],
        "least_used": share.min(1).tolist(),
        "most_used": share.max(1).tolist(),
        "hit_rates": {k: float(np.mean([p["rates"][k] for p in done])) for k in done[0]["rates"]},
        "overlap": float(np.mean([p["overlap"] for p in done])),
        "seconds": time.time() - begin,
    }


def _row(label: str, found: dict[str, Any]) -> str:
    cells = (
        f"{v:12.3f}" if k == "story_perplexity" else f"{v:12.1%}"
        for k, v in found["scores"].items()
    )
    return f"{label:>14}" + "".join(cells) + f"{found['seconds']:8.0f}"


def main() -> None:
    ap = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ap.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    ap.add_argument(
        "--bits", type=int, nargs="*", default=[16], help="of experts; dense tensors stay bfloat16"
    )
    ap.add_argument(
        "--experts-per-token", type=int, nargs="*", default=[], help="of the bfloat16 store"
    )
    ap.add_argument("--limit", type=int, help="transcripts of each kind")
    ap.add_argument("--kinds", nargs="*")
    ap.add_argument("--processes", type=int, default=2)
    ap.add_argument("--wrong", type=Path, help="write wrong answers here as JSON lines")
    a = ap.parse_args()
    counts: Counter[str] = Counter()
    transcripts = []
    for line in HELD_OUT.read_text(encoding="utf-8").splitlines():
        t = json.loads(line)
        counts[t["kind"]] += 1
        if (not a.limit or counts[t["kind"]] <= a.limit) and (not a.kinds or t["kind"] in a.kinds):
            transcripts.append(t)
    table: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        plan = [(f"{b} bits", b, {}) for b in a.bits]
        plan += [(f"K = {k}", 16, {"experts_per_token": k}) for k in a.experts_per_token]
        for label, bits, options in plan:
            store = Path(folder) / f"{bits}.headgate"
            if not store.exists():
                convert(a.checkpoint, store, ConvertOptions(expert_bits=bits, dense_bits=16))
            found = evaluate(store, options, transcripts, a.processes)
            if not table:
                names = (k.removeprefix("story_") for k in found["scores"])
                print(" " * 14 + "".join(f"{k:>12}" for k in names) + f"{'seconds':>8}")
            print(_row(label, found), flush=True)
            wrong = found.pop("wrong")
            if a.wrong and not table:
                a.wrong.write_text("".join(json.dumps(w, ensure_ascii=False) + "\n" for w in wrong))
            table[label] = found
    first = next(iter(table.values()))
    least, most = first["least_used"], first["most_used"]
    print("share of tokens that use an expert, least and most by layer:",
          ", ".join(f"{x:.1%}..{y:.1%}" for x, y in zip(least, most, strict=True)))  # fmt: skip
    print(
        "LRU hit rate of decoded tokens:",
        ", ".join(f"{k} {v:.1%}" for k, v in first["hit_rates"].items()),
    )
    print(f"experts in common with the token before: {first['overlap']:.1%}")
    print(json.dumps(table))


if __name__ == "__main__":
    main()
