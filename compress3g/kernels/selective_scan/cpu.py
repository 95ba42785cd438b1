"""The scan in C: strips of channels split between threads; gradients of B and C in fixed parts."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import BackendError
from .._library import INTEGER, POINTER, address, function, isa, status
from .._parallel import parallel_for
from ._inputs import Inputs, Outputs
from ._opaque import Gradients, Results, run

_STATES = 256  # most, as in body.h
_KEPT = 65536
_STEPS = 512
_LANES = {"scalar": 4, "avx2": 8, "avx512": 16, "icelake": 16}
_WORK = 1 << 15  # exponentials worth a thread
_TASKS = 8  # parts of the backward pass, at least, whatever the number of threads


def usable() -> str | None:
    """None, or why the compiled library is not there."""
    return status()


class _Rows(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("step", ctypes.c_int64),
    ]


class _Scan(ctypes.Structure):
    _fields_ = [
        *((name, _Rows) for name in ("u", "delta", "z", "B", "C", "hole")),
        *((name, ctypes.c_void_p) for name in ("A", "D", "bias", "state", "gap")),
        *((name, ctypes.c_int64) for name in ("steps", "channels", "states", "groups")),
        *((name, ctypes.c_int64) for name in ("softplus", "mode", "reverse")),
        *((name, ctypes.c_void_p) for name in ("out", "ungated", "last")),
    ]


class _Gradient(ctypes.Structure):
    _fields_ = [
        ("out", _Rows),
        ("ungated", _Rows),
        ("last", ctypes.c_void_p),
        ("parts", ctypes.c_int64),
        *(
            (name, ctypes.c_void_p)
            for name in ("u", "delta", "z", "hole", "B", "C", "A", "D", "bias", "state")
        ),
        ("remembered", ctypes.c_void_p),
    ]


# As in body.h; "hold" is no gap at all.
_MODES = {"current": 2, "previous": 3, "mean": 4, "bias": 5}


class _Call:
    """The C structure of one call, and the tensors whose memory it points to."""

    def __init__(self, x: Inputs) -> None:
        self._held: list[Tensor] = []
        self.lanes = _LANES[isa()]
        self.strips = -(-x.u.shape[2] // x.B.shape[1] // self.lanes)  # of one group
        self.scan = _Scan()
        for name in ("u", "delta", "z", "B", "C"):
            setattr(self.scan, name, self.rows(getattr(x, name)))
        given = x.gap is not None and x.gap.is_floating_point()
        if given:
            self.scan.hole, self.scan.mode = self.rows(x.gap), 1
        elif x.gap is not None and x.gap_mode != "hold":
            self.scan.gap, self.scan.mode = self.packed(x.gap, torch.int64), _MODES[x.gap_mode]
        self.scan.A, self.scan.D = self.packed(x.A), self.packed(x.D)
        self.scan.bias, self.scan.state = self.packed(x.delta_bias), self.packed(x.initial_state)
        self.scan.steps, self.scan.channels = x.u.shape[1], x.u.shape[2]
        self.scan.states, self.scan.groups = x.A.shape[1], x.B.shape[1]
        self.scan.softplus, self.scan.reverse = x.delta_softplus, x.reverse

    def rows(self, tensor: Tensor | None) -> _Rows:
        """Rows of unit stride along the last axis, copied only if they are not that."""
        if tensor is None:
            return _Rows()
        if tensor.dtype != torch.float32:
            tensor = tensor.float()
        if tensor.stride(-1) != 1:
            tensor = tensor.contiguous()
        self._held.append(tensor)
        batch, *group, step, _ = tensor.stride()
        return _Rows(tensor.data_ptr(), batch, *(group or [0]), step)

    def packed(self, tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> int | None:
        if tensor is None:
            return None
        if tensor.dtype != dtype:
            tensor = tensor.to(dtype)
        if not tensor.is_contiguous():
            tensor = tensor.contiguous()
        self._held.append(tensor)
        return tensor.data_ptr()


def _refuse_wide(x: Inputs) -> None:
    if x.A.shape[1] > _STATES or x.u.dtype == torch.float64:
        raise BackendError(
            f"the compiled scan has at most {_STATES} states in float32, got {x.A.shape[1]} in "
            f"{x.u.dtype}: use backend='chunked'"
        )


def forward(x: Inputs, *, ungated: bool, last_state: bool) -> Results:
    """Outputs in float32; those not asked for are None."""
    _refuse_wide(x)
    call = _Call(x)
    b, length, e = x.u.shape
    found = Results(
        out=torch.empty(b, length, e),
        ungated=torch.empty(b, length, e) if ungated else None,
        last_state=torch.empty(b, e, x.A.shape[1]) if last_state else None,
    )
    scan = call.scan
    scan.out, scan.ungated = address(found.out), address(found.ungated)
    scan.last = address(found.last_state)
    parallel_for(
        function("selective_scan_forward", [POINTER]),
        b * call.strips * scan.groups,
        ctypes.addressof(scan),
        grain=max(1, _WORK // max(1, length * scan.states * call.lanes)),
    )
    return found


def _summed(parts: Float[Tensor, "outer parts size"]) -> Float[Tensor, "outer size"]:
    outer, count, size = parts.shape
    if count == 1:
        return parts[:, 0]
    if parts.numel() == 0:
        return parts.new_zeros(outer, size)
    out = torch.empty(outer, size)
    parallel_for(
        function("selective_scan_sum", (POINTER, INTEGER, INTEGER, POINTER)),
        outer,
        address(parts),
        count,
        size,
        address(out),
        grain=1,
    )
    return out


def backward(
    x: Inputs,
    out: Tensor | None,
    ungated: Tensor | None,
    last_state: Tensor | None,
) -> Gradients:
    """Gradients of every float argument in float32, given those of the outputs."""
    call = _Call(x)
    scan, lanes = call.scan, call.lanes
    (b, length, e), n, groups = x.u.shape, x.A.shape[1], x.B.shape[1]
    # Of the shape alone: what is added up, and in which order, must not depend on threads.
    parts = max(1, min(call.strips, -(-_TASKS // max(1, b * groups))))
    block = min(_STEPS, _KEPT // (n * lanes))
    later_blocks = max(0, -(-length // block) - 1)
    remembered = torch.empty(b, call.strips * groups, later_blocks, n + 1, lanes)
    few = torch.zeros(2, b * groups, parts, length * n)
    wide: dict[str, Any] = {
        "u": torch.empty(b, length, e),
        "delta": torch.empty(b, length, e),
        "z": None if x.z is None else torch.empty(b, length, e),
        "hole": torch.empty(b, length, e) if scan.mode == 1 else None,
        "A": torch.empty(b, e, n),
        "D": torch.empty(b, e),
        "bias": torch.empty(b, e),
        "state": None if x.initial_state is None else torch.empty(b, e, n),
        "B": few[0],
        "C": few[1],
    }
    gradient = _Gradient()
    gradient.out, gradient.ungated = call.rows(out), call.rows(ungated)
    gradient.last, gradient.parts = call.packed(last_state), parts
    for name, tensor in wide.items():
        setattr(gradient, name, address(tensor))
    gradient.remembered = address(remembered) if later_blocks else None
    parallel_for(
        function("selective_scan_backward", [POINTER, POINTER]),
        b * groups * parts,
        ctypes.addressof(scan),
        ctypes.addressof(gradient),
        grain=1,
        piece=1,
    )
    return _gathered(x, wide)


def _gathered(x: Inputs, wide: dict[str, Any]) -> Gradients:
    """Sums over parts and sequences."""
    e, n = x.A.shape
    over_parts = {k: _summed(wide[k]).view(x.B.shape) for k in ("B", "C")}
    over_batch = {k: _summed(wide[k].flatten(1)[None])[0] for k in ("A", "D", "bias")}
    return Gradients(
        u=wide["u"],
        delta=wide["delta"],
        A=over_batch["A"].view(e, n),
        D=over_batch["D"],
        z=wide["z"],
        delta_bias=over_batch["bias"],
        gap=wide["hole"],
        initial_state=wide["state"],
        **over_parts,
    )


def scan(x: Inputs, *, ungated: bool, last_state: bool) -> Outputs:
    """Outputs, those wanted at least."""
    return run(x, "cpu", ungated=ungated, last_state=last_state)
