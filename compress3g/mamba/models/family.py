"""What pruning has to know about a kind of model, found out from the names of its sub-modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import ConfigError
from ..holes import Holes
from . import bimamba, plain_mamba
from .bimamba import Mixed

Parts = tuple[Tensor, ...]  # streams (b, l, d) between two blocks; their sum is the residual stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A kind of model as functions over its modules."""

    name: str
    directions: int
    has_cls: bool
    needs: tuple[str, ...]  # names in the model
    mixer: str  # name of the mixer in a block
    in_mixer: tuple[str, ...]
    start: Callable[[Any, Tensor], tuple[Parts, Tensor | None, tuple[int, int]]]
    step: Callable[..., tuple[Parts, Mixed | None]]  # (layer, parts, grid, holes, inside)
    finish: Callable[[Any, Parts, Tensor | None], Tensor]
    as_map: Callable[[Any, Tensor, tuple[int, int]], Tensor]

    def missing(self, model: Any) -> list[str]:
        """Names that a model of this family would have."""
        lacks = [name for name in self.needs if not hasattr(model, name)]
        if not lacks and len(model.layers):
            mixer = getattr(model.layers[0], self.mixer, None)
            at = f"layers.0.{self.mixer}"
            lacks = [f"{at}.{name}" for name in self.in_mixer if not hasattr(mixer, name)]
        return lacks

    def inner(self, model: Any) -> int:
        """Channels inside a mixer, E."""
        return int(getattr(model.layers[0], self.mixer).D.shape[0])


def _start_vim(model: Any, images: Tensor) -> tuple[Parts, Tensor | None, tuple[int, int]]:
    hidden, cls, grid = bimamba.embed(model, images)
    return (hidden,), cls, grid


def _step_vim(
    layer: Any, parts: Parts, grid: tuple[int, int], holes: Holes | None, inside: bool
) -> tuple[Parts, Mixed | None]:
    residual = parts[1] if len(parts) > 1 else None
    hidden, residual, mixed = bimamba.step(layer, parts[0], residual, holes, inside=inside)
    return (hidden, residual), mixed


def _finish_vim(model: Any, parts: Parts, cls: Int[Tensor, "b"] | None) -> Tensor:
    assert cls is not None
    return bimamba.classify(model, parts[0], parts[1], cls)


def _start_plain(model: Any, images: Tensor) -> tuple[Parts, Tensor | None, tuple[int, int]]:
    x, grid = plain_mamba.embed_plain(model, images)
    return (x,), None, grid


def _step_plain(
    layer: Any, parts: Parts, grid: tuple[int, int], holes: Holes | None, inside: bool
) -> tuple[Parts, Mixed | None]:
    x, mixed = plain_mamba.step_plain(layer, parts[0], grid, holes, inside=inside)
    return (x,), mixed


def _finish_plain(model: Any, parts: Parts, cls: Tensor | None) -> Tensor:
    return plain_mamba.classify_plain(model, parts[0])


def _map_plain(
    model: Any, tokens: Float[Tensor, "b l d"], grid: tuple[int, int]
) -> Float[Tensor, "b d rows columns"]:
    normed = model.ln1(tokens).transpose(1, 2)
    return torch.reshape(normed, (*normed.shape[:2], *grid))


_SHARED = ("in_proj", "x_proj", "dt_proj", "A_log", "D", "out_proj")
VIM = Family(
    name="Vim",
    directions=2,
    has_cls=True,
    needs=("patch_embed", "cls_token", "pos_embed", "layers", "norm_f", "head"),
    mixer="mixer",
    in_mixer=(*_SHARED, "conv1d", "conv1d_b", "x_proj_b", "dt_proj_b", "A_b_log", "D_b"),
    start=_start_vim,
    step=_step_vim,
    finish=_finish_vim,
    as_map=bimamba.as_map,
)
PLAIN = Family(
    name="PlainMamba",
    directions=4,
    has_cls=False,
    needs=("patch_embed", "pos_embed", "layers", "ln1", "head"),
    mixer="mamba",
    in_mixer=(*_SHARED, "conv2d", "direction_Bs"),
    start=_start_plain,
    step=_step_plain,
    finish=_finish_plain,
    as_map=_map_plain,
)


def family_of(model: Any) -> Family:
    """Vim or PlainMamba. Raises ConfigError naming what a model that is neither lacks."""
    told = []
    for family in (VIM, PLAIN):
        missing = family.missing(model)
        if not missing:
            break
        told.append(f"no {family.name}: it has no {', '.join(missing)}")
    else:
        raise ConfigError(f"{type(model).__name__} is {'; and '.join(told)}")
    if getattr(model, "use_double_cls_token", False) or getattr(model, "if_rope", False):
        raise ConfigError("a Vim with two class tokens or rotary positions cannot be pruned")
    return family
