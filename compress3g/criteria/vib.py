"""Gates with noise: what can be noise is not needed (variational information bottleneck)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ..core import Gates, Units, gated
from ._weights import Loss, cycle


class VIBGates(nn.Module):
    """g = mu + eps sigma, eps ~ N(0, 1) for every unit (VTrans, 2406.05276).

    One draw for all samples of a batch, or one for each, as `sample` is asked. Starts at mu = 1 and
    log sigma^2 = `log_variance`.
    """

    def __init__(self, units: Sequence[Units], *, log_variance: float = -9.0) -> None:
        super().__init__()
        self.units = tuple(units)
        total = sum(u.size for u in units)
        self.mu = nn.Parameter(torch.ones(total))
        self.log_variance = nn.Parameter(torch.full((total,), log_variance))
        # Wide units pay for what they cost, so that one beta serves heads and neurons.
        cost = torch.cat([torch.full((u.size,), float(u.cost.get("params", 1.0))) for u in units])
        self.register_buffer("cost", cost / cost.sum())

    def _split(self, vector: Tensor) -> Gates:
        parts = vector.split([u.size for u in self.units], -1)
        return {u.name: part for u, part in zip(self.units, parts, strict=True)}

    def sample(self, batch: int | None = None, *, generator: Generator | None = None) -> Gates:
        """Multipliers for a training step: (n,), or (batch, n) with noise of its own per sample."""
        shape = self.mu.shape if batch is None else (batch, *self.mu.shape)
        eps = torch.randn(shape, generator=generator).to(self.mu.device)
        return self._split(self.mu + eps * (self.log_variance / 2).exp())

    def hard(self) -> Gates:
        """mu: for evaluation, and to fold into the weights."""
        return self._split(self.mu)

    def penalty(self) -> Tensor:
        """Cost-weighted mean of 1/2 log(1 + mu^2 / sigma^2), an upper bound of the information."""
        ratio = self.mu.square() / self.log_variance.exp()
        cost: Tensor = self.cost  # type: ignore[assignment]
        return (cost * 0.5 * ratio.log1p()).sum()

    def scores(self) -> Gates:
        """log(mu^2 / sigma^2): the paper prunes below 0."""
        ratio = self.mu.detach().square().clamp_min(1e-30).log() - self.log_variance.detach()
        return self._split(ratio)


def learn_vib(
    model: nn.Module,
    units: Sequence[Units],
    batches: Sequence[Any],
    loss: Loss,
    *,
    steps: int,
    generator: Generator,
    beta: float = 0.1,
    learning_rate: float = 0.05,
) -> VIBGates:
    """Gates trained for `steps` on the loss plus beta times their penalty, weights held.

    One draw of noise serves all samples of a forward: not every reader has one row or sequence per
    sample (tokens without their batch, towers that see more images than there are texts).
    beta and the learning rate are ours: the paper tunes both per task.
    """
    device = next(model.parameters()).device
    gates = VIBGates(units).to(device)
    adam = torch.optim.Adam(gates.parameters(), lr=learning_rate)
    with gated(model, units, lambda: gates.sample(generator=generator)):
        for _, batch in zip(range(steps), cycle(batches), strict=False):
            adam.zero_grad()
            (loss(model, batch) + beta * gates.penalty()).backward()
            adam.step()
    return gates
