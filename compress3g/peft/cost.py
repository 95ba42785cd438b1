"""What a decision costs: parameters, operations, or milliseconds on training data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from ..core import Keep, Units, materialize, price
from ..errors import BudgetError
from ..profile import compare, measure_latency
from .units import base_of, of_base

Batch: TypeAlias = dict[str, Any]


def cost_of(
    model: Any, units: Sequence[Units], kind: str, batches: Callable[[], Sequence[Batch]]
) -> Callable[[Keep], float]:
    """What a decision costs: a share of the sites' params or flops, or measured ms of a forward.

    ms: of the model as it will be deployed, without the adapter, on the first batch: those of the
    whole model, measured at once, times how much longer or shorter a decision takes beside it.
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

    whole = bare(base).eval()
    device = next(whole.parameters()).device.type
    alone = measure_latency(lambda: run(whole), seconds=0.5, device=device).p50

    def measured(keep: Keep) -> float:
        small = bare(base).eval()
        materialize(small, units, keep)
        # In turn with the whole model: what else the machine does slows both.
        pair = compare(lambda: run(whole), lambda: run(small), seconds=1.0, device=device)
        return alone * pair.median

    return measured


def _share_of(priced: Sequence[Units], kind: str) -> Callable[[Keep], float]:
    whole = sum(u.cost[kind] * u.size for u in priced)
    return lambda keep: sum(u.cost[kind] * len(keep[u.name]) for u in priced) / whole


def bare(base: Any) -> Any:
    """The base model without adapters and hooks; it shares memory until it is cut."""
    # Parameters of its own, which surgery may change, over the same memory.
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), False) for p in base.parameters()}
    small = copy.deepcopy(base, shared | {id(b): b.detach() for b in base.buffers()})
    for name, layer in [(n, m) for n, m in small.named_modules() if hasattr(m, "lora_A")]:
        small.set_submodule(name, layer.base_layer)
    for module in small.modules():  # gates that are open fit the uncut widths
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
    return small
