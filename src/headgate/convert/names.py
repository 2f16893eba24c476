"""Which tensor of a checkpoint is which: prefixes, expert layouts, what is skipped.

Names without a prefix are those of :meth:`ModelConfig.dense_tensors`. Experts come in
three layouts, gate being rows [0, I) and up rows [I, 2I) of the fused one:

========  =======================================================  ===================
separate  ``layers.N.mlp.experts.E.{gate,up,down}_proj.weight``    [I, H], [H, I]
fused     ``layers.N.mlp.experts.{gate_up,down}_proj``             [E, 2I, H], [E, H, I]
stacked   ``layers.N.mlp.switch_mlp.{gate,up,down}_proj.weight``   [E, I, H], [E, H, I]
========  =======================================================  ===================

The first two are Hugging Face's, the last one is MLX's. MLX also stores norms as
1 + w and convolutions as [C, K, 1] instead of w and [C, 1, K].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from headgate.errors import CheckpointError
from headgate.models import ModelConfig, TensorSpec
from headgate.store.layout import MATRICES
from headgate.store.safetensors import TensorInfo

ExpertLayout = Literal["separate", "fused", "stacked"]
Shape = tuple[int, ...]

#: prefix in the checkpoint -> prefix here; the first that fits
_PREFIXES = {
    "model.language_model.": "",
    "language_model.model.": "",
    "language_model.lm_head.": "lm_head.",
    "lm_head.": "lm_head.",
    "model.": "",
}
_SKIPPED = {
    "model.visual.": "vision",
    "visual.": "vision",
    "vision_tower.": "vision",
    "mtp.": "MTP",
    "language_model.mtp.": "MTP",
}
_LISTED = 3


@dataclass
class Skipped:
    """Tensors that the store does not hold."""

    tensors: int = 0
    nbytes: int = 0


@dataclass
class Names:
    """Names here of a checkpoint's tensors.

    Attributes:
        actual: name here -> name in the checkpoint.
        skipped: kind -> how much was left out.
    """

    actual: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, Skipped] = field(default_factory=dict)

    @property
    def layout(self) -> ExpertLayout:
        """The layout of the experts.

        Raises:
            CheckpointError: there are no experts.
        """
        for name in self.actual:
            if ".mlp.switch_mlp." in name:
                return "stacked"
            if ".mlp.experts." in name:
                return "fused" if name.endswith("_proj") else "separate"
        raise CheckpointError("the checkpoint has no expert tensors (layers.N.mlp.experts...)")


def resolve(tensors: Mapping[str, tuple[str, TensorInfo]], tied: bool = False) -> Names:
    """Strip prefixes and set aside what is not converted.

    Args:
        tensors: as :attr:`Checkpoint.tensors`.
        tied: the output head is the embedding; a copy of it is skipped.

    Raises:
        CheckpointError: two tensors have the same name without their prefixes.
    """
    names = Names()
    for actual, (_, info) in tensors.items():
        kind = next((k for p, k in _SKIPPED.items() if actual.startswith(p)), None)
        name = _strip(actual)
        if tied and name.startswith("lm_head."):
            kind = "tied head"
        if kind is not None:
            skipped = names.skipped.setdefault(kind, Skipped())
            skipped.tensors += 1
            skipped.nbytes += info.nbytes
        elif name in names.actual:
            raise CheckpointError(f"{names.actual[name]} and {actual} are the same tensor twice")
        else:
            names.actual[name] = actual
    return names


def _strip(actual: str) -> str:
    for prefix, here in _PREFIXES.items():
        if actual.startswith(prefix):
            return here + actual[len(prefix) :]
    return actual


def expert_shapes(names: Names, config: ModelConfig) -> dict[str, Shape]:
    """Name here -> shape of every expert tensor that the checkpoint should have.

    Raises:
        CheckpointError: the configuration has more experts than there are tensors.
    """
    layout = names.layout
    one_each = len(MATRICES) * config.num_experts if layout == "separate" else 1
    if one_each * len(config.moe_layers) > len(names.actual):  # before a list of them is made
        raise CheckpointError(
            f"config.json says {config.num_experts} experts in each of "
            f"{len(config.moe_layers)} layers, the checkpoint has {len(names.actual)} tensors"
        )
    count, hidden, inter = config.num_experts, config.hidden_size, config.moe_intermediate_size
    shapes: dict[str, Shape] = {}
    one = {"gate": (inter, hidden), "up": (inter, hidden), "down": (hidden, inter)}
    for layer in config.moe_layers:
        block = f"layers.{layer}.mlp"
        if layout == "fused":
            shapes[f"{block}.experts.gate_up_proj"] = (count, 2 * inter, hidden)
            shapes[f"{block}.experts.down_proj"] = (count, hidden, inter)
        elif layout == "stacked":
            for m in MATRICES:
                shapes[f"{block}.switch_mlp.{m}_proj.weight"] = (count, *one[m])
        else:
            for expert in range(count):
                for m in MATRICES:
                    shapes[f"{block}.experts.{expert}.{m}_proj.weight"] = one[m]
    return shapes


def dense_shape(spec: TensorSpec, layout: ExpertLayout) -> Shape:
    """The shape that a dense tensor has in a checkpoint with this expert layout."""
    if spec.role == "vector" and len(spec.shape) == 2:  # a depthwise convolution
        channels, width = spec.shape
        return (channels, width, 1) if layout == "stacked" else (channels, 1, width)
    return spec.shape


def check_shapes(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """Compare names and shapes of a checkpoint with those that the model has.

    Raises:
        CheckpointError: names the first few tensors that are missing or unknown, or
            the first one that has another shape.
    """
    if missing := [name for name in expected if name not in found]:
        raise CheckpointError(f"the checkpoint lacks {_listed(missing)}")
    if unknown := [name for name in found if name not in expected]:
        raise CheckpointError(
            f"the checkpoint has {_listed(unknown)}, which a model of this configuration lacks"
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointError(
                f"tensor {name} has shape {list(found[name])}, expected {list(shape)}"
            )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    noun = "tensor" if len(names) == 1 else "tensors"
    return f"{noun} {', '.join(names[:_LISTED])}{more}"
