"""The update in C: one pass over the gradient, the rest of memory only where it is not zero."""

from __future__ import annotations

import ctypes

from jaxtyping import Float
from torch import Tensor

from .._library import POINTER, address, function, status
from .._parallel import parallel_for


class _Adam(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_float) for name in ("rate", "beta1", "beta2", "root_correction", "epsilon")
    ]


def usable() -> str | None:
    """None, or why the compiled library is not there."""
    return status()


def step(
    value: Float[Tensor, "..."],
    grad: Float[Tensor, "..."],
    first: Float[Tensor, "..."],
    second: Float[Tensor, "..."],
    *,
    rate: float,
    betas: tuple[float, float],
    root_correction: float,
    epsilon: float,
) -> None:
    """The update of `reference.step`, in place."""
    settings = _Adam(rate, *betas, root_correction, epsilon)
    parallel_for(
        function("adam_sparse", [POINTER] * 5),
        value.numel(),
        *map(address, (value, grad, first, second)),
        ctypes.addressof(settings),
        grain=1 << 15,
    )
