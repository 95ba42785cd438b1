"""Backends that autograd cannot look into, as operators of torch: they compile and export too."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..cost import spend
from ._inputs import Inputs, Outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What a backend's `forward` returns, in float32; None for what was not asked for."""

    out: Tensor
    ungated: Tensor | None
    last_state: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradients:
    """What a backend's `backward` returns, in float32 and the shapes of the arguments."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    gap: Tensor | None
    initial_state: Tensor | None


_TENSORS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "gap", "initial_state")
_OPTIONS = ("delta_softplus", "gap_mode", "reverse")
_ARGUMENTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
    "Tensor? delta_bias, Tensor? gap, Tensor? initial_state, bool delta_softplus, str gap_mode, "
    "bool reverse, str backend"
)


def _module(backend: str) -> ModuleType:
    return importlib.import_module(f"compress3g.kernels.selective_scan.{backend}")


def _inputs(arguments: tuple[Any, ...]) -> Inputs:
    return Inputs(**dict(zip((*_TENSORS, *_OPTIONS), arguments, strict=True)))


def flops(x: Inputs) -> int:
    """Three multiply-adds and an exponential per step, channel and state; D is one multiply-add."""
    return x.u.numel() * (7 * x.A.shape[1] + 2 * (x.D is not None))


@torch.library.custom_op(
    "compress3g::selective_scan",
    mutates_args=(),
    schema=f"({_ARGUMENTS}, bool ungated, bool last_state) -> (Tensor, Tensor, Tensor)",
)
def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *given, backend, ungated, last_state = arguments
    x = _inputs(tuple(given))
    found = _module(backend).forward(x, ungated=ungated, last_state=last_state)
    none = x.u.new_empty(0, dtype=torch.float32)
    return (
        found.out.to(x.u.dtype),
        none.to(x.u.dtype) if found.ungated is None else found.ungated.to(x.u.dtype),
        none.clone() if found.last_state is None else found.last_state,
    )


@_forward.register_fake
def _forward_shapes(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *given, _, ungated, last_state = arguments
    x = _inputs(tuple(given))
    b, length, e = x.u.shape
    shape, state = (b, length, e), (b, e, x.A.shape[1])
    return (
        x.u.new_empty(shape),
        x.u.new_empty(shape if ungated else (0,)),
        x.u.new_empty(state if last_state else (0,), dtype=torch.float32),
    )


def _differentiable(x: Inputs) -> list[str]:
    """Arguments that have a gradient: all but absent ones and integer gaps."""
    return [
        name
        for name in _TENSORS
        if (value := getattr(x, name)) is not None and value.is_floating_point()
    ]


@torch.library.custom_op(
    "compress3g::selective_scan_backward",
    mutates_args=(),
    schema=f"({_ARGUMENTS}, Tensor? out, Tensor? ungated, Tensor? last_state) -> Tensor[]",
)
def _backward(*arguments: Any) -> list[Tensor]:
    *given, backend, out, ungated, last_state = arguments
    x = _inputs(tuple(given))
    with spend("selective_scan.backward", lambda: 2 * flops(x)):
        found = _module(backend).backward(x, out, ungated, last_state)
    # Several may view one memory, which an operator must not return.
    return [
        getattr(found, name).to(getattr(x, name).dtype, copy=name in ("B", "C"))
        for name in _differentiable(x)
    ]


@_backward.register_fake
def _backward_shapes(*arguments: Any) -> list[Tensor]:
    x = _inputs(arguments[: len(_TENSORS) + len(_OPTIONS)])
    # In rows without holes, whatever the strides of the arguments.
    return [
        value.new_empty(value.shape) for name in _differentiable(x) for value in [getattr(x, name)]
    ]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    count = len(_TENSORS)
    ctx.save_for_backward(*inputs[:count])
    ctx.options = inputs[count : count + len(_OPTIONS) + 1]
    ctx.set_materialize_grads(False)


def _chain(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    x = _inputs((*ctx.saved_tensors, *ctx.options[:-1]))
    grads = iter(_backward(*ctx.saved_tensors, *ctx.options, *upstream))
    names = _differentiable(x)
    found = [next(grads) if name in names else None for name in _TENSORS]
    return (*found, *[None] * (len(_OPTIONS) + 3))


torch.library.register_autograd(_forward._qualname, _chain, setup_context=_keep)


def _plain(tensors: list[Tensor]) -> bool:
    """Whether nobody but the backend needs to see this call: the operator would cost 0.1 ms."""
    return (
        not torch.compiler.is_compiling()
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
        and all(type(t) in (Tensor, torch.nn.Parameter) for t in tensors)
    )


def run(x: Inputs, backend: str, *, ungated: bool, last_state: bool) -> Outputs:
    """The whole operation by the module `backend` of this folder."""
    tensors = [getattr(x, name) for name in _TENSORS]
    options = [getattr(x, name) for name in _OPTIONS]
    run = _forward._init_fn if _plain([t for t in tensors if t is not None]) else _forward
    out, before, state = run(*tensors, *options, backend, ungated, last_state)
    return Outputs(out=out, ungated=before if ungated else out, last_state=state)
