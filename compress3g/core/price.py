"""What one unit costs: parameters, bytes and FLOPs that go with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..errors import CutError
from ..profile.formulas import missing_formulas
from ._layout import check_cuts, layout_of
from .units import Units


def price(
    model: nn.Module, units: Sequence[Units], example: Callable[[nn.Module], Any] | None = None
) -> list[Units]:
    """The units with `cost` filled: params, bytes, units, and with `example` also flops.

    params and bytes are exact from the cuts, except that a weight whose rows and columns both go
    (a chain of convolutions) is charged to both sides. flops need `example`, which runs the model
    once: those of a writer or reader are split evenly over its rows or columns. What a bypassed
    module costs beyond the units inside it is charged to the bypass. Raises CutError when two
    groups cut the same rows, or when a cut is not exact.
    """
    check_cuts(model, units)
    flops = None if example is None else _flops(model, example)
    priced = [replace(u, cost=_cost(model, u, flops)) for u in units]
    return [
        u if u.bypass is None else _without(u, [c for c in priced if c.inside == u.name])
        for u in priced
    ]


def _without(parent: Units, children: Sequence[Units]) -> Units:
    """The bypass without what its children are charged; `units` counts it as one."""
    cost = {
        kind: value - sum(c.cost[kind] * c.size for c in children)
        for kind, value in parent.cost.items()
    }
    return replace(parent, cost={**cost, "units": 1.0})


def _cost(model: nn.Module, u: Units, flops: Mapping[str, float] | None) -> dict[str, float]:
    total = {"params": 0.0, "bytes": 0.0}
    if flops is not None:
        total["flops"] = 0.0
    if u.bypass is not None:
        try:
            module = model.get_submodule(u.bypass)
        except AttributeError:
            raise CutError(f"{u.bypass}: {type(model).__name__} has no such module") from None
        _add(total, [(p, 1.0) for p in module.parameters()])
        if flops is not None:
            total["flops"] = flops.get(u.bypass, 0.0)
    for cut in (*u.writes, *u.reads):
        layout = layout_of(model, cut.module)
        tensors = [(getattr(layout.owner, n), d) for n, d in layout.tensors.get(cut.axis, ())]
        _add(
            total, [(t, cut.chunk / t.shape[d]) for t, d in tensors if isinstance(t, nn.Parameter)]
        )
        if flops is not None:
            total["flops"] += flops.get(cut.module, 0.0) * cut.chunk / layout.size(cut.axis)
    return {**total, "units": 1.0}


def _add(total: dict[str, float], shares: Sequence[tuple[Tensor, float]]) -> None:
    for tensor, share in shares:
        total["params"] += tensor.numel() * share
        total["bytes"] += tensor.numel() * tensor.element_size() * share


def _flops(model: nn.Module, example: Callable[[nn.Module], Any]) -> dict[str, float]:
    """FLOPs by qualified name of every module that ran."""
    with FlopCounterMode(display=False, custom_mapping=missing_formulas()) as counter:
        example(model)
    root = type(model).__name__
    return {
        name.removeprefix(f"{root}."): float(sum(by_operation.values()))
        for name, by_operation in counter.get_flop_counts().items()
    }
