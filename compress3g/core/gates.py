"""From logits to multipliers: pure functions, no state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Generator, Tensor

Each: TypeAlias = Float[Tensor, "... n"]  # one number per unit; leading dimensions are samples


class Gate:
    """How a soft mask is sampled, hardened, and how open it is; all of it in float32."""

    def sample(self, z: Each, *, generator: Generator | None = None) -> Each:
        """Multipliers for a training step, differentiable in z."""
        return self.open(z)

    def hard(self, z: Each) -> Each:
        """Deterministic multipliers for evaluation."""
        return self.open(z)

    def open(self, z: Each) -> Each:
        """How much of each unit stays, differentiable in z."""
        raise NotImplementedError

    def init(self, size: int, keep: float) -> Float[Tensor, "size"]:
        """Logits whose `open` is `keep`; ones where the k largest stay whatever their value."""
        return torch.ones(size)


@dataclass(frozen=True, slots=True)
class Sigmoid(Gate):
    """p = sigmoid(z), without noise: the saliency of HollowNeRF (2308.10122, section 3.2)."""

    def open(self, z: Each) -> Each:
        """sigmoid(z)."""
        return z.float().sigmoid()

    def init(self, size: int, keep: float) -> Float[Tensor, "size"]:
        """ln(keep / (1 - keep))."""
        return torch.full((size,), _logit(keep))


@dataclass(frozen=True, slots=True)
class HardConcrete(Gate):
    """A stretched, clipped binary concrete variable: exact zeros with a gradient (1712.01312).

        s = sigmoid((ln u - ln(1 - u) + z) / beta);   g = clip(s (zeta - gamma) + gamma, 0, 1)

    eps is added to both u and 1 - u and so bounds the noise. EcoDiff (2412.02852) has beta 0.83.
    """

    beta: float = 2 / 3
    gamma: float = -0.1
    zeta: float = 1.1
    eps: float = 1e-8

    def _clipped(self, s: Tensor) -> Tensor:
        return (s * (self.zeta - self.gamma) + self.gamma).clamp(0, 1)

    def sample(self, z: Each, *, generator: Generator | None = None) -> Each:
        """g for a fresh u ~ U(0, 1) per logit."""
        u = torch.rand(z.shape, generator=generator, device=z.device)
        noise = (u + self.eps).log() - (1 - u + self.eps).log()
        return self._clipped(((noise + z.float()) / self.beta).sigmoid())

    def hard(self, z: Each) -> Each:
        """clip(sigmoid(z) (zeta - gamma) + gamma, 0, 1)."""
        return self._clipped(z.float().sigmoid())

    def open(self, z: Each) -> Each:
        """P(g != 0) = sigmoid(z - beta ln(-gamma / zeta)), and what bounded noise makes of it."""
        p = (z.float() - self.beta * math.log(-self.gamma / self.zeta)).sigmoid()
        return (p * (1 + 2 * self.eps) - self.eps).clamp(0, 1)

    def init(self, size: int, keep: float) -> Float[Tensor, "size"]:
        """Logits whose P(g != 0) is `keep`."""
        p = (keep + self.eps) / (1 + 2 * self.eps)
        return torch.full((size,), _logit(p) + self.beta * math.log(-self.gamma / self.zeta))


@dataclass(frozen=True, slots=True)
class GumbelSigmoid(Gate):
    """sigmoid((z + G + b) / tau) with one Gumbel variable G, straight through at 1/2.

    One Gumbel and not the difference of two, as APTP (2406.12042) releases it.
    """

    tau: float = 0.4
    b: float = 2.0

    def sample(self, z: Each, *, generator: Generator | None = None) -> Each:
        """1 where the soft value is above 1/2, with the soft value's gradient."""
        u = torch.rand(z.shape, generator=generator, device=z.device).clamp(1e-10, 1 - 1e-7)
        soft = ((z.float() - (-u.log()).log() + self.b) / self.tau).sigmoid()
        return (soft > 0.5).float() + (soft - soft.detach())

    def hard(self, z: Each) -> Each:
        """1 where z + b >= 0."""
        return (z.detach().float() + self.b >= 0).float()

    def open(self, z: Each) -> Each:
        """sigmoid((z + b) / tau)."""
        return ((z.float() + self.b) / self.tau).sigmoid()

    def init(self, size: int, keep: float) -> Float[Tensor, "size"]:
        """Logits whose `open` is `keep`."""
        return torch.full((size,), self.tau * _logit(keep) - self.b)


@dataclass(frozen=True, slots=True)
class Scalar(Gate):
    """The logit is the multiplier: Light-PEFT's mask under an l1 penalty (2406.03792)."""

    def sample(self, z: Each, *, generator: Generator | None = None) -> Each:
        """z."""
        return z.float()

    def hard(self, z: Each) -> Each:
        """z."""
        return z.float()

    def open(self, z: Each) -> Each:
        """|z|."""
        return z.float().abs()

    def init(self, size: int, keep: float) -> Float[Tensor, "size"]:
        """`keep` everywhere; train from keep = 1."""
        return torch.full((size,), float(keep))


@dataclass(frozen=True, slots=True)
class SoftThreshold(Gate):
    """sigmoid((z^2 - t^2) / tau), t midway between the k-th and the next |z| (PDP, 2305.11203).

    e^(w^2/tau) / (e^(w^2/tau) + e^(t^2/tau)), z the norms of weights: no parameters of its own.
    keep: share above t; temperature: tau, on the scale of z^2.
    """

    keep: float
    temperature: float = 1e-4

    def hard(self, z: Each) -> Each:
        """1 where the soft mask is at least 1/2."""
        return (self.open(z.detach()) >= 0.5).float()

    def open(self, z: Each) -> Each:
        """The soft mask; t is held constant."""
        count, size = max(1, round(self.keep * z.shape[-1])), z.float().abs()
        if count == z.shape[-1]:
            return torch.ones_like(size) + 0 * size
        t = size.detach().topk(count + 1, -1).values[..., -2:].mean(-1, keepdim=True)
        return ((size.square() - t.square()) / self.temperature).sigmoid()


@dataclass(frozen=True, slots=True)
class TopK(Gate):
    """1 for the k = max(1, round(keep n)) largest logits, straight through to a sigmoid's slope.

    keep: share that stays; temperature: width of the slope around the k-th largest logit.
    """

    keep: float
    temperature: float = 1.0

    def sample(self, z: Each, *, generator: Generator | None = None) -> Each:
        """Hard forward, soft backward."""
        soft = self.open(z)
        return self.hard(z) + (soft - soft.detach())

    def hard(self, z: Each) -> Each:
        """1 in the top k, 0 elsewhere; ties go to the lower index."""
        count = max(1, round(self.keep * z.shape[-1]))
        order = z.detach().float().sort(dim=-1, descending=True, stable=True).indices[..., :count]
        return torch.zeros_like(z, dtype=torch.float32).scatter(-1, order, 1.0)

    def open(self, z: Each) -> Each:
        """sigmoid((z - t) / temperature), t the k-th largest logit, held constant."""
        count = max(1, round(self.keep * z.shape[-1]))
        t = z.detach().float().topk(count, -1).values[..., -1:]
        return ((z.float() - t) / self.temperature).sigmoid()


def _logit(p: float) -> float:
    return math.log(p / (1 - p))
