"""What lies around the recurrence, in differentiable torch; backends differ in the recurrence."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ._inputs import Inputs, Outputs

# (decay, drive, A, B, C, h_0) to every y and the last h, in the order of the steps:
# h_k = exp(decay_k A) h_{k-1} + drive_k B_k, y_k = C_k . h_k.
Recurrence = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def per_channel(x: Float[Tensor, "b g l n"], channels: int) -> Float[Tensor, "b l _e n"]:
    """B or C of each channel; one broadcast channel when there is one group."""
    b, groups, length, n = x.shape
    x = x.transpose(1, 2)
    if groups == 1:
        return x
    wide = x[:, :, :, None].expand(b, length, groups, channels // groups, n)
    return wide.reshape(b, length, channels, n)


def step_sizes(x: Inputs) -> Float[Tensor, "b l e"]:
    """Delta_k = softplus(delta + bias)."""
    delta = x.delta.to(x.dtype)
    if x.delta_bias is not None:
        delta = delta + x.delta_bias.to(x.dtype)
    return F.softplus(delta) if x.delta_softplus else delta


def hole_sizes(x: Inputs, delta: Float[Tensor, "b l e"]) -> Float[Tensor, "b l e"] | None:
    """G_k, the decay over the positions missing before step k; all in the order of the steps."""
    if x.gap is None:
        return None
    gap = x.gap.flip(1) if x.reverse else x.gap
    gap = gap.to(x.dtype)
    if x.gap.is_floating_point():
        return gap
    if x.gap_mode == "hold":
        return None
    if x.gap_mode == "previous":
        per_position = torch.cat([torch.zeros_like(delta[:, :1]), delta[:, :-1]], 1)
    elif x.gap_mode == "mean":
        per_position = delta.mean(1, keepdim=True)
    elif x.gap_mode == "bias":
        assert x.delta_bias is not None  # refused by check()
        bias = x.delta_bias.to(x.dtype)
        per_position = F.softplus(bias) if x.delta_softplus else bias
    else:
        per_position = delta
    return gap[:, :, None] * per_position


def run(x: Inputs, recurrence: Recurrence) -> Outputs:
    """The whole operation around one backend's recurrence."""
    b, length, e = x.u.shape
    u, delta = x.u.to(x.dtype), step_sizes(x)
    B, C = (t.to(x.dtype) for t in (x.B, x.C))
    if x.reverse:
        u, delta, B, C = u.flip(1), delta.flip(1), B.flip(2), C.flip(2)
    state = x.initial_state
    state = u.new_zeros(b, e, x.A.shape[1]) if state is None else state.to(x.dtype)
    hole = hole_sizes(x, delta)
    decay, y = delta if hole is None else delta + hole, delta * u
    if length:
        y, state = recurrence(decay, y, x.A.to(x.dtype), B, C, state)
    if x.D is not None:
        y = y + x.D.to(x.dtype) * u
    if x.reverse:
        y = y.flip(1)
    ungated = y.to(x.u.dtype)
    if x.z is None:
        return Outputs(out=ungated, ungated=ungated, last_state=state)
    out = (y * F.silu(x.z.to(x.dtype))).to(x.u.dtype)
    return Outputs(out=out, ungated=ungated, last_state=state)
