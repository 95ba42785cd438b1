"""IP-Adapters that were trained for the dense model, on a pruned one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from .pipelines import denoiser_of
from .pruned_models import KEY, dense_skeleton, is_pruned, kept_of
from .units import kind_of, units_of


def load_ip_adapter(pipe: Any, *args: Any, **options: Any) -> None:
    """`pipe.load_ip_adapter(...)` for an adapter of the dense model.

    An adapter adds keys and values of an image to those of the words, head by head; those of heads
    that were removed are removed from it. On a dense pipeline nothing is changed.
    Raises ConfigError for a pruned denoiser that is no U-Net: the adapters of transformers add
    their heads to the residual stream, where none may be missing.
    """
    _, denoiser = denoiser_of(pipe)
    kept: dict[str, torch.Tensor] = {}
    if is_pruned(denoiser):
        if not hasattr(denoiser, "attn_processors") or not hasattr(denoiser, "down_blocks"):
            raise ConfigError(
                f"an IP-Adapter cannot be loaded onto {type(denoiser).__name__}: "
                "only onto pruned U-Nets"
            )
        kept = _kept_rows(denoiser)
    pipe.load_ip_adapter(*args, **options)
    for name, rows in kept.items():
        processor: Any = denoiser.get_submodule(name).processor
        for linears in (getattr(processor, a, ()) for a in ("to_k_ip", "to_v_ip")):
            for linear in linears:
                _cut(linear, rows)


def _kept_rows(denoiser: Any) -> dict[str, torch.Tensor]:
    """Output rows of key projections that are left, by name of the attention that lost some."""
    dense = dense_skeleton(denoiser)
    units = [u for u in units_of(dense) if kind_of(u) == "heads"]
    kept = kept_of(denoiser.config[KEY], units_of(dense))
    lost = [u for u in units if len(kept[u.name]) < u.size]
    return {u.name.removesuffix(".heads"): u.reads[0].slots(kept[u.name]) for u in lost}


def _cut(linear: nn.Linear, rows: torch.Tensor) -> None:
    linear.weight = nn.Parameter(
        linear.weight.detach()[rows.to(linear.weight.device)], linear.weight.requires_grad
    )
    linear.out_features = len(rows)
