"""Ranks of LoRA adapters as Units."""

from __future__ import annotations

from torch import nn

from ..core import Cut, Units
from ..errors import CutError


def units_of(model: nn.Module, adapter: str = "default") -> list[Units]:
    """The ranks of every LoRA layer of one adapter: rows of A, columns of B.

    The layer's scaling stays alpha / r of the dense adapter, so that what is left computes what it
    computed. Raises CutError when the model has no such adapter.
    """
    units = []
    for name, module in model.named_modules():
        parts = (getattr(module, "lora_A", None), getattr(module, "lora_B", None))
        if all(isinstance(p, nn.ModuleDict) and adapter in p for p in parts):
            units.append(_ranks(name, module, adapter))
    if not units:
        raise CutError(f"{type(model).__name__} has no LoRA adapter {adapter!r}")
    return units


def _ranks(name: str, module: nn.Module, adapter: str) -> Units:
    down = f"{name}.lora_A.{adapter}"
    rank = int(module.get_submodule(f"lora_A.{adapter}").out_features)  # type: ignore[arg-type]
    return Units(
        f"{name}.ranks",
        rank,
        writes=(Cut(down, "out"),),
        reads=(Cut(f"{name}.lora_B.{adapter}", "in"),),
    )
