"""What a decision costs: parameters, operations, or milliseconds on training data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

from ..core import Keep, Units, materialize, price
from ..errors import BudgetError
from ..profile import measure_latency
from .units import base_of, of_base

Batch: TypeAlias = dict[str, Any]


def cost_of(
    model: Any, units: Sequence[Units], kind: str, batches: Callable[[], Sequence[Batch]]
) -> Callable[[Keep], float]:
    """What a decision costs: a share of the sites' params or flops, or measured ms of a forward.

    ms: of the model as it will be deployed, without the adapter, on the first batch.
    """
    base = base_of(model)
    inner = of_base(base, units)
    if kind == "params":
        return _share_of(price(base, inner), kind)
    looked = list(batches())
    if not looked:
        raise BudgetError(f"--budget in {kind} is measured on training data: give some")
    example = {k: v for k, v in looked[0].items() if k != "labels"}

    def run(module: Any) -> Any:
        with torch.inference_mode():
            return module(**example)

    if kind == "flops":
        return _share_of(price(base, inner, run), kind)

    def measured(keep: Keep) -> float:
        small = bare(base)
        materialize(small, units, keep)
        small.eval()
        device = next(small.parameters()).device.type
        return measure_latency(lambda: run(small), seconds=0.5, device=device).p50

    return measured


def _share_of(priced: Sequence[Units], kind: str) -> Callable[[Keep], float]:
    whole = sum(u.cost[kind] * u.size for u in priced)
    return lambda keep: sum(u.cost[kind] * len(keep[u.name]) for u in priced) / whole


def bare(base: Any) -> Any:
    """A copy of the base model without adapters and hooks."""
    small = copy.deepcopy(base)
    for name, layer in [(n, m) for n, m in small.named_modules() if hasattr(m, "lora_A")]:
        small.set_submodule(name, layer.base_layer)
    for module in small.modules():  # gates that are open fit the uncut widths
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
    return small
