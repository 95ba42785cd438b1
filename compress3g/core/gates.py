"""From logits to multipliers: pure functions, no state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Gate(Protocol):
    """How a soft mask is sampled, hardened, and how open it is."""

    def sample(
        self, z: Float[Tensor, "... n"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "... n"]:
        """Multipliers for a training step, differentiable in z."""
        ...

    def hard(self, z: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
        """Deterministic multipliers for evaluation."""
        ...

    def open(self, z: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
        """How much of each unit stays, differentiable in z."""
        ...

    def init(self, size: int, keep: float) -> Float[Tensor, "size"]:
        """Logits whose `open` is `keep`."""
        ...


@dataclass(frozen=True, slots=True)
class Sigmoid:
    """p = sigmoid(z), without noise: the saliency of HollowNeRF (2308.10122, section 3.2)."""

    def sample(
        self, z: Float[Tensor, "... n"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "... n"]:
        """sigmoid(z); the generator is not used."""
        return z.float().sigmoid()

    def hard(self, z: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
        """sigmoid(z)."""
        return z.float().sigmoid()

    def open(self, z: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
        """sigmoid(z)."""
        return z.float().sigmoid()

    def init(self, size: int, keep: float) -> Float[Tensor, "size"]:
        """ln(keep / (1 - keep)).

        >>> Sigmoid().init(2, 0.5)
        tensor([0., 0.])
        """
        return torch.full((size,), math.log(keep / (1 - keep)))


@dataclass(frozen=True, slots=True)
class TopK:
    """1 for the k = max(1, round(keep n)) largest logits, straight through to a sigmoid's slope.

    keep: share that stays; temperature: width of the slope around the k-th largest logit.
    """

    keep: float
    temperature: float = 1.0

    def _threshold(self, z: Tensor) -> Tensor:
        count = max(1, round(self.keep * z.shape[-1]))
        return z.detach().float().topk(count, -1).values[..., -1:]

    def sample(
        self, z: Float[Tensor, "... n"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "... n"]:
        """Hard forward, soft backward; the generator is not used."""
        soft = self.open(z)
        return self.hard(z) + soft - soft.detach()

    def hard(self, z: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
        """1 in the top k, 0 elsewhere; ties go to the lower index."""
        count = max(1, round(self.keep * z.shape[-1]))
        order = z.detach().float().sort(dim=-1, descending=True, stable=True).indices[..., :count]
        return torch.zeros_like(z, dtype=torch.float32).scatter(-1, order, 1.0)

    def open(self, z: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
        """sigmoid((z - t) / temperature), t the k-th largest logit, held constant."""
        return ((z.float() - self._threshold(z)) / self.temperature).sigmoid()

    def init(self, size: int, keep: float) -> Float[Tensor, "size"]:
        """Zeros: which ones are on top is for training to say."""
        return torch.zeros(size)
