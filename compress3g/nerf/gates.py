"""Soft zero-skipping: what closes the density where the features are pruned.

Without a gate, pruned space is a haze: the networks have no bias, so MLP(0) = 0 and exp(0) = 1.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

GateName = Literal["p", "tanh", "none"]


def skip_gate(
    name: GateName, p: Float[Tensor, "n"], v: Float[Tensor, "n f"], alpha: float
) -> Float[Tensor, "n"] | None:
    """Multiplier of the density, or None for no gate.

    "p": p itself. "tanh": tanh(alpha ||v||_2) of HollowNeRF 3.3, v = p f the pruned features. The
    tanh loses to a plain grid in short runs even when nothing is pruned; the docs have the figures.
    """
    if name == "p":
        return p
    if name == "tanh":
        # The tiny constant keeps the gradient of the norm finite at v = 0.
        return torch.tanh(alpha * (v.square().sum(-1) + 1e-20).sqrt())
    return None
