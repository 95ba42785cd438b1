"""What is cut lives on in what stays: readers fitted to what they put out before the cut."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Keep, Units
from ..criteria import Takeover, held, takeover
from ..errors import ConfigError
from .calibration import Batch
from .streams import streams_of
from .units import units_of


@torch.no_grad()
def fitted(
    base: Any, units: Sequence[Units], keep: Keep, batches: Sequence[Batch]
) -> dict[str, Takeover]:
    """What base weights of readers take over, by reader, adapters and all; nothing is changed.

    batches: model inputs, which run as one, twice as large. Raises ConfigError where they do not
    fit together.
    """
    batch = joined(batches)
    mask: Tensor | None = batch.get("attention_mask")
    known = inspect.signature(base.forward).parameters
    quiet: dict[str, Any] = {"use_cache": False} if "use_cache" in known else {}
    if "logits_to_keep" in known:  # those of all tokens can be larger than all else
        quiet["logits_to_keep"] = 1
        batch.pop("labels", None)
    twice = {k: torch.cat((t, t)) if t.dim() else t for k, t in batch.items()}

    def biased(name: str) -> bool:
        return plain(base, name).bias is not None

    with held(base):
        first = {k: t for k, t in batches[0].items() if k in batch}
        return takeover(
            base,
            units,
            keep,
            lambda m: m(**twice, **quiet),
            biased=biased,
            valid=None if mask is None else mask.bool(),
            streams=streams_of(base, units_of(base), lambda: base(**first, **quiet)),
        )


def plain(base: nn.Module, name: str) -> Any:
    """The layer of that name, or the one inside its adapter."""
    layer = base.get_submodule(name)
    return getattr(layer, "base_layer", layer)


@torch.no_grad()
def add(base: nn.Module, name: str, found: Takeover, scale: Tensor | None = None) -> None:
    """Adds it to a base layer, in float32; scale: DoRA's, of the rows, which bias has none of."""
    layer = plain(base, name)
    weight = layer.weight.T if type(layer).__name__ == "Conv1D" else layer.weight
    more = found.weight if scale is None else found.weight / scale[:, None].float()
    weight[:, found.kept] = (weight[:, found.kept] + more).to(weight.dtype)
    if found.bias is not None:
        layer.bias.copy_(layer.bias + found.bias)


def joined(batches: Sequence[Batch]) -> Batch:
    """All as one batch: shorter rows of tokens are padded with zeros, which the mask says.

    Raises ConfigError for tensors that differ otherwise, or without a mask.
    """
    made: Batch = {}
    masked = all("attention_mask" in b for b in batches)
    for name in batches[0]:
        parts: list[Any] = [b.get(name) for b in batches]
        if any(not isinstance(t, Tensor) or t.dim() != parts[0].dim() for t in parts):
            raise ConfigError(f"{name} is not a tensor in every batch that the refit looks at")
        if parts[0].dim() == 0:
            made[name] = parts[0]
            continue
        if masked and parts[0].dim() == 2:
            width = max(t.shape[1] for t in parts)
            parts = [F.pad(t, (0, width - t.shape[1])) for t in parts]
        if len({t.shape[1:] for t in parts}) > 1:
            shapes = " and ".join(str(tuple(s)) for s in sorted({tuple(t.shape) for t in parts}))
            raise ConfigError(
                f"{name} has shapes {shapes}, which make no one batch for the refit: give one "
                "batch, or set refit to False"
            )
        made[name] = torch.cat(parts)
    return made
