"""The causal convolution, whichever backend runs it."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from ...errors import ConfigError
from ..cost import spend
from ..registry import pick
from ._opaque import Inputs
from ._taps import Mode


def causal_conv1d(
    x: Float[Tensor, "b l e"],
    weight: Float[Tensor, "e taps"],
    bias: Float[Tensor, "e"] | None = None,
    *,
    positions: Integer[Tensor, "b l"] | None = None,
    length: int | None = None,
    mode: Mode = "none",
    reverse: bool = False,
    activation: Literal["silu"] | None = None,
    backend: str = "auto",
) -> Float[Tensor, "b l e"]:
    """Each channel convolved with its own taps along l, differentiable in x, weight and bias.

        y_k = bias + sum_d weight[taps-1-d] x(p_k - d)          (reverse: x(p_k + d))

    then silu if that is the activation. x(p) is the token at position p, and 0 before the first.

    positions: place of every token in the full sequence, ascending; length: that of the full
    sequence, to check them against.
    mode: what stands where no token is: "none" closes the holes (positions are ignored), "zero" has
    zeros there, "hold" the last token before the hole in the order of the scan.
    Raises ConfigError on shapes or positions that do not fit, BackendError when the backend cannot
    run.

    >>> x = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1)
    >>> causal_conv1d(x, torch.tensor([[10.0, 1.0]])).flatten()
    tensor([ 1., 12., 24.])
    >>> places = torch.tensor([[0, 1, 5]])
    >>> causal_conv1d(x, torch.tensor([[10.0, 1.0]]), positions=places, mode="zero").flatten()
    tensor([ 1., 12.,  4.])
    """
    _check(x, weight, bias, activation, mode)
    places = None if mode == "none" else _places(x, positions, length, mode)
    inputs = Inputs(
        x=x,
        weight=weight,
        bias=bias,
        positions=places,
        mode=mode,
        reverse=reverse,
        silu=activation == "silu",
    )
    with spend("causal_conv", lambda: inputs.flops):
        return pick("causal_conv", x.device, backend).convolve(inputs)  # type: ignore[no-any-return]


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, mode: str
) -> None:
    if x.dim() != 3 or weight.dim() != 2 or weight.shape[0] != x.shape[2] or not weight.shape[1]:
        raise ConfigError(
            "causal_conv1d needs x (b, l, e) and weight (e, taps), got "
            f"{tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (x.shape[2],):
        raise ConfigError(f"causal_conv1d: bias {tuple(bias.shape)} for {x.shape[2]} channels")
    if activation not in (None, "silu"):
        raise ConfigError(f"causal_conv1d has no activation {activation!r}: use None or 'silu'")
    if mode not in get_args(Mode):
        raise ConfigError(f"causal_conv1d has no mode {mode!r}: use {', '.join(get_args(Mode))}")


def _places(x: Tensor, positions: Tensor | None, length: int | None, mode: str) -> Tensor:
    if positions is None or tuple(positions.shape) != tuple(x.shape[:2]):
        found = "none" if positions is None else str(tuple(positions.shape))
        raise ConfigError(
            f"causal_conv1d: mode {mode!r} needs positions of shape {tuple(x.shape[:2])}, "
            f"got {found}"
        )
    if length is not None and length < x.shape[1]:
        raise ConfigError(f"causal_conv1d: {x.shape[1]} tokens in a sequence of {length}")
    # Words of either length stay: another type would be a launch per call on a GPU.
    return positions if positions.dtype in (torch.int32, torch.int64) else positions.long()
