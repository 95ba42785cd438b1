"""The scan in Triton: what its kernels (`_fused`) are given, and the sums they leave to torch.

CPU tensors are accepted only under Triton's interpreter (TRITON_INTERPRET=1 before the first
import).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import BackendError
from .._triton import check, on, triton, usable
from . import _fused
from ._around import hole_sizes, step_sizes
from ._inputs import Inputs, Outputs
from ._opaque import Gradients, Results, run

__all__ = ["backward", "forward", "scan", "usable"]

_KEEP = 8  # steps between two kept states: the scratch of all programs fits a level-2 cache
_WIDE_BLOCK, _NARROW_BLOCK = 32, 8  # channels per program
_MANY = 1 << 15  # sequences times channels that fill a GPU with wide blocks


def _rows(tensor: Tensor) -> Tensor:
    """In float32, of unit stride along the last axis."""
    tensor = tensor.detach().float()
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


class _Call:
    """Tensors, strides and constants that both kernels take."""

    def __init__(self, x: Inputs) -> None:
        if x.u.dtype == torch.float64:
            raise BackendError("the triton scan has no float64: use backend='chunked'")
        (self.b, self.steps, self.e), self.n, self.groups = x.u.shape, x.A.shape[1], x.B.shape[1]
        few = self.b * self.e < _MANY
        self.block = _NARROW_BLOCK if few else _WIDE_BLOCK
        self.wide = triton.next_power_of_2(self.n)
        share = self.e // self.groups
        self.blocks = triton.cdiv(share, self.block)
        u, raw, B, C = (_rows(t) for t in (x.u, x.delta, x.B, x.C))
        z = u if x.z is None else _rows(x.z)
        A = x.A.detach().float().contiguous()
        check(A)
        none = A.new_zeros(self.e)
        D, bias = (
            none if t is None else t.detach().float().contiguous() for t in (x.D, x.delta_bias)
        )
        given = x.gap is not None and x.gap.is_floating_point()
        mode, base, gap, hole = _fused.NO_HOLE, none, none, u
        if given:
            assert x.gap is not None
            mode, hole = _fused.GIVEN, _rows(x.gap)
        elif x.gap is not None and x.gap_mode != "hold":
            gap = x.gap.to(torch.int32).contiguous()
            mode = _fused.CURRENT if x.gap_mode == "current" else _fused.BASE
            if mode == _fused.BASE:
                base = F.softplus(bias) if x.delta_softplus else bias
        start = none if x.initial_state is None else x.initial_state.detach().float().contiguous()
        self.bias, self.new = bias, A.new_empty
        self.tensors = (u, raw, z, B, C, A, D, bias, base, gap, hole, start)
        self.strides = (
            *(s for t in (u, raw, z, hole) for s in t.stride()[:2]),
            *(s for t in (B, C) for s in t.stride()[:3]),
        )
        self.constants = {
            "SHARE": share,
            "STATES": self.n,
            "WIDE": self.wide,
            "BLOCK": self.block,
            "SOFTPLUS": x.delta_softplus,
            "MODE": mode,
            "REVERSE": x.reverse,
            "GATED": x.z is not None,
            "START": x.initial_state is not None,
        }

    def launch(self, kernel: Any, *arguments: Any, **constants: Any) -> None:
        device = self.tensors[0].device
        with on(device):
            kernel[(self.b, self.groups, self.blocks)](
                *self.tensors,
                *arguments,
                self.steps,
                self.groups,
                **self.constants,
                **constants,
                num_warps=1,
            )


def forward(x: Inputs, *, ungated: bool, last_state: bool) -> Results:
    """Outputs in float32; those not asked for are None."""
    call = _Call(x)
    shape, state = (call.b, call.steps, call.e), (call.b, call.e, call.n)
    found = Results(
        out=call.new(shape),
        ungated=call.new(shape) if ungated else None,
        last_state=call.new(state) if last_state else None,
    )
    if call.b == 0:
        return found
    none = found.out
    outputs = [none if t is None else t for t in (found.out, found.ungated, found.last_state)]
    call.launch(_fused.forward, *outputs, *call.strides, UNGATED=ungated, LAST=last_state)
    return found


def backward(
    x: Inputs, out: Tensor | None, ungated: Tensor | None, last_state: Tensor | None
) -> Gradients:
    """Gradients of every float argument in float32, given those of the outputs."""
    call = _Call(x)
    b, length, e, n, groups = call.b, call.steps, call.e, call.n, call.groups
    mode = call.constants["MODE"]
    ups = [None if t is None else _rows(t) for t in (out, ungated)]
    up_last = None if last_state is None else last_state.float().contiguous()
    u = call.tensors[0]
    tile = (call.block, call.wide)
    programs = b * groups * call.blocks
    kept = call.new(programs, -(-length // _KEEP), *tile)
    scratch = call.new(programs, _KEEP, *tile)
    row, state = (b, length, e), (b, e, n)
    u_grad, raw_grad = call.new(row), call.new(row)
    z_grad = None if x.z is None else call.new(row)
    hole_grad = call.new(row) if mode == _fused.GIVEN else None
    parts = call.new(2, b, groups, call.blocks, length, n)
    A_grad, start_grad = call.new(state), call.new(state) if call.constants["START"] else None
    over = torch.zeros(3, b, e, device=u.device)  # of D, the bias and the base
    grads = [u_grad, raw_grad, z_grad, hole_grad, parts[0], parts[1], A_grad, *over, start_grad]
    if b:
        call.launch(
            _fused.backward,
            *(u if t is None else t for t in (*ups, up_last)),
            kept,
            scratch,
            *(u if t is None else t for t in grads),
            *call.strides,
            *(s for t in ups for s in (u if t is None else t).stride()[:2]),
            KEEP=_KEEP,
            UP=out is not None,
            UNGATED=ungated is not None,
            LAST=last_state is not None,
        )
    D_grad, bias_grad, base_grad = (t.sum(0) for t in over)
    if mode == _fused.BASE:
        bias_grad = bias_grad + (call.bias.sigmoid() if x.delta_softplus else 1.0) * base_grad
    B_grad, C_grad = parts.sum(3)
    return Gradients(
        u=u_grad,
        delta=raw_grad,
        A=A_grad.sum(0),
        B=B_grad,
        C=C_grad,
        D=D_grad,
        z=z_grad,
        delta_bias=bias_grad,
        gap=hole_grad,
        initial_state=start_grad,
    )


def _with_holes(x: Inputs) -> Inputs:
    """Rules that look at other tokens give G as it is, with its own gradient."""
    if x.gap is None or x.gap.is_floating_point() or x.gap_mode not in ("previous", "mean"):
        return x
    delta = step_sizes(x)
    hole = hole_sizes(x, delta.flip(1) if x.reverse else delta)
    assert hole is not None
    return replace(x, gap=hole.flip(1) if x.reverse else hole)


def scan(x: Inputs, *, ungated: bool, last_state: bool) -> Outputs:
    """Outputs, those wanted at least."""
    return run(_with_holes(x), "triton", ungated=ungated, last_state=last_state)
