"""Removes units for good: smaller weights, the same outputs as with the gates on."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.checkpoint import load_tensors, save_tensors
from ..engine.weights import distinct_tensors, fill
from ..errors import BudgetError, CutError, FormatError, SiteError
from ._layout import Layout, check_cuts, layout_of
from .apply import skipped
from .budget import Keep
from .masks import Gates
from .units import Axis, Cut, Units

_FORMAT = 1


class Skip(nn.Module):
    """What stands where a bypassed module was: returns what its Units say."""

    def __init__(self, units: Units, gone: nn.Module) -> None:
        super().__init__()
        self.units = units
        # Loops over blocks read plain attributes of them ("attention_type").
        for name, value in vars(gone).items():
            if not name.startswith("_") and name != "training":
                setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module would have added nothing to."""
        return skipped(self.units, args, kwargs)


def _gone(u: Units, keep: Keep) -> Tensor:
    return torch.ones(u.size).index_fill(0, keep[u.name].cpu(), 0).nonzero()[:, 0]


def slices(
    model: nn.Module, units: Sequence[Units], keep: Keep
) -> Iterator[tuple[str, Axis, Layout, Tensor]]:
    """Every axis that gets shorter, once: module, axis, layout, and the slots that stay."""
    stays: dict[tuple[str, Axis], Tensor] = {}
    for u in units:
        for cut in (*u.writes, *u.reads):
            size = layout_of(model, cut.module).size(cut.axis)
            stay = stays.setdefault((cut.module, cut.axis), torch.ones(size, dtype=torch.bool))
            stay[cut.slots(_gone(u, keep))] = False
    for (name, axis), stay in stays.items():
        if not bool(stay.all()):
            yield name, axis, layout_of(model, name), stay.nonzero()[:, 0]


@torch.no_grad()
def materialize(
    model: nn.Module,
    units: Sequence[Units],
    keep: Keep,
    *,
    gates: Gates | None = None,
    means: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """The model, in place, without the units that `keep` leaves out.

    gates: surviving soft multipliers, folded into the readers' columns; those of bypasses must be 0
    or 1. means: E[x] by reader, as `criteria.observe` sees it: each reader's bias takes over what
    it loses on average (FLAP 2312.11983), b += sum_j W_j E[x_j] over removed j, made where there is
    none (exact for inputs that are constant, and for linear layers).
    Sizes (in_features, num_groups, ...) and `Units.attrs` follow. Works on meta-device models.
    Raises CutError for inexact or overlapping cuts and for weights tied to a module that stays
    whole, BudgetError for a group without units left, SiteError for soft gates on a bypass.
    """
    check_cuts(model, units)
    closed = _check_keep(units, keep)
    live = [u for u in units if u.inside not in closed]
    todo = list(slices(model, live, keep))
    _check_ties(model, todo)
    if means is not None:
        _compensate(model, live, keep, means)
    if gates is not None:
        _fold(model, live, keep, gates)
    for _, axis, layout, kept in todo:
        _cut(layout, axis, kept)
    for u in live:
        if u.name in closed and u.bypass is not None:
            model.set_submodule(u.bypass, Skip(u, model.get_submodule(u.bypass)))
        for path, per_unit in u.attrs:
            owner, _, name = path.rpartition(".")
            holder = attrgetter(owner)(model) if owner else model
            setattr(holder, name, per_unit * len(keep[u.name]))
    return model


def _check_keep(units: Sequence[Units], keep: Keep) -> set[str]:
    """Names of the bypasses that close, with those inside them."""
    closed: set[str] = set()
    for u in units:
        if u.name not in keep:
            raise BudgetError(f"nothing says which units of {u.name!r} to keep")
        index = keep[u.name].tolist()
        if index != sorted({i for i in index if 0 <= i < u.size}):
            raise BudgetError(f"kept units of {u.name!r} must ascend within 0 .. {u.size - 1}")
        if u.bypass is not None and not index:
            closed.add(u.name)
    while inner := {u.name for u in units if u.inside in closed} - closed:
        closed |= inner
    for u in units:
        if (u.writes or u.reads) and u.name not in closed and not len(keep[u.name]):
            raise BudgetError(f"no unit of {u.name!r} is left: keep at least one (Budget.floor)")
    return closed


def _check_ties(model: nn.Module, todo: Sequence[tuple[str, Axis, Layout, Tensor]]) -> None:
    """Tied weights would come apart silently: all that share a tensor must be cut alike."""
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    cut = {(name, axis) for name, axis, _, _ in todo}
    for name, axis, layout, _ in todo:
        for tensor, _ in layout.tensors[axis]:
            for other in names.get(id(getattr(layout.owner, tensor)), ()):
                if {(other.rpartition(".")[0], axis), (other, axis)}.isdisjoint(cut):
                    raise CutError(f"{name} shares its weight with {other}, which is not cut")


def _cut(layout: Layout, axis: Axis, kept: Tensor) -> None:
    owner = layout.owner
    for name, dim in layout.tensors[axis]:
        old = getattr(owner, name)
        if old is None or old.shape[dim] == len(kept):  # cut already: it is tied
            continue
        old.data, old.grad = old.index_select(dim, kept.to(old.device)), None  # for optimisers
    if isinstance(owner, nn.GroupNorm):
        owner.num_groups = len(kept) // (owner.num_channels // owner.num_groups)
    for name in layout.sizes.get(axis, ()):
        setattr(owner, name, len(kept))


def _columns(model: nn.Module, cut: Cut, index: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
    """A reader, its weight with columns first (a view), and the columns of units `index`."""
    layout = layout_of(model, cut.module)
    ((name, dim),) = layout.tensors["in"]
    weight: nn.Parameter = getattr(layout.owner, name)
    return layout.owner, weight.movedim(dim, 0), cut.slots(index.cpu()).to(weight.device)


def _fold(model: nn.Module, units: Sequence[Units], keep: Keep, gates: Gates) -> None:
    for u in units:
        kept = gates[u.name].detach().float().cpu()[keep[u.name].cpu()]
        if u.bypass is not None and bool((kept != 1).any()):
            raise SiteError(f"{u.bypass} has gate {float(kept):.3g}: round it to 0 or 1 first")
        for cut in u.reads:
            _, weight, columns = _columns(model, cut, keep[u.name])
            scale = torch.ones(len(weight)).to(weight.device)
            scale[columns] = kept.to(weight.device).repeat_interleave(cut.chunk)
            weight.copy_(weight * scale.view(-1, *[1] * (weight.dim() - 1)))


def _compensate(
    model: nn.Module, units: Sequence[Units], keep: Keep, means: Mapping[str, Tensor]
) -> None:
    for u in units:
        for cut in u.reads:
            if cut.module not in means:
                raise SiteError(f"{cut.module} has no mean input: observe it with these units")
            reader, weight, columns = _columns(model, cut, _gone(u, keep))
            if not len(columns):
                continue  # and no new bias of zeros
            lost = weight[columns].float().reshape(len(columns), weight.shape[1], -1).sum(-1)
            shift = means[cut.module].to(weight.device)[columns] @ lost
            if reader.bias is None:
                reader.bias = nn.Parameter(torch.zeros_like(shift).to(weight.dtype))
            assert isinstance(reader.bias, Tensor)
            reader.bias.add_(shift.to(weight.dtype))


def digest(units: Sequence[Units]) -> str:
    """A fingerprint of what can be removed: names and sizes."""
    return hashlib.sha256(json.dumps([[u.name, u.size] for u in units]).encode()).hexdigest()


def save(
    path: Path,
    model: nn.Module,
    units: Sequence[Units],
    keep: Keep,
    *,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes a pruned model: one safetensors file, no pickle, whole or not at all.

    units: those of the dense model; extra: JSON values (budget, report) that travel along.
    """
    state, ties = distinct_tensors(model)
    tensors = {f"state/{name}": t for name, t in state.items()}
    tensors |= {f"keep/{name}": index.to(torch.int32) for name, index in keep.items()}
    about = {"format": _FORMAT, "digest": digest(units), "units": [[u.name, u.size] for u in units]}
    save_tensors(path, tensors, {**about, "ties": ties, "extra": dict(extra or {})})


def load(
    path: Path, build: Callable[[], nn.Module], units_of: Callable[[nn.Module], Sequence[Units]]
) -> nn.Module:
    """The pruned model in a file that `save` wrote, bit for bit.

    build: makes the dense model (its weights are never allocated). Raises FormatError when the file
    is damaged or its units are not those of this model, naming the first group that differs.
    """
    tensors, about = load_tensors(path)
    if about.get("format") != _FORMAT:
        raise FormatError(f"{path} is no pruned model of format {_FORMAT}")
    with torch.device("meta"):
        model = build()
    units = units_of(model)
    if about["digest"] != digest(units):
        pairs = itertools.zip_longest(about["units"], [[u.name, u.size] for u in units])
        there, here = next(pair for pair in pairs if pair[0] != pair[1])
        raise FormatError(f"{path} was pruned from another model: it has {there}, this one {here}")
    materialize(model, units, {u.name: tensors[f"keep/{u.name}"].long() for u in units})
    state = {n[6:]: t for n, t in tensors.items() if n.startswith("state/")}
    fill(model, state, about["ties"], path)
    return model
