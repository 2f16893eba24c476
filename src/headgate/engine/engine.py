"""Loaded weights, ready for sessions."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headgate.chat.tokenizer import Tokenizer
from headgate.engine.budget import Budget, plan_budget
from headgate.engine.chunks import Cuts, grid_of
from headgate.engine.mixed import plan_mixed
from headgate.engine.session import Session
from headgate.engine.states import StatePool
from headgate.engine.turn import Turn, TurnOptions
from headgate.errors import PromptTooLong, StoreError, UsageError
from headgate.models import load_model, parse_config
from headgate.ops import Ops, Weight, load_ops
from headgate.ops.weights import plain_weight, quant_weight
from headgate.paths import probe_file
from headgate.store import Store
from headgate.stream import CostModel, ExpertStream, StreamOptions, tuned
from headgate.stream.recorder import Recorder

DEFAULT_CONTEXT = 8192
MOST_SEQUENCES = 256


class Engine:
    """A store's dense weights in memory and its experts within reach.

    Attributes:
        store, config, ops, model, experts: the parts.
        budget: how memory is divided.
        context: the largest number of tokens of a sequence.
        sequences: how many may be decoded together within the budget.
        states: memory of sequences that nobody uses.
        knobs: what the bits of a result depend on, beside the store.
        lossy: the knobs in force that change what the model computes.
        depends_on_cache: whether a lossy knob makes a prompt's state depend on what was in
            memory, so that it must not be kept for others.
    """

    def __init__(
        self,
        store: Store,
        *,
        memory: int | None = None,
        experts_per_token: int | None = None,
        expert_bits: int | str | None = None,
        top_share: float | None = None,
        refine: bool = False,
        router_mass: float | None = None,
        router_floor: int | None = None,
        prefer_cached: float | None = None,
        threads: int | None = None,
        context: int | None = None,
        sequences: int = 1,
        prefix_bytes: int = 0,
        prompt_chunk: int | None = None,
        stream: StreamOptions | None = None,
        backend: str = "cpu",
        exact_activations: bool = False,
        instrument: Callable[[Ops], Ops] | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.store = store
        self.config = parse_config(
            {**store.manifest.config, "model_type": store.manifest.model_type}
        )
        self._check_store()
        k = self._experts_per_token(experts_per_token)
        mixed = plan_mixed(
            store.layout,
            store.manifest.layers,
            k,
            expert_bits=expert_bits,
            top_share=top_share,
            refine=refine,
            router_mass=router_mass,
            router_floor=router_floor,
            prefer_cached=prefer_cached,
        )
        bits, self.depends_on_cache = mixed.precision.high, mixed.depends_on_cache
        if (mixed.knobs or mixed.precision.mixed) and recorder is not None:
            why = ", ".join(mixed.lossy) or f"expert-bits {mixed.bits}"
            raise UsageError(
                f"a route trace cannot be recorded with {why}: it holds "
                "neither the bits of each expert nor why it was chosen"
            )
        self.context = self._context(context)
        if not 1 <= sequences <= MOST_SEQUENCES:
            raise UsageError(f"sequences is {sequences}, expected 1..{MOST_SEQUENCES}")
        self.sequences = sequences
        self.lossy = self._lossy(k, mixed.bits) + mixed.lossy
        # Parsed first so that the budget sees what it takes.
        self.stop_ids, self.allowed_tokens = self._stop_ids(), self._allowed_tokens()
        self.budget: Budget = plan_budget(
            store,
            self.config,
            memory,
            self.context,
            k,
            bits,
            prompt_chunk,
            sequences=sequences,
            prefix_bytes=prefix_bytes,
        )
        ops = load_ops(backend, _threads(threads), exact_activations)
        self.knobs = {
            "experts_per_token": k,
            "expert_bits": mixed.bits,
            "backend": f"{ops.name} {getattr(ops, 'isa', '')}".strip(),
            "exact_activations": exact_activations,
            **mixed.knobs,
        }
        self.ops = ops if instrument is None else instrument(ops)
        self.model = load_model(
            self.config, self._dense_weights(), self.ops, k, mixed.routing, self.stop_ids
        )
        self.cuts = Cuts(grid_of(self.budget.prompt_chunk), self.stop_ids)
        self.states = StatePool(lambda: self.model.new_state(self.context), sequences)
        options = tuned(
            stream or StreamOptions(),
            CostModel.load(probe_file(store.path)),
            store.layout.prefix_bytes(bits),
            k,
        )
        self.experts = ExpertStream(
            store, self.ops, self.budget.slots, mixed.precision, options, recorder
        )

    @classmethod
    def load(cls, store: Path | str, **options: Any) -> Engine:
        """Open a store and load it.

        Args:
            store: path of the store.
            memory: bytes that the whole process may take; a share of the machine's
                free memory unless given.
            experts_per_token: fewer than the trained number is lossy.
            expert_bits: fewer than the store's is lossy; so are ``"2:4"``, which reads a
                token's heaviest experts at 4 bits and the others at 2, and ``"2:4@0+7"``
                or ``"2:4@-1"``, which read those of some layers at 4 bits.
            top_share: which those are: experts that have at least this share of the
                token's router weight; the mean, one over experts per token, unless given.
            refine: lossy: what is missing is read at the fewest bits, and what is used
                again is completed while the drive is idle.
            router_mass: lossy: of the experts per token only as many as it takes for
                their weights to reach this share of their sum.
            router_floor: but at least this many; 1 unless given.
            prefer_cached: lossy: in answers, not in prompts, experts that are not in
                memory may give way to others that are, for at most this share of the
                router weight.
            threads: to multiply on; one per core unless given.
            context: tokens of a sequence.
            sequences: how many the budget has room for at a time.
            prefix_bytes: of the budget, for states of prompts that are kept in memory
                (:class:`headgate.engine.PrefixCache`).
            prompt_chunk: tokens of a prompt that are processed together; chosen by the
                budget unless given.
            stream: how experts are read and kept.
            backend: ``cpu`` or ``reference``.
            exact_activations: float32 instead of int8 activations against quantised
                weights.
            instrument: wraps the operations, to time them.
            recorder: told of every request for experts, to trace them.

        Raises:
            StoreError: the store is missing, incomplete, damaged or malformed.
            BudgetTooSmall: ``memory`` cannot work.
            UsageError: an option is out of range.
        """
        return cls(Store.open(store), **options)

    def new_session(self) -> Session:
        """An empty sequence."""
        return Session(self)

    def new_turn(
        self, prompt: Sequence[int], options: TurnOptions, before: Sequence[int] = ()
    ) -> Turn:
        """An answer to ``prompt`` in a sequence that holds the tokens ``before`` already.

        Raises:
            PromptTooLong, UsageError: as :meth:`check_tokens`.
        """
        self.check_tokens(prompt, len(before))
        return Turn(
            prompt,
            options,
            stop_ids=self.stop_ids,
            allowed=self.allowed_tokens,
            context=self.context,
            before=before,
        )

    def check_tokens(self, ids: Sequence[int], before: int = 0) -> None:
        """Refuse tokens that cannot follow ``before`` others.

        Raises:
            PromptTooLong: they do not fit the context.
            UsageError: there are none, or an id is outside the vocabulary.
        """
        if not ids:
            raise UsageError("the prompt is empty")
        vocab = self.config.vocab_size
        if min(ids) < 0 or max(ids) >= vocab:
            raise UsageError(f"a token id is outside the vocabulary of {vocab}")
        if before + len(ids) > self.context:
            raise PromptTooLong(
                f"the prompt makes {before + len(ids)} tokens, the context holds "
                f"{self.context}: shorten it or raise --context (the model allows "
                f"{self.config.max_position_embeddings})"
            )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The store's tokenizer.

        Raises:
            UsageError: the store has none.
        """
        if "tokenizer.json" not in self.store.manifest.files:
            raise UsageError(
                "the store has no tokenizer.json: put one into the checkpoint and convert again"
            )
        return Tokenizer.from_bytes(self.store.read_file("tokenizer.json"))

    def _check_store(self) -> None:
        manifest, c = self.store.manifest, self.config
        fmt = manifest.experts
        found = (manifest.layers, manifest.num_experts, fmt.hidden_size, fmt.intermediate_size)
        wanted = (c.moe_layers, c.num_experts, c.hidden_size, c.moe_intermediate_size)
        if found != wanted:
            raise StoreError("the experts of the store do not fit its model configuration")

    def _experts_per_token(self, asked: int | None) -> int:
        trained = self.config.num_experts_per_tok
        if asked is None:
            return trained
        if not 1 <= asked <= self.config.num_experts:
            raise UsageError(
                f"experts per token is {asked}; the model has {self.config.num_experts} experts "
                f"and was trained with {trained} per token"
            )
        return asked

    def _context(self, asked: int | None) -> int:
        limit = self.config.max_position_embeddings
        if asked is None:
            return min(DEFAULT_CONTEXT, limit)
        if not 1 <= asked <= limit:
            raise UsageError(f"context is {asked}; the model allows 1..{limit}")
        return asked

    def _lossy(self, k: int, bits: int | str) -> list[str]:
        lossy = []
        if k != self.config.num_experts_per_tok:
            lossy.append(f"experts-per-token {k} (trained {self.config.num_experts_per_tok})")
        if bits != self.store.manifest.experts.bits:
            lossy.append(f"expert-bits {bits} (stored {self.store.manifest.experts.bits})")
        return lossy

    def _stop_ids(self) -> frozenset[int]:
        # The text config's eos is another token than the one that ends a turn.
        source = self.store.manifest.config
        if "generation_config.json" in self.store.manifest.files:
            source = {**source, **self.store.read_json("generation_config.json")}
        eos = source.get("eos_token_id")
        ids = eos if isinstance(eos, list) else [eos]
        return frozenset(i for i in ids if type(i) is int)

    def _allowed_tokens(self) -> npt.NDArray[np.bool_]:
        allowed = np.ones(self.config.vocab_size, np.bool_)
        if "tokenizer.json" in self.store.manifest.files:
            allowed[:] = False
            ids = self.tokenizer.ids()
            allowed[ids[ids < self.config.vocab_size]] = True
        return allowed

    def _dense_weights(self) -> dict[str, Weight]:
        manifest = self.store.manifest
        header = self.store.dense_header()
        tensors = self.store.load_dense()
        weights: dict[str, Weight] = {}
        for name, spec in self.config.dense_tensors().items():
            try:
                if name in manifest.dense_matrices:
                    shape: tuple[int, ...] = manifest.dense_matrices[name].shape
                    weights[name] = quant_weight(name, manifest.dense_matrices[name], tensors)
                else:
                    shape = header.tensors[name].shape
                    weights[name] = plain_weight(tensors[name], header.tensors[name].dtype)
            except KeyError as error:
                raise StoreError(f"the store lacks dense tensor {error}") from None
            if shape != spec.shape:
                raise StoreError(f"dense tensor {name} has shape {shape}, expected {spec.shape}")
        return weights


def _threads(asked: int | None) -> int:
    if asked is None:
        return (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
    if not 1 <= asked <= 1024:
        raise UsageError(f"threads is {asked}, expected 1..1024")
    return asked
