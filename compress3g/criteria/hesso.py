"""Redundant units fade to exactly nothing while the rest trains (HESSO, 2312.09411)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core import Budget, Gates, Units, gated, select
from ..core._layout import layout_of
from ._weights import Loss, cycle, weights_of

Pair: TypeAlias = tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]


def mixed_score(groups: Mapping[str, Pair]) -> Gates:
    """Sum of ||x||, ||x||/|g|, |<x, d>|, <x, d>^2 / 2 and 1 + cos(x, d), each normalised over all.

    groups: by name, (x, d) of n units of |g| = k numbers each: x their weights, d what the
    optimiser would add to them, so that a unit already driven towards zero (cos = -1) scores low.
    A unit of zeros scores 0.
    """
    each = torch.cat([_parts(x, d) for x, d in groups.values()], 1)
    total = (each / each.norm(dim=1, keepdim=True).clamp_min(1e-30)).sum(0)
    sizes = [len(x) for x, _ in groups.values()]
    return dict(zip(groups, total.split(sizes), strict=True))


def _parts(x: Float[Tensor, "n k"], d: Float[Tensor, "n k"]) -> Float[Tensor, "5 n"]:
    norm, along = x.norm(dim=1), (x * d).sum(1)
    cosine = along / (norm * d.norm(dim=1)).clamp_min(1e-30)
    turn = torch.where(norm > 0, 1 + cosine, 0.0)
    return torch.stack((norm, norm / x.shape[1], along.abs(), along.square() / 2, turn))


def hesso(model: nn.Module, units: Sequence[Units], gates: Gates | None = None) -> Gates:
    """The mixed score of the readers' weights, the direction from their `.grad`.

    gates: multipliers g at the sites, with which x = g W and dL/dx = (dL/dW) / g.
    """
    groups = {}
    for u in units:
        g = torch.ones(u.size) if gates is None else gates[u.name].detach().cpu()
        read = [weights_of(model, cut, u.size).flatten(1).cpu() for cut in u.reads]
        grads = [weights_of(model, cut, u.size, gradient=True).flatten(1).cpu() for cut in u.reads]
        scale = torch.where(g > 0, 1 / g.clamp_min(1e-30), 0.0)[:, None]
        groups[u.name] = (torch.cat(read, 1) * g[:, None], -torch.cat(grads, 1) * scale)
    return mixed_score(groups)


class GradualShrink:
    """Multipliers of units that go, shrunk by (D - t - 1) / (D - t) at step t of D: linearly to 0.

    gates: the current multipliers, 1 for what stays and exactly 0 after the last step.
    """

    def __init__(self, units: Sequence[Units]) -> None:
        self.gates: dict[str, Tensor] = {u.name: torch.ones(u.size) for u in units}
        self._fading: dict[str, Tensor] = {}
        self._step = self._steps = 0

    def fade(self, keep: Gates, steps: int) -> None:
        """Begin a period of `steps` steps that ends with only `keep` (ascending indices) open."""
        self._step, self._steps = 0, steps
        self._fading = {
            name: torch.ones(len(g), dtype=torch.bool).index_fill(0, keep[name].cpu(), False)
            for name, g in self.gates.items()
        }

    def step(self) -> None:
        """After an optimiser's step. Does nothing once the period is over."""
        if self._step >= self._steps:
            return
        left = self._steps - self._step
        factor = (left - 1) / left
        for name, fading in self._fading.items():
            self.gates[name] = torch.where(fading, self.gates[name] * factor, self.gates[name])
        self._step += 1


def learn_hesso(
    model: nn.Module,
    units: Sequence[Units],
    batches: Sequence[Any],
    loss: Loss,
    budget: Budget,
    *,
    steps: int,
    periods: int = 5,
) -> Gates:
    """Scores from `periods` rounds of choosing and fading, with all weights held.

    What goes in an earlier round scores lower; every round looks at the model as the rounds before
    left it. In training, call `hesso` and `GradualShrink` around the optimiser's own steps instead.
    """
    shrink, scores = GradualShrink(units), {u.name: torch.zeros(u.size) for u in units}
    gone = {u.name: torch.zeros(u.size, dtype=torch.bool) for u in units}
    flat = [replace(u, inside=None) for u in units]
    length, stream = max(1, steps // periods), cycle(batches)
    for period in range(periods):
        _gradients(model, units, stream, loss, shrink, length)
        found = hesso(model, units, shrink.gates)
        most = max(float(s.max()) for s in found.values())
        ranked = {n: s.masked_fill(gone[n], -torch.inf) for n, s in found.items()}
        share = 1 - (1 - budget.keep) * (period + 1) / periods
        keep = select(ranked, flat, replace(budget, keep=share))
        for name, s in found.items():
            # Scores of different rounds are not comparable; rounds are, so they lie 2 apart.
            scores[name] = torch.where(gone[name], scores[name], s / most + 2.0 * period)
            gone[name] = torch.ones_like(gone[name]).index_fill(0, keep[name], False)
        shrink.fade(keep, length)  # while the next round's gradients are gathered
    model.zero_grad()
    return {n: torch.where(gone[n], s, s + 2.0) for n, s in scores.items()}


def _gradients(
    model: nn.Module,
    units: Sequence[Units],
    stream: Iterable[Any],
    loss: Loss,
    shrink: GradualShrink,
    count: int,
) -> None:
    """Leaves the mean gradient of the readers' weights over `count` batches in `.grad`."""
    model.zero_grad()
    wanted = [_weight(model, cut.module) for u in units for cut in u.reads]
    before = [p.requires_grad for p in wanted]
    try:
        for p in wanted:
            p.requires_grad_(True)
        with gated(model, units, lambda: shrink.gates):
            for _, batch in zip(range(count), stream, strict=False):
                (loss(model, batch) / count).backward()
                shrink.step()
    finally:
        for p, trained in zip(wanted, before, strict=True):
            p.requires_grad_(trained)


def _weight(model: nn.Module, name: str) -> Tensor:
    layout = layout_of(model, name)
    weight: Tensor = getattr(layout.owner, layout.tensors["in"][0][0])
    return weight
