"""Backends that autograd cannot look into, as operators of torch: they compile and export too."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..cost import spend
from ._taps import Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Arguments of one convolution; positions are None where there are no holes."""

    x: Tensor  # (b, l, e)
    weight: Tensor  # (e, taps)
    bias: Tensor | None  # (e)
    positions: Tensor | None  # int32 or int64 (b, l)
    mode: Mode
    reverse: bool
    silu: bool

    @property
    def flops(self) -> int:
        """A multiply-add per tap."""
        return 2 * self.x.numel() * self.weight.shape[1]


_ARGUMENTS = (
    "Tensor x, Tensor weight, Tensor? bias, Tensor? positions, str mode, bool reverse, bool silu, "
    "str backend"
)
_NAMES = ("x", "weight", "bias", "positions", "mode", "reverse", "silu")


def _module(backend: str) -> ModuleType:
    return importlib.import_module(f"compress3g.kernels.causal_conv.{backend}")


def _inputs(arguments: tuple[Any, ...]) -> Inputs:
    return Inputs(**dict(zip(_NAMES, arguments, strict=True)))


@torch.library.custom_op(
    "compress3g::causal_conv", mutates_args=(), schema=f"({_ARGUMENTS}) -> Tensor"
)
def _forward(*arguments: Any) -> Tensor:
    *given, backend = arguments
    x = _inputs(tuple(given))
    out: Tensor = _module(backend).forward(x)
    return out.to(x.x.dtype)


@_forward.register_fake
def _forward_shape(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op(
    "compress3g::causal_conv_backward",
    mutates_args=(),
    schema=f"({_ARGUMENTS}, Tensor upstream) -> (Tensor, Tensor, Tensor)",
)
def _backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *given, backend, upstream = arguments
    x = _inputs(tuple(given))
    with spend("causal_conv.backward", lambda: 2 * x.flops):
        grads = _module(backend).backward(x, upstream)
    bias = x.weight if x.bias is None else x.bias
    x_grad, weight_grad, bias_grad = grads
    return x_grad.to(x.x.dtype), weight_grad.to(x.weight.dtype), bias_grad.to(bias.dtype)


@_backward.register_fake
def _backward_shapes(x: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(x.shape[2])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _chain(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = _backward(*ctx.saved_tensors, *ctx.options, upstream)
    has_bias = ctx.saved_tensors[2] is not None
    return x, weight, bias if has_bias else None, *[None] * 5


torch.library.register_autograd(_forward._qualname, _chain, setup_context=_keep)


def run(x: Inputs, backend: str) -> Tensor:
    """The whole operation by the module `backend` of this folder."""
    tensors = [t for t in (x.x, x.weight, x.bias) if t is not None]
    # Where nobody but the backend needs to see the call: the operator would cost 0.1 ms.
    plain = (
        not torch.compiler.is_compiling()
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
        and all(type(t) in (Tensor, torch.nn.Parameter) for t in tensors)
    )
    call = _forward._init_fn if plain else _forward
    out: Tensor = call(*(getattr(x, name) for name in _NAMES), backend)
    return out
