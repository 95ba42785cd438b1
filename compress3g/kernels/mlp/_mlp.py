"""The differentiable perceptron, whichever backend runs it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import ConfigError
from ..cost import spend
from ..registry import pick


def padded(width: int) -> int:
    """Columns a buffer of `width` features has: the next multiple of 16, a full vector."""
    return -(-width // 16) * 16


def _flops(rows: int, weights: Sequence[Tensor]) -> int:
    """2 n out in, summed over the layers; padding is not counted."""
    return 2 * rows * sum(weight.numel() for weight in weights)


def _backward_flops(rows: int, weights: Sequence[Tensor], need_input: bool) -> int:
    """As much for the gradient of every weight, and again for that of every layer's input."""
    through = weights if need_input else weights[1:]
    return _flops(rows, weights) + _flops(rows, through)


class _MLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, backend: ModuleType, *weights: Tensor) -> Tensor:
        with spend("mlp", lambda: _flops(len(x), weights)):
            out, hidden = backend.forward(x, weights, keep_hidden=True)
        ctx.backend, ctx.count = backend, len(weights)
        ctx.save_for_backward(x, *weights, *hidden)
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, *rest = ctx.saved_tensors
        weights, hidden = rest[: ctx.count], rest[ctx.count :]
        need_input = ctx.needs_input_grad[0]
        with spend("mlp.backward", lambda: _backward_flops(len(x), weights, need_input)):
            x_grad, weight_grads = ctx.backend.backward(
                upstream[0].contiguous(), x, weights, hidden, need_input=need_input
            )
        return x_grad, None, *weight_grads


def mlp(
    x: Float[Tensor, "n in_padded"], weights: Sequence[Float[Tensor, "_out _in"]]
) -> Float[Tensor, "n out_padded"]:
    """W_k relu(... relu(W_1 x)): no bias, no activation after the last layer.

    `x` has `padded(in)` columns of which those beyond `in` are zero; the result has `padded(out)`
    columns of which those beyond `out` are zero. Raises ConfigError when the shapes do not chain.
    """
    if x.dim() != 2 or x.shape[1] != padded(weights[0].shape[1]):
        raise ConfigError(
            f"input of shape {tuple(x.shape)} for a first layer {tuple(weights[0].shape)}: "
            f"need {padded(weights[0].shape[1])} columns"
        )
    for a, b in itertools.pairwise(weights):
        if a.shape[0] != b.shape[1]:
            raise ConfigError(f"layers {tuple(a.shape)} and {tuple(b.shape)} do not chain")
    backend = pick("mlp", x.device)
    if torch.is_grad_enabled() and (x.requires_grad or any(w.requires_grad for w in weights)):
        out: Tensor = _MLP.apply(x, backend, *weights)  # type: ignore[no-untyped-call]
        return out
    with spend("mlp", lambda: _flops(len(x), weights)):
        return backend.forward(x, weights, keep_hidden=False)[0]  # type: ignore[no-any-return]
