"""Whole layers out of a Hugging Face transformer, so that caches and configuration stay right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ..core import materialize
from ..core.surgery import Skip
from ..criteria import block_influence
from ..errors import BudgetError, ConfigError
from .pretrained import skeleton
from .units import units_of

# Lists in a configuration with one entry per layer.
_PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")


def layers_of(model: nn.Module) -> list[str]:
    """Names of the layers, first to last. Raises ConfigError for more than one stack of them."""
    names = [u.bypass for u in units_of(model, depth=True) if u.bypass is not None]
    stacks = {name.rpartition(".")[0] for name in names}
    if len(stacks) != 1:
        raise ConfigError(
            f"{type(model).__name__} has {len(stacks)} stacks of layers: only one can lose some"
        )
    return names


@torch.no_grad()
def influence(model: Any, batches: Iterable[dict[str, Tensor]], valid: Any) -> dict[str, float]:
    """Every layer's block influence over all valid tokens of the batches.

    Of the last layer too before the norm that many models put behind it: scales of channels and
    centring would count as the layer's own influence. Raises ConfigError when layers are not called
    once each.
    """
    names = layers_of(model)
    total, count = torch.zeros(len(names), dtype=torch.float64), 0
    for batch in batches:
        states = _stream(model, names, batch)
        if len(states) != len(names) + 1:
            raise ConfigError(
                f"{type(model).__name__} has {len(names)} layers but {len(states)} hidden states"
            )
        rows = _rows(states, None if valid is None else valid(batch))
        total += block_influence(rows).double().cpu() * len(rows[0])
        count += len(rows[0])
    return dict(zip(names, (total / max(1, count)).tolist(), strict=True))


def _stream(model: Any, names: Sequence[str], batch: dict[str, Tensor]) -> list[Tensor]:
    """What the first layer is given, and what each of them returns."""
    states: list[Tensor] = []

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])

    def after(module: Any, args: tuple[Any, ...], out: Any) -> None:
        states.append(out if isinstance(out, Tensor) else out[0])

    with ExitStack() as stack:
        first = model.get_submodule(names[0])
        stack.callback(first.register_forward_pre_hook(before, with_kwargs=True).remove)
        for name in names:
            stack.callback(model.get_submodule(name).register_forward_hook(after).remove)
        model(**batch)
    return states


def _rows(states: Sequence[Tensor], valid: Bool[Tensor, "b t"] | None) -> list[Tensor]:
    return [s.flatten(0, 1) if valid is None else s[valid] for s in states]


def droppable(model: nn.Module, influences: dict[str, float], count: int) -> list[str]:
    """The `count` layers of least influence that can go together.

    Where layers are not alike, those that stay must find a layer of their own kind at their new
    place: ModernBERT's first layer has no norm, some mixtures of experts start without experts.
    Raises BudgetError when fewer can go.
    """
    every, gone = layers_of(model), set[str]()
    for name in sorted(every, key=lambda n: influences[n]):
        if len(gone) < count and _misfit(model, every, gone | {name}) is None:
            gone.add(name)
    if len(gone) < count:
        raise BudgetError(
            f"only {len(gone)} of {len(every)} layers can be dropped, not {count}: "
            "the others are not alike"
        )
    return [name for name in every if name in gone]


def _misfit(model: nn.Module, every: Sequence[str], gone: set[str]) -> tuple[str, str] | None:
    """A layer that stays, and the one at whose place it would be, if their tensors differ."""
    stays = [name for name in every if name not in gone]
    for name, place in zip(stays, every, strict=False):
        mine, other = (set(model.get_submodule(n).state_dict()) for n in (name, place))
        if mine != other:
            return name, place
    return None


def drop_layers(model: Any, names: Iterable[str]) -> Any:
    """The model, in place, without these layers; those left are numbered anew.

    A layer that were only skipped would leave a hole in every cache of keys and values, and the
    first layer's cache says how long the text is: so they leave the list, `layer_idx` and the
    configuration's counts follow. Raises BudgetError when no layer would be left, ConfigError when
    a layer that stays would come to the place of one that is not like it.
    """
    every, gone = layers_of(model), set(names)
    if not set(every) - gone:
        raise BudgetError(f"all {len(every)} layers would go: at least one must stay")
    if (pair := _misfit(model, every, gone)) is not None:
        raise ConfigError(f"{pair[0]} would take the place of {pair[1]}, which has other tensors")
    blocks = [u for u in units_of(model, depth=True) if u.bypass is not None]
    keep = {u.name: torch.arange(0 if u.bypass in gone else 1) for u in blocks}
    materialize(model, blocks, keep)
    stack = every[0].rpartition(".")[0]
    layers = model.get_submodule(stack)
    left = [layer for layer in layers if not isinstance(layer, Skip)]
    kept = [i for i, layer in enumerate(layers) if not isinstance(layer, Skip)]
    model.set_submodule(stack, nn.ModuleList(left))
    for index, layer in enumerate(left):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    for holder in {
        id(m.config): m.config for m in model.modules() if hasattr(m, "config")
    }.values():
        _shorten(holder, len(every), kept)
    _forget_buffers(model)
    return model


def _forget_buffers(model: Any) -> None:
    """Without tables for kinds of attention that no layer is of any more."""
    wanted = {name for name, _ in skeleton(model.config, type(model)).named_buffers()}
    for name, _ in list(model.named_buffers()):
        if name not in wanted:
            owner, _, leaf = name.rpartition(".")
            delattr(model.get_submodule(owner), leaf)


def _shorten(config: Any, before: int, kept: Sequence[int]) -> None:
    for name in _PER_LAYER:
        values = getattr(config, name, None)
        if isinstance(values, list) and len(values) == before:
            setattr(config, name, [values[i] for i in kept])
    if getattr(config, "num_hidden_layers", None) == before:
        config.num_hidden_layers = len(kept)
        if hasattr(config, "stage_names"):  # a backbone (DINOv2): one stage per layer
            config.stage_names = config.stage_names[: len(kept) + 1]
            config.out_features = config.stage_names[-1:]
