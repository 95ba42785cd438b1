"""The perceptron in plain torch: the truth for tests, on any device, and the fallback."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def usable() -> str | None:
    """None: plain torch runs everywhere."""
    return None


def _pad(x: Tensor) -> Tensor:
    return F.pad(x, (0, -x.shape[1] % 16))


def forward(
    x: Float[Tensor, "n in_padded"],
    weights: Sequence[Float[Tensor, "_out _in"]],
    *,
    keep_hidden: bool,
) -> tuple[Float[Tensor, "n out_padded"], list[Tensor]]:
    """Output, and the hidden activations after ReLU when they are wanted."""
    hidden = []
    y = x[:, : weights[0].shape[1]]
    for weight in weights[:-1]:
        y = F.linear(y, weight).relu()
        if keep_hidden:
            hidden.append(_pad(y))
    return _pad(F.linear(y, weights[-1])), hidden


def backward(
    upstream: Float[Tensor, "n out_padded"],
    x: Float[Tensor, "n in_padded"],
    weights: Sequence[Float[Tensor, "_out _in"]],
    hidden: Sequence[Tensor],
    *,
    need_input: bool,
) -> tuple[Tensor | None, list[Tensor]]:
    """Gradients of the input (None unless needed) and of every weight."""
    inputs = [x, *hidden]
    grads: list[Tensor] = []
    g = upstream[:, : weights[-1].shape[0]]
    for layer in reversed(range(len(weights))):
        weight = weights[layer]
        grads.append(g.T @ inputs[layer][:, : weight.shape[1]])
        if layer:
            g = (g @ weight) * (hidden[layer - 1][:, : weight.shape[1]] > 0)
    grads.reverse()
    return (_pad(g @ weights[0]) if need_input else None), grads
