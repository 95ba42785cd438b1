"""The perceptron in C: samples split between threads, one private sum of gradients each."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import ConfigError
from .._library import INTEGER, POINTER, address, function, status
from .._parallel import parallel_for

_ROWS = 64  # as in body.h: samples that go through all layers together
_FORWARD = (POINTER, POINTER, INTEGER, POINTER, POINTER, POINTER)
_BACKWARD = (*[POINTER] * 2, INTEGER, *[POINTER] * 5, *[INTEGER] * 3)


def usable() -> str | None:
    """None, or why the compiled library is not there."""
    return status()


def _pad(width: int) -> int:
    return -(-width // 16) * 16


def _widths(weights: Sequence[Tensor]) -> ctypes.Array[ctypes.c_int64]:
    widths = [weights[0].shape[1], *(w.shape[0] for w in weights)]
    if len(weights) > 8 or max(widths) > 128:
        raise ConfigError(f"fused perceptrons have at most 8 layers of 128, got widths {widths}")
    if sum(_pad(a) * _pad(b) for a, b in itertools.pairwise(widths)) > 8 * 64 * 64:
        raise ConfigError(f"fused perceptrons hold at most 32,768 weights, got widths {widths}")
    return (ctypes.c_int64 * len(widths))(*widths)


def _flat(weights: Sequence[Tensor]) -> Tensor:
    return torch.cat([w.detach().reshape(-1) for w in weights])


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * max(1, len(tensors)))(*(address(t) for t in tensors))


def forward(
    x: Float[Tensor, "n in_padded"],
    weights: Sequence[Float[Tensor, "_out _in"]],
    *,
    keep_hidden: bool,
) -> tuple[Float[Tensor, "n out_padded"], list[Tensor]]:
    """Output, and the hidden activations after ReLU when they are wanted."""
    x, flat, widths = x.contiguous(), _flat(weights), _widths(weights)
    out = torch.empty(len(x), _pad(weights[-1].shape[0]))
    hidden = [torch.empty(len(x), _pad(w.shape[0])) for w in weights[:-1]] if keep_hidden else []
    saved = _pointers(hidden)
    parallel_for(
        function("mlp_forward", _FORWARD),
        len(x),
        address(flat),
        ctypes.addressof(widths),
        len(weights),
        address(x),
        ctypes.addressof(saved) if keep_hidden else None,
        address(out),
        grain=512,
    )
    return out, hidden


def backward(
    upstream: Float[Tensor, "n out_padded"],
    x: Float[Tensor, "n in_padded"],
    weights: Sequence[Float[Tensor, "_out _in"]],
    hidden: Sequence[Tensor],
    *,
    need_input: bool,
) -> tuple[Tensor | None, list[Tensor]]:
    """Gradients of the input (None unless needed) and of every weight."""
    x, flat, widths, saved = x.contiguous(), _flat(weights), _widths(weights), _pointers(hidden)
    n, total = len(x), len(flat)
    parts = max(1, min(torch.get_num_threads(), n // 512))
    chunk = max(_ROWS, -(-n // parts // _ROWS) * _ROWS)
    parts = -(-n // chunk)
    sums = torch.zeros(max(parts, 1), total)
    x_grad = torch.empty_like(x) if need_input else None
    parallel_for(
        function("mlp_backward", _BACKWARD),
        parts,
        address(flat),
        ctypes.addressof(widths),
        len(weights),
        address(x),
        ctypes.addressof(saved),
        address(upstream),
        address(sums),
        address(x_grad),
        n,
        chunk,
        total,
        grain=1,
        piece=1,
    )
    grads = torch.split(sums.sum(0), [w.numel() for w in weights])
    return x_grad, [g.view_as(w) for g, w in zip(grads, weights, strict=True)]
