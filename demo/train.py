"""Train the demo model on one GPU.

    python demo/train.py OUT --minutes 7.4

writes a checkpoint in transformers' format, and everything that the same command needs
to go on, to OUT every two minutes and at the end. ``--stop-after`` cuts the training into
pieces; ``--weights`` starts from a checkpoint's weights alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from corpus import transcript
from judge import Document, documents, judge, show
from model import Losses, Model, Packing, Sizes, initial
from optim import Optimizer
from packing import ROW, Rows, feed
from text import SPECIALS, TEMPLATE, TOKENIZER, render, train_tokenizer

START = time.time()
#: Batches that a worker makes at once.
PIECE = 4


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
        routing: what balance, floor and locality weigh in the loss.
    """

    def __init__(
        self, s: Sizes, params: dict[str, Tensor], rows: int, device: str, graph: bool,
        routing: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> None:  # fmt: skip
        self.s, self.params, self.device, self.routing = s, params, device, routing
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

    def losses(self) -> Losses:
        """Of the batch in place."""
        pack_ = Packing(self.position, self.cu)
        return self.model.losses(self.ids[:, :-1].contiguous(), self.ids[:, 1:].contiguous(), pack_)

    def _step(self) -> None:
        losses = self.losses()
        ce, w = losses.ce, self.weight.flatten()
        loss = (ce * w).sum() / w.sum()
        asked = sum(c * x for c, x in zip(self.routing, losses.routing, strict=True))
        params = list(self.params.values())
        grads = torch.autograd.grad(loss + asked, params)
        self.optimizer.step(
            {id(p): g for p, g in zip(params, grads, strict=True)}, self.lr, self.correction
        )
        said = (w == 1).float()
        spoken = (ce.detach() * said).sum() / said.sum()
        shares = losses.shares.detach()
        self.figures = (loss.detach(), spoken, *losses.routing.detach(), shares.min(), shares.max())

    def step(self) -> None:
        """Train on the batch in place."""
        if not self._want_graph:
            return self._step()
        if self._graph is None:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            # Warming up must not train: neither parameters nor moments may move.
            lr, kept = self.lr.clone(), copy.deepcopy(self.optimizer.state())
            self.lr.zero_()
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self._step()
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._step()
            self.lr.copy_(lr)
            self.optimizer.load(kept)
        self._graph.replay()
        return None


@dataclass
class Progress:
    """How far a training is, over all calls.

    Attributes:
        spent: seconds of training, without compiling, saving and judging.
        piece: number of the next piece of data.
    """

    step: int = 0
    spent: float = 0.0
    tokens: int = 0
    piece: int = 0


class Run:
    """A training and its folder."""

    def __init__(self, a: argparse.Namespace) -> None:
        self.a, self.progress = a, Progress()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.state_file = a.out / "state.pt"
        s = Sizes(layers=a.layers)
        self.tok = tokenizer(s.vocab)
        params = {name: p.to(self.device) for name, p in initial(s).items()}
        if a.weights:
            for name, value in stored_weights(a.weights):
                params[name].copy_(value)
        graph = self.device == "cuda" and not a.no_graph
        routing = (a.balance, a.floor, a.locality)
        self.trainer = Trainer(s, params, a.rows, self.device, graph, routing)
        if self.state_file.exists():
            self._resume()
        size = sum(p.numel() for p in params.values()) / 1e6
        print(f"{size:.1f}M parameters, {routing = }, from {self.progress}", flush=True)

    def _resume(self) -> None:
        state = torch.load(self.state_file, map_location=self.device)
        with torch.no_grad():
            for name, p in self.trainer.params.items():
                p.copy_(state["params"][name])
        self.trainer.optimizer.load(state["optimizer"])
        self.progress = Progress(**state["progress"])

    def save(self) -> None:
        """The state, then the checkpoint; neither is ever half there under its name."""
        params = {n: p.detach() for n, p in self.trainer.params.items()}
        state = {"params": params, "optimizer": self.trainer.optimizer.state(), "progress": asdict(self.progress)}  # fmt: skip
        fresh = self.state_file.with_suffix(".new")
        torch.save(state, fresh)
        fresh.replace(self.state_file)
        new, now = self.a.out / "checkpoint.new", self.a.out / "checkpoint"
        shutil.rmtree(new, ignore_errors=True)
        save(new, self.trainer.s, self.trainer.params)
        shutil.rmtree(now, ignore_errors=True)
        new.rename(now)
        print(f"saved at step {self.progress.step}", flush=True)

    def rate(self) -> float:
        """Learning rate of the next step: up, level, then down to 0."""
        a, done = self.a, min(1.0, self.progress.spent / (self.a.minutes * 60))
        up = min(1.0, (self.progress.step + 1) / a.warmup)
        return float(a.lr * up * min(1.0, (1 - done) / a.decay))

    def train(self) -> None:
        """Until the training's time is spent or this call's is up."""
        a, now = self.a, self.progress
        first, saved = now.step, time.time()
        last = time.time()
        if now.spent >= a.minutes * 60:
            return
        for batch in self._batches():
            rate = self.rate()
            self.trainer.load(batch, rate, now.step)
            self.trainer.step()
            now.step, now.tokens = now.step + 1, now.tokens + a.rows * ROW
            if now.step == first + 1:  # compiling is not training
                torch.cuda.synchronize() if self.device == "cuda" else None
                last = saved = time.time()
                print(f"first step after {last - START:.0f} s", flush=True)
            now.spent, last = now.spent + time.time() - last, time.time()
            if now.step % a.report == 0:
                self._report(rate)
            if now.spent >= a.minutes * 60 or last - START > a.stop_after * 60:
                return
            if last - saved > a.save_every:
                self.save()
                last = saved = time.time()

    def _batches(self) -> Iterator[Rows]:
        rows = self.a.rows
        for piece in feed(self.a.workers, self.progress.piece, PIECE * rows):
            self.progress.piece += 1
            for i in range(0, PIECE * rows, rows):
                yield Rows(*(x[i : i + rows] for x in (piece.ids, piece.weight, piece.position)))

    def _report(self, rate: float) -> None:
        names = ("loss", "spoken", "balance", "floor", "locality", "least", "most")
        said = [f"{k} {x.item():.4f}" for k, x in zip(names, self.trainer.figures, strict=True)]
        n = self.progress
        speed = n.tokens / max(1e-9, n.spent) / 1e3
        print(f"step {n.step} tokens {n.tokens / 1e6:.0f}M {' '.join(said)} lr {rate:.2e} {n.spent:.0f} s {speed:.0f}k tok/s", flush=True)  # fmt: skip

    def finish(self, docs: list[Document]) -> None:
        """Judge and write OUT/run.json."""
        n, a = self.progress, self.a
        card: dict[str, Any] = asdict(n) | {"tokens_per_s": round(n.tokens / max(1e-9, n.spent))}
        card |= {k: getattr(a, k) for k in ("rows", "lr", "decay", "balance", "floor", "locality")}
        card["judged"] = judge(self.trainer, docs)
        (a.out / "run.json").write_text(json.dumps(card))
        print(show(card["judged"]))
        print(json.dumps(card), flush=True)


def arguments() -> argparse.Namespace:
    ap = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ap.add_argument("out", type=Path)
    ap.add_argument("--minutes", type=float, default=8, help="of training, over all calls")
    ap.add_argument(
        "--stop-after", type=float, default=1e9, help="minutes after which this call ends training"
    )
    # Over a whole training even 0.0004 evens routing out; the floor alone keeps experts alive.
    ap.add_argument("--balance", type=float, default=0.0, help="weight of even use of experts")
    ap.add_argument("--floor", type=float, default=0.02, help="weight of a least use of each")
    ap.add_argument(
        "--locality", type=float, default=0.0, help="weight of experts in common of adjacent tokens"
    )
    ap.add_argument("--lr", type=float, default=4e-3)
    ap.add_argument(
        "--decay", type=float, default=0.75, help="share of training in which the rate falls to 0"
    )
    ap.add_argument("--warmup", type=int, default=200, help="steps")
    ap.add_argument("--rows", type=int, default=64, help="rows of 1024 tokens in a step")
    ap.add_argument("--layers", type=int, default=8)
    ap.add_argument("--workers", type=int, default=13)
    ap.add_argument("--weights", type=Path, help="checkpoint to start from")
    ap.add_argument("--save-every", type=float, default=120, help="seconds")
    ap.add_argument("--report", type=int, default=100, help="steps")
    ap.add_argument("--judged", type=int, help="transcripts of each kind to judge by at the end")
    ap.add_argument("--no-graph", action="store_true")
    ap.add_argument("--profile", type=Path, help="write a table of kernels here and stop")
    return ap.parse_args()


def main() -> None:
    a = arguments()
    a.out.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch._dynamo.config.specialize_float = True
    run = Run(a)
    if a.profile:
        run.trainer.load(next(run._batches()))
        return profile(run.trainer, a.profile)
    run.train()
    run.save()
    run.finish(documents(run.tok, a.judged))
    return None


def profile(trainer: Trainer, out: Path) -> None:
    """Where a step's time goes."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    trainer.step()  # compiles
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
    main()
    sys.stdout.flush()
    os._exit(0)  # the workers have nothing to finish
