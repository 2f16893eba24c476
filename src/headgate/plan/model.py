"""What is to be planned: a model's sizes, exact where the engine knows its tensors.

Sizes of a supported model follow from the same tensors, formats and layouts that a
conversion uses. Of others, published counts give the experts exactly and the rest
approximately.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from headgate.convert.source import CodedTensor, PlainTensor
from headgate.errors import UsageError
from headgate.models import ModelConfig
from headgate.store import ExpertFormat, RecordLayout, Store, safetensors
from headgate.store.layout import ALIGNMENT, align
from headgate.store.manifest import DenseMatrix

#: store: as it is on disk. checkpoint: as its files will be converted. config: as a
#: bf16 checkpoint of it would be. estimate: from published counts.
Origin = Literal["store", "checkpoint", "config", "estimate"]

#: Bits per weight of 8-bit codes in groups of 64 with their scales and biases.
EIGHT_BITS = 8.5
GROUP_SIZE = 64
DEFAULT_BITS, DENSE_BITS = 4, 8


@dataclass(frozen=True)
class Dense:
    """Weights that every token needs.

    Attributes:
        nbytes: of memory, all of them; exact unless the model is an estimate.
        coded, plain: weights multiplied for each token, as 8-bit codes and as floats.
        shared: of the coded ones, those of the shared experts.
        head: of those multiplied, the output head's.
        token_bytes: read for each token.
    """

    nbytes: int
    coded: float
    plain: float
    shared: float
    head: float
    token_bytes: float


@dataclass(frozen=True)
class Model:
    """A model to plan for.

    Attributes:
        runs: the engine has this architecture.
        bits: of the store, or None where it is still to be chosen.
        full_layers: layers with attention over the context.
        state_fixed, state_per_token: bytes of one sequence's state.
        kept: dense tensor -> how the store keeps it, where that is known.
        estimated: the dense weights of a model that the engine does not know.
        uniform: random weights, which route uniformly.
    """

    name: str
    model_type: str
    origin: Origin
    evidence: str
    layers: int
    moe_layers: int
    experts: int
    experts_per_token: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    max_context: int
    full_layers: int
    state_fixed: int
    state_per_token: int
    kept: Mapping[str, PlainTensor | CodedTensor] = field(default_factory=dict)
    group_size: int = GROUP_SIZE
    bits: int | None = None
    config: ModelConfig | None = None
    store: Store | None = None
    estimated: Dense | None = None
    uniform: bool = False
    notes: tuple[str, ...] = ()

    @property
    def runs(self) -> bool:
        return self.config is not None

    @cached_property
    def dense(self) -> Dense:
        """What every token needs."""
        if self.estimated is not None:
            return self.estimated
        return _dense(self)

    def stored_bits(self, bits: int) -> int:
        """The precision of the store from which experts are read at ``bits``: one made for
        them, where it is still to be made."""
        return self.bits or bits

    def layout(self, bits: int) -> RecordLayout:
        """Records of a store from which experts can be read at ``bits``.

        Raises:
            StoreError: the store cannot be read at so many.
        """
        stored = self.stored_bits(bits)
        group = 0 if stored == 16 else self.group_size
        layout = RecordLayout(ExpertFormat(self.hidden_size, self.intermediate_size, stored, group))
        layout.prefix(bits)
        return layout

    @property
    def readable_bits(self) -> tuple[int, ...]:
        """Precisions to plan for."""
        if self.bits is None:
            return (2, 3, 4, 8)
        return self.layout(self.bits).format.readable_bits

    def state_bytes(self, tokens: int) -> int:
        """Of one sequence of ``tokens`` tokens."""
        return self.state_fixed + tokens * self.state_per_token

    def disk_bytes(self, bits: int) -> int:
        """Experts, dense tensors and checksums of the store; the manifest and the
        tokenizer come on top."""
        layout = self.layout(bits)
        records = self.moe_layers * self.experts
        sums = 4 * len(layout.segments) * records
        return records * layout.stride + self._dense_file_bytes + sums

    @cached_property
    def _dense_file_bytes(self) -> int:
        return _file_bytes(self.kept) if self.kept else self.dense.nbytes


def from_config(
    name: str,
    config: ModelConfig,
    model_type: str,
    origin: Origin,
    evidence: str,
    kept: Mapping[str, PlainTensor | CodedTensor],
    **more: object,
) -> Model:
    """A model that the engine knows."""
    fixed = config.state_bytes(0)
    per_token = config.state_bytes(1) - fixed
    fields = {
        "layers": config.num_hidden_layers,
        "moe_layers": len(config.moe_layers),
        "experts": config.num_experts,
        "experts_per_token": config.num_experts_per_tok,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.moe_intermediate_size,
        "vocab_size": config.vocab_size,
        "max_context": config.max_position_embeddings,
        "full_layers": getattr(config, "layer_types", ()).count("full_attention"),
        "state_fixed": fixed,
        "state_per_token": per_token,
        "kept": kept,
        "config": config,
        **more,
    }
    return Model(name, model_type, origin, evidence, **fields)  # type: ignore[arg-type]


def kept_tensors(
    config: ModelConfig, dense_bits: int = DENSE_BITS, dtype: str = "BF16"
) -> dict[str, PlainTensor | CodedTensor]:
    """How a checkpoint of plain ``dtype`` floats would be kept."""
    kept: dict[str, PlainTensor | CodedTensor] = {}
    for name, spec in config.dense_tensors().items():
        if spec.role == "projection" and dense_bits == 8:
            rows, columns = spec.shape
            kept[name] = CodedTensor(DenseMatrix((rows, columns), 8, GROUP_SIZE, "bf16"))
        else:
            small = spec.role in ("norm", "vector")
            kept[name] = PlainTensor("F32" if small else dtype, spec.shape)
    return kept


def stored_tensors(store: Store) -> dict[str, PlainTensor | CodedTensor]:
    """How a store keeps its dense tensors."""
    matrices = store.manifest.dense_matrices
    kept: dict[str, PlainTensor | CodedTensor] = {
        name: CodedTensor(entry) for name, entry in matrices.items()
    }
    pieces = {part for name, coded in kept.items() for part in coded.parts(name)}
    for name, info in store.dense_header().tensors.items():
        if name not in pieces:
            kept[name] = PlainTensor(info.dtype, info.shape)
    return kept


def _file_bytes(kept: Mapping[str, PlainTensor | CodedTensor]) -> int:
    parts = [(n, *p) for t, tensor in kept.items() for n, p in tensor.parts(t).items()]
    head, header = safetensors.build_header(safetensors.file_order(parts))
    return len(head) + sum(info.nbytes for info in header.tensors.values())


def _dense(model: Model) -> Dense:
    tied = "lm_head.weight" not in model.kept
    coded = plain = shared = head = 0.0
    skipped = 0.0  # bytes of the embedding table, but for one row
    for name, tensor in model.kept.items():
        weights = math.prod(tensor.shape)
        if name.startswith("embed_tokens"):
            nbytes = sum(
                math.prod(shape) * safetensors.ITEM_BYTES[dtype]
                for dtype, shape in tensor.parts(name).values()
            )
            skipped = 0.0 if tied else nbytes * (1 - 1 / tensor.shape[0])
            if not tied:
                continue
            head = weights
        if name.startswith("lm_head"):
            head = weights
        if len(tensor.shape) < 2:
            continue
        if isinstance(tensor, CodedTensor):
            coded += weights
            shared += weights if ".shared_expert." in name else 0
        else:
            plain += weights
    nbytes = _file_bytes(model.kept)
    return Dense(align(nbytes, ALIGNMENT), coded, plain, shared, head, nbytes - skipped)


def estimated_dense(
    parameters: float, hidden: int, vocab: int, routers: float, shared: float
) -> Dense:
    """Dense weights of which only the number is known: embeddings and routers in bf16, the
    rest at 8 bits.

    Args:
        parameters: all but the routed experts.
        routers, shared: of these.

    Raises:
        UsageError: the numbers contradict each other.
    """
    embedding = float(vocab * hidden)
    coded = parameters - embedding - routers
    if coded <= 0:
        raise UsageError("the sizes given contradict each other: nothing is left for attention")
    nbytes = 2 * (embedding + routers) + coded * EIGHT_BITS / 8
    whole = align(int(nbytes), ALIGNMENT)
    return Dense(whole, coded, routers, shared, embedding, nbytes - 2 * embedding)
