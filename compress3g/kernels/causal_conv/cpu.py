"""The convolution in C: tokens split between threads, strips of channels for the weights."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ...errors import BackendError
from .._library import POINTER, address, function, isa, status
from .._parallel import parallel_for
from ._opaque import Inputs, run

_TAPS = 16  # most, as in body.h
_LANES = {"scalar": 4, "avx2": 8, "avx512": 16, "icelake": 16}
_GRAIN = 1 << 15  # products worth a thread


def usable() -> str | None:
    """None, or why the compiled library is not there."""
    return status()


class _Conv(ctypes.Structure):
    _fields_ = [
        ("x", ctypes.c_void_p),
        ("x_batch", ctypes.c_int64),
        ("x_step", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "position")),
        *((name, ctypes.c_int64) for name in ("batches", "steps", "channels", "taps")),
        *((name, ctypes.c_int64) for name in ("hold", "reverse", "silu")),
        ("upstream", ctypes.c_void_p),
    ]


class _Call:
    """The C structure of one call, and the tensors whose memory it points to."""

    def __init__(self, x: Inputs) -> None:
        taps = x.weight.shape[1]
        if taps > _TAPS or x.x.dtype == torch.float64:
            raise BackendError(
                f"the compiled convolution has at most {_TAPS} taps in float32, got {taps} in "
                f"{x.x.dtype}: use backend='reference'"
            )
        rows = x.x.to(torch.float32)
        self.rows = rows if rows.stride(-1) == 1 else rows.contiguous()
        self.weight = x.weight.t().to(torch.float32).contiguous()
        self.bias = None if x.bias is None else x.bias.to(torch.float32).contiguous()
        self.positions = None if x.positions is None else x.positions.long().contiguous()
        b, length, e = rows.shape
        self.conv = _Conv(
            self.rows.data_ptr(),
            *self.rows.stride()[:2],
            address(self.weight),
            address(self.bias),
            address(self.positions),
            *(b, length, e, taps),
            *(x.mode == "hold", x.reverse, x.silu),
        )

    def over_tokens(self, name: str) -> Tensor:
        out = torch.empty(self.rows.shape)
        b, length, e = self.rows.shape
        parallel_for(
            function(name, (POINTER, POINTER)),
            b * length,
            ctypes.addressof(self.conv),
            address(out),
            grain=max(1, _GRAIN // max(1, e * self.conv.taps)),
        )
        return out


def forward(x: Inputs) -> Tensor:
    """The result in float32."""
    return _Call(x).over_tokens("causal_conv_forward")


def backward(x: Inputs, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias in float32."""
    call = _Call(x)
    conv, e = call.conv, x.x.shape[2]
    upstream = upstream.to(torch.float32).contiguous()
    conv.upstream = address(upstream)
    if x.silu:
        upstream = call.over_tokens("causal_conv_forward")
        conv.upstream = address(upstream)
    x_grad = call.over_tokens("causal_conv_input_grad")
    weight_grad, bias_grad = torch.empty(conv.taps, e), torch.empty(e)
    parallel_for(
        function("causal_conv_weight_grad", (POINTER, POINTER, POINTER)),
        -(-e // (4 * _LANES[isa()])),
        ctypes.addressof(conv),
        address(weight_grad),
        address(bias_grad),
        grain=1,
    )
    return x_grad, weight_grad.t().contiguous(), bias_grad


def convolve(x: Inputs) -> Tensor:
    """The result, in the type of x."""
    return run(x, "cpu")
