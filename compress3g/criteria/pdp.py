"""Soft masks made of the weights themselves, under a threshold that rises (PDP)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Gates, Schedule, SoftThreshold, Units, gated
from ..core._layout import layout_of
from ._weights import Loss, cycle
from .magnitude import magnitude


def norms(model: nn.Module, units: Sequence[Units]) -> Gates:
    """||W_g|| of every unit's columns, differentiable: in training the weights are the logits."""
    found = {}
    for u in units:
        squares: Tensor | float = 0.0
        for cut in u.reads:
            layout = layout_of(model, cut.module)
            ((name, dim),) = layout.tensors["in"]
            weight: Tensor = getattr(layout.owner, name)
            slots = cut.slots(torch.arange(u.size, device=weight.device))
            columns = weight.movedim(dim, 0)[slots].float().reshape(u.size, -1)
            squares = squares + columns.square().sum(1)
        found[u.name] = (torch.as_tensor(squares) + 1e-30).sqrt()
    return found


def soft_masks(z: Gates, keep: float, temperature: float = 1e-2) -> Gates:
    """sigmoid((z^2 - t^2) / tau) of every group (2305.11203), t midway at the share `keep`.

    tau is `temperature` times the mean of z^2, since z^2 of whole units has no scale of its own
    (public code has 1e-4 for single weights). In training: gated(model, units, lambda:
    soft_masks(norms(model, units), schedule.at(step))), no parameters besides the weights.
    """
    return {
        name: SoftThreshold(keep, temperature * float(s.detach().square().mean()) + 1e-30).open(s)
        for name, s in z.items()
    }


def learn_pdp(
    model: nn.Module,
    units: Sequence[Units],
    batches: Sequence[Any],
    loss: Loss,
    keep: float,
    *,
    steps: int,
    learning_rate: float = 0.02,
) -> Gates:
    """Logits trained under a threshold that rises until only `keep` is above it, weights held.

    The weights are held, so each unit's norm (over its group's mean) is a parameter instead.
    """
    start = magnitude(model, units)
    z = {
        n: nn.Parameter((s / s.mean().clamp_min(1e-30)).to(next(model.parameters()).device))
        for n, s in start.items()
    }
    adam = torch.optim.Adam(z.values(), lr=learning_rate)
    target = Schedule(1.0, keep, begin=0, finish=max(1, steps * 2 // 3), shape="linear")
    for step, batch in zip(range(steps), cycle(batches), strict=False):
        masks = soft_masks(z, target.at(step + 1))
        adam.zero_grad()
        with gated(model, units, masks):
            loss(model, batch).backward()
        adam.step()
    return {n: s.detach().abs() for n, s in z.items()}
