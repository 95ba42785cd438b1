"""The update in plain torch: the truth for tests, on any device, and the fallback."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def usable() -> str | None:
    """None: plain torch runs everywhere."""
    return None


def step(
    value: Float[Tensor, "..."],
    grad: Float[Tensor, "..."],
    first: Float[Tensor, "..."],
    second: Float[Tensor, "..."],
    *,
    rate: float,
    betas: tuple[float, float],
    root_correction: float,
    epsilon: float,
) -> None:
    """One update in place, where g != 0.

    m <- b1 m + (1-b1) g;  v <- b2 v + (1-b2) g^2;  value -= rate m / (sqrt(v) c + eps)
    """
    touched = grad != 0
    beta1, beta2 = betas
    first.copy_(torch.where(touched, beta1 * first + (1 - beta1) * grad, first))
    second.copy_(torch.where(touched, beta2 * second + (1 - beta2) * grad * grad, second))
    change = rate * first / (second.sqrt() * root_correction + epsilon)
    value.sub_(torch.where(touched, change, torch.zeros_like(change)))
    grad.zero_()
