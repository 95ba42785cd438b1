"""What can be removed while adapters train: heads, neurons and ranks, through the adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ..core import Cut, Units
from ..errors import ConfigError, CutError
from ..transformer import units_of as sites_of
from .config import LightPeftConfig

# Never cut unless asked: pooling heads, projectors between towers, attention across stacks.
_WHOLE = (
    "*.head.*", "*projector*", "*connector*", "*encoder_attn*", "*crossattention*",
    "*cross_attn*", "*EncDecAttention*",
)  # fmt: skip
_VISION = ("*vision*", "*visual*", "*image_encoder*")


def base_of(model: nn.Module) -> Any:
    """The transformers model that a PeftModel is wrapped around; others are their own."""
    inner = getattr(model, "get_base_model", None)
    return model if inner is None else inner()


def adapter_of(model: Any) -> str:
    """The name of the only adapter.

    Raises ConfigError when the model has none, or several: what one of them needs is cut from all.
    """
    names = list(getattr(model, "peft_config", {}))
    if len(names) != 1:
        found = ", ".join(names) or "none"
        raise ConfigError(f"{type(model).__name__} has adapters: {found}; need exactly one")
    kind = str(getattr(model.peft_config[names[0]].peft_type, "value", ""))
    if kind != "LORA":
        raise ConfigError(f"adapter {names[0]!r} is of kind {kind}: Light-PEFT cuts LoRA adapters")
    return str(names[0])


def candidates(model: nn.Module, config: LightPeftConfig) -> tuple[list[Units], list[str]]:
    """Heads and neurons that may go, named as in the base model, and the names of those held back.

    Gates multiply the input of a reader's adapter and base alike. Raises CutError when nothing may.
    """
    patterns = [p.strip() for p in config.exclude.split(",") if p.strip()]
    chosen, held = [], []
    for u in sites_of(base_of(model)):
        other = {"text": True, "vision": False, "both": None}[config.towers]
        vision = any(fnmatchcase(f".{u.name}", p) for p in _VISION)
        whole = any(fnmatchcase(f".{u.name}", p) for p in (*_WHOLE, *patterns))
        whole = whole or any(fnmatchcase(u.name, p) for p in patterns)
        (held.append(u.name) if whole or vision is other else chosen.append(u))
    if not chosen:
        raise CutError(f"every site of {type(base_of(model)).__name__} is excluded: nothing can go")
    return chosen, held


def lora_layers(model: nn.Module, adapter: str = "default") -> dict[str, Any]:
    """The layers that carry LoRA matrices of an adapter, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if all(
            isinstance(part, nn.ModuleDict) and adapter in part
            for part in (getattr(module, "lora_A", None), getattr(module, "lora_B", None))
        )
    }


def through_adapters(model: nn.Module, units: Sequence[Units]) -> list[Units]:
    """The same units with cuts inside adapted layers: base, rows of B and of DoRA, columns of A."""
    return [
        replace(
            u,
            writes=tuple(c for cut in u.writes for c in _inside(model, cut)),
            reads=tuple(c for cut in u.reads for c in _inside(model, cut)),
        )
        for u in units
    ]


def _inside(model: nn.Module, cut: Cut) -> Iterator[Cut]:
    layer: Any = model.get_submodule(cut.module)
    if not isinstance(getattr(layer, "base_layer", None), nn.Module):
        yield cut
        return
    yield replace(cut, module=f"{cut.module}.base_layer")
    part = "lora_B" if cut.axis == "out" else "lora_A"
    for adapter in getattr(layer, part, {}):
        yield replace(cut, module=f"{cut.module}.{part}.{adapter}")
    if cut.axis == "out":  # of DoRA
        for adapter in getattr(layer, "lora_magnitude_vector", {}):
            yield replace(cut, module=f"{cut.module}.lora_magnitude_vector.{adapter}.weight")


def units_of(model: nn.Module, adapter: str = "default") -> list[Units]:
    """The ranks of every LoRA layer of one adapter: rows of A, columns of B.

    The layer's scaling stays alpha / r of the dense adapter, so that what is left computes what it
    computed. Raises CutError when the model has no such adapter.
    """
    units = [_ranks(name, layer, adapter) for name, layer in lora_layers(model, adapter).items()]
    if not units:
        raise CutError(f"{type(model).__name__} has no LoRA adapter {adapter!r}")
    return units


def _ranks(name: str, layer: Any, adapter: str) -> Units:
    return Units(
        f"{name}.ranks",
        int(layer.lora_A[adapter].out_features),
        writes=(Cut(f"{name}.lora_A.{adapter}", "out"),),
        reads=(Cut(f"{name}.lora_B.{adapter}", "in"),),
    )


def candidates_by_name(base: nn.Module, sizes: Mapping[str, int]) -> list[Units]:
    """The sites of a plan. Raises CutError naming the first that the model lacks or has otherwise.

    A model that was cut already has other sizes.
    """
    found = {u.name: u for u in sites_of(base)}
    for name, size in sizes.items():
        if name not in found:
            raise CutError(f"{type(base).__name__} has no {name}, which the plan cuts")
        if found[name].size != size:
            raise CutError(
                f"{name} has {found[name].size} units, the plan was made for {size}: give the "
                "dense model that it was made for"
            )
    return [found[name] for name in sizes]


def of_base(model: nn.Module, units: Sequence[Units]) -> list[Units]:
    """The same units with cuts of the base weights alone: what scores and prices are made of."""

    def inner(cut: Cut) -> Cut:
        return next(_inside(model, cut))

    return [
        replace(u, writes=tuple(map(inner, u.writes)), reads=tuple(map(inner, u.reads)))
        for u in units
    ]
