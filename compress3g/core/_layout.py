"""Where each kind of module keeps the rows and columns that a Cut names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..errors import CutError
from .units import Axis, Cut, Units

Tensors: TypeAlias = Mapping[Axis, tuple[tuple[str, int], ...]]
Sizes: TypeAlias = Mapping[Axis, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Layout:
    """Tensors of `owner` that run along each axis, as (name, dimension), and the sizes it keeps."""

    owner: nn.Module
    tensors: Tensors
    sizes: Sizes

    def size(self, axis: Axis) -> int:
        """Slots along an axis; 0 when the module has no such axis."""
        for name, dim in self.tensors.get(axis, ()):
            tensor = getattr(self.owner, name)
            if tensor is not None:
                return int(tensor.shape[dim])
        return 0


_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED_CONV = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (*_CONV, *_TRANSPOSED_CONV)
_ROWS = (("weight", 0), ("bias", 0))
_STATISTICS = (*_ROWS, ("running_mean", 0), ("running_var", 0))
_WEIGHT: Tensors = {"out": _ROWS, "in": (("weight", 1),)}
_TRANSPOSED: Tensors = {"out": (("weight", 1), ("bias", 0)), "in": (("weight", 0),)}
_CHANNELS: Sizes = {"out": ("out_channels",), "in": ("in_channels",)}
_KINDS: tuple[tuple[Any, Tensors, Sizes], ...] = (
    (nn.Linear, _WEIGHT, {"out": ("out_features",), "in": ("in_features",)}),
    (_CONV, _WEIGHT, _CHANNELS),
    (_TRANSPOSED_CONV, _TRANSPOSED, _CHANNELS),
    (nn.Embedding, {"out": (("weight", 1),)}, {"out": ("embedding_dim",)}),
    (nn.GroupNorm, {"out": _ROWS}, {"out": ("num_channels",)}),
    (nn.modules.batchnorm._BatchNorm, {"out": _STATISTICS}, {"out": ("num_features",)}),
)
_DEPTHWISE: Sizes = {"out": ("out_channels", "in_channels", "groups")}
_GPT2: Sizes = {"out": ("nf",), "in": ("nx",)}  # its Conv1D is a linear layer, weight [in, out]


def layout_of(model: nn.Module, name: str) -> Layout:
    """The layout of the module or bare parameter called `name`.

    Raises CutError when it does not exist, or when no exact cut of its kind is known.
    """
    parent, _, leaf = name.rpartition(".")
    try:
        owner = model.get_submodule(parent)
        found = getattr(owner, leaf)
    except AttributeError:
        raise CutError(f"{name}: {type(model).__name__} has no such module or parameter") from None
    if isinstance(found, Tensor):
        axes: tuple[Axis, ...] = ("out", "in")
        return Layout(owner, {a: ((leaf, d),) for d, a in enumerate(axes[: found.dim()])}, {})
    return _layout(name, found)


def _layout(name: str, module: nn.Module) -> Layout:
    kind = type(module).__name__
    if isinstance(module, _CONV) and 1 < module.groups == module.in_channels == module.out_channels:
        return Layout(module, {"out": _ROWS}, _DEPTHWISE)
    if kind == "Conv1D":
        return Layout(module, _TRANSPOSED, _GPT2)
    for kinds, tensors, sizes in _KINDS:
        if isinstance(module, kinds) and getattr(module, "groups", 1) == 1:
            return Layout(module, tensors, sizes)
    if "norm" in kind.lower():
        raise CutError(
            f"{name}: a {kind} mixes the units it normalises over, so cutting it is not exact; "
            "choose units that end before it"
        )
    raise CutError(f"{name}: no exact cut of a {kind} is known")


def check_cuts(model: nn.Module, units: Sequence[Units]) -> None:
    """Raises CutError for cuts beyond the end, two cuts of one row, split groups of a GroupNorm."""
    owners: dict[tuple[str, Axis], Tensor] = {}
    for position, u in enumerate(units):
        for cut in (*u.writes, *u.reads):
            layout = layout_of(model, cut.module)
            _check_fits(layout, u, cut)
            taken = owners.setdefault(
                (cut.module, cut.axis), torch.full((layout.size(cut.axis),), -1)
            )
            slots = cut.slots(torch.arange(u.size))
            before = taken[slots]
            if bool((before >= 0).any()):
                slot = int(slots[before >= 0][0])
                raise CutError(
                    f"{cut.module}: units {units[int(taken[slot])].name!r} and {u.name!r} both cut "
                    f"row {slot} of axis {cut.axis!r}"
                )
            taken[slots] = position


def _check_fits(layout: Layout, u: Units, cut: Cut) -> None:
    size, end = layout.size(cut.axis), cut.offset + u.size * cut.chunk
    if end > size:
        raise CutError(
            f"{cut.module}: units {u.name!r} cut rows {cut.offset} to {end - 1} of axis "
            f"{cut.axis!r}, which has {size}"
        )
    owner = layout.owner
    if isinstance(owner, nn.GroupNorm):
        width = owner.num_channels // owner.num_groups
        if cut.chunk % width or cut.offset % width:
            raise CutError(
                f"{cut.module}: units {u.name!r} of {cut.chunk} channels split groups of {width}; "
                "only whole groups can go"
            )
