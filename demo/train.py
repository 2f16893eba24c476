"""Train the demo model on one GPU.

    python demo/train.py OUT --minutes 22

writes a checkpoint in transformers' format every few minutes and at the end. The same
command goes on from OUT/state.pt if there is one, or with ``--weights`` from a
checkpoint's weights alone.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from corpus import transcript
from model import Model, Packing, Sizes, initial
from optim import Optimizer
from packing import ROW, Rows, encode, feed, pack
from text import SPECIALS, TEMPLATE, TOKENIZER, render, train_tokenizer

START = time.time()
BALANCE = 0.004
CHECKED = [("calling", True), ("calling", False), ("parallel", False), ("irrelevant", False),
           ("multi_turn", False), ("json", False), ("chat", False)]  # fmt: skip


def tokenizer(vocab: int) -> Any:
    """The committed tokenizer, made again if it is missing."""
    from tokenizers import Tokenizer

    if not TOKENIZER.exists():
        texts = (render(t["messages"], t["tools"]) for t in map(transcript, range(30000)))
        train_tokenizer(texts, vocab, TOKENIZER)
    return Tokenizer.from_file(str(TOKENIZER))


def save(out: Path, s: Sizes, params: dict[str, Tensor]) -> None:
    """A bfloat16 checkpoint in transformers' format."""
    from transformers import GenerationConfig
    from transformers.models.qwen3_5_moe.configuration_qwen3_5_moe import Qwen3_5MoeTextConfig
    from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeForCausalLM

    with torch.device("cpu"):
        model = Qwen3_5MoeForCausalLM._from_config(Qwen3_5MoeTextConfig(**s.config()))
    model.load_state_dict({name: p.detach().cpu() for name, p in params.items()})
    model.bfloat16()
    stop = [SPECIALS.index("<|im_end|>"), 0]
    model.generation_config = GenerationConfig(
        bos_token_id=0, eos_token_id=stop, pad_token_id=0, do_sample=False
    )
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out, max_shard_size="12MB")
    shutil.copy(TEMPLATE, out)
    shutil.copy(TOKENIZER, out)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "clean_up_tokenization_spaces": False, "model_max_length": 4096}  # fmt: skip
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def stored_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Parameters of a checkpoint; tensors may be int8 with a scale per row, and experts
    apart as transformers saves them."""
    from safetensors.torch import load_file

    found = {
        k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()
    }
    apart: dict[str, dict[str, Tensor]] = {}
    for name, value in found.items():
        if name.endswith(".scale"):
            continue
        scale = found.get(f"{name}.scale")
        value = value.float() if scale is None else value.float() * scale.float()
        parts = name.split(".")
        if "experts" in parts and parts[parts.index("experts") + 1].isdigit():
            at = parts.index("experts")
            apart.setdefault(".".join(parts[: at + 1]), {})[".".join(parts[at + 1 :])] = value
        else:
            yield name, value
    for prefix, tensors in apart.items():
        count = 1 + max(int(name.split(".")[0]) for name in tensors)
        gate, up, down = (
            torch.stack([tensors[f"{i}.{kind}_proj.weight"] for i in range(count)])
            for kind in ("gate", "up", "down")
        )
        yield f"{prefix}.gate_up_proj", torch.cat((gate, up), 1)
        yield f"{prefix}.down_proj", down


class Trainer:
    """The step, eager or as one CUDA graph, and its inputs at fixed addresses.

    Args:
        rows: a batch.
    """

    def __init__(
        self, s: Sizes, params: dict[str, Tensor], rows: int, device: str, graph: bool
    ) -> None:
        self.s, self.params, self.device = s, params, device
        for p in params.values():
            p.requires_grad_(True)
        fast = device == "cuda"
        self.model = Model(s, params, torch.bfloat16 if fast else torch.float32, fast)
        self.optimizer = Optimizer(params)
        self.ids = torch.zeros(rows, ROW + 1, dtype=torch.int64, device=device)
        self.weight = torch.ones(rows, ROW, device=device)
        self.position = torch.zeros(rows, ROW, dtype=torch.int64, device=device)
        self.cu = torch.full((rows * 32,), rows * ROW, dtype=torch.int32, device=device)
        self.lr = torch.zeros((), device=device)
        self.correction = torch.ones(2, device=device)
        self.figures: tuple[Tensor, ...] = ()
        self._graph: Any = None
        self._want_graph = graph

    def load(self, batch: Rows, lr: float = 0.0, step: int = 0) -> None:
        """Put a batch and the step's numbers in place."""
        starts = np.flatnonzero(batch.position.ravel() == 0).astype(np.int32)
        cu = np.full(len(self.cu), batch.position.size, np.int32)
        cu[: len(starts)] = starts
        for mine, array in (
            (self.ids, batch.ids), (self.weight, batch.weight), (self.position, batch.position), (self.cu, cu)
        ):  # fmt: skip
            mine.copy_(torch.from_numpy(np.ascontiguousarray(array)).to(self.device))
        self.lr.fill_(lr)
        self.correction.copy_(torch.tensor([1 - 0.9 ** (step + 1), 1 - 0.98 ** (step + 1)]))

    def losses(self) -> tuple[Tensor, Tensor, Tensor]:
        """(cross-entropy per target [rows * ROW], balance loss, expert shares) of the batch."""
        pack_ = Packing(self.position, self.cu)
        return self.model.losses(self.ids[:, :-1].contiguous(), self.ids[:, 1:].contiguous(), pack_)

    def _step(self) -> None:
        ce, balance, shares = self.losses()
        w = self.weight.flatten()
        loss = (ce * w).sum() / w.sum()
        params = list(self.params.values())
        grads = torch.autograd.grad(loss + BALANCE * balance, params)
        self.optimizer.step(
            {id(p): g for p, g in zip(params, grads, strict=True)}, self.lr, self.correction
        )
        said = (w == 1).float()
        spoken = (ce.detach() * said).sum() / said.sum()
        self.figures = (loss.detach(), spoken, balance.detach(), shares.detach().min())

    def step(self) -> None:
        """Train on the batch in place."""
        if not self._want_graph:
            return self._step()
        if self._graph is None:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            lr = self.lr.clone()
            self.lr.zero_()  # warming up must not train
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self._step()
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._step()
            self.lr.copy_(lr)
        self._graph.replay()
        return None


def check(trainer: Trainer, tok: Any, count: int) -> dict[str, float]:
    """Kind -> share of held-out transcripts whose every spoken token has more than half
    the probability, which implies that it is the greedy choice."""
    found = {}
    rows = len(trainer.ids)
    for kind, seen in CHECKED:
        made = (encode(tok, transcript(i, kind, True, seen, False)) for i in range(10 * count))
        documents = [d for d in made if len(d[0]) <= ROW][:count]
        good = total = 0
        batch = pack(iter(documents), rows)
        trainer.load(batch)
        # With gradients, so that what is compiled for training serves here too.
        ce = trainer.losses()[0].detach().view(rows, ROW).cpu().numpy()
        for row in range(rows):
            starts = [*np.flatnonzero(batch.position[row] == 0), ROW]
            for a, b in pairwise(starts):
                said = batch.weight[row, a:b] == 1
                if said.any():
                    total += 1
                    good += bool((ce[row, a:b][said] < math.log(2)).all())
        found[f"{kind}/{'seen' if seen else 'unseen'}"] = round(good / max(1, total), 3)
    return found


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("out", type=Path)
    ap.add_argument("--minutes", type=float, default=22, help="of training, over all calls")
    ap.add_argument("--stop-after", type=float, help="end this call after so many minutes")
    ap.add_argument(
        "--decay", type=float, default=0.75, help="share of training in which the rate falls to 0"
    )
    ap.add_argument("--rows", type=int, default=64, help="rows of 1024 tokens in a step")
    ap.add_argument("--lr", type=float, default=4e-3)
    ap.add_argument("--workers", type=int, default=13)
    ap.add_argument(
        "--weights", type=Path, help="checkpoint to start from, without optimizer state"
    )
    ap.add_argument("--save-every", type=float, default=4, help="minutes")
    ap.add_argument("--warmup", type=int, default=200, help="steps")
    ap.add_argument(
        "--wall", type=float, help="seconds from the start of the program to the end of training"
    )
    ap.add_argument("--no-graph", action="store_true")
    ap.add_argument("--layers", type=int, default=8)
    ap.add_argument("--profile", type=Path, help="write a table of kernels here and stop")
    a = ap.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = True
    torch._dynamo.config.specialize_float = True
    s = Sizes(layers=a.layers)
    tok = tokenizer(s.vocab)
    params = {name: p.to(device) for name, p in initial(s).items()}
    if a.weights:
        for name, value in stored_weights(a.weights):
            params[name].copy_(value)
    trainer = Trainer(s, params, a.rows, device, device == "cuda" and not a.no_graph)
    step, spent, tokens, piece = 0, 0.0, 0, 0
    if (state_file := a.out / "state.pt").exists():
        state = torch.load(state_file, map_location=device)
        with torch.no_grad():
            for name, p in params.items():
                p.copy_(state["params"][name])
        trainer.optimizer.load(state["optimizer"])
        step, spent, tokens, piece = state["step"], state["spent"], state["tokens"], state["piece"]
    print(
        f"{sum(p.numel() for p in params.values()) / 1e6:.1f}M parameters, from step {step}",
        flush=True,
    )

    def keep() -> None:
        state = {"params": {n: p.detach() for n, p in params.items()}, "optimizer": trainer.optimizer.state(),
                 "step": step, "spent": spent, "tokens": tokens, "piece": piece}  # fmt: skip
        if not a.wall:
            torch.save(state, state_file.with_suffix(".new"))
            state_file.with_suffix(".new").rename(state_file)
        save(a.out / "checkpoint", s, params)
        print(f"saved at step {step}", flush=True)

    begin = last = saved = time.time()
    limit, stop = a.minutes * 60, (a.stop_after or 1e9) * 60
    for rows in feed(a.workers, piece, 4 * a.rows):
        piece += 1
        for i in range(0, 4 * a.rows, a.rows):
            part = Rows(*(x[i : i + a.rows] for x in (rows.ids, rows.weight, rows.position)))
            frac = min(1.0, spent / limit)
            rate = a.lr * min(1.0, (step + 1) / a.warmup) * min(1.0, (1 - frac) / a.decay)
            trainer.load(part, rate, step)
            trainer.step()
            step, tokens = step + 1, tokens + a.rows * ROW
            if step == 1:
                torch.cuda.synchronize() if device == "cuda" else None
                print(f"first step after {time.time() - begin:.0f} s", flush=True)
                begin = last = saved = time.time()
                limit = a.wall - (begin - START) if a.wall else limit
            now = time.time()
            spent, last = spent + now - last, now
            if step % 100 == 0 or a.profile:
                loss, spoken, balance, least = (x.item() for x in trainer.figures)
                print(f"step {step} tokens {tokens / 1e6:.0f}M loss {loss:.4f} spoken {spoken:.4f} balance {balance:.3f} least {least:.4f} lr {rate:.2e} {spent:.0f} s {tokens / spent / 1e3:.0f}k tok/s", flush=True)  # fmt: skip
            if a.profile and step == 10:
                return profile(trainer, a.profile)
            if now - saved > a.save_every * 60:
                keep()
                print(check(trainer, tok, 100), flush=True)
                saved = last = time.time()
            if spent >= limit or now - begin > stop:
                break
        else:
            continue
        break
    keep()
    if not a.wall:
        print(check(trainer, tok, 200), flush=True)
    card = {
        "tokens": tokens,
        "steps": step,
        "seconds": round(spent),
        "tokens_per_s": round(tokens / spent),
        "rows": a.rows,
        "lr": a.lr,
    }
    (a.out / "run.json").write_text(json.dumps(card))
    print(card, flush=True)
    return None


def profile(trainer: Trainer, out: Path) -> None:
    """Where a step's time goes."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    torch.cuda.synchronize()
    begin = time.time()
    for _ in range(20):
        trainer.step()
    torch.cuda.synchronize()
    each = (time.time() - begin) / 20
    print(
        f"{each * 1e3:.1f} ms a step, {trainer.ids.shape[0] * ROW / each / 1e3:.0f}k tokens/s",
        flush=True,
    )
    with record(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as p:
        for _ in range(3):
            trainer.step()
        torch.cuda.synchronize()
    out.write_text(
        p.key_averages().table(
            sort_by="self_cuda_time_total", row_limit=60, max_name_column_width=100
        )
    )


if __name__ == "__main__":
    import os

    main()
    sys.stdout.flush()
    os._exit(0)  # the workers have nothing to finish
