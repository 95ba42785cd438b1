"""The update in Triton: one pass over the gradient, the rest of memory only where it is not zero.

CPU tensors are accepted only under Triton's interpreter (TRITON_INTERPRET=1 before the first
import).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from .._triton import check, jit, on, tl, triton, usable

__all__ = ["step", "usable"]

_BLOCK = 1024  # numbers per program


@jit
def _step(  # type: ignore[no-untyped-def]
    value, grad, first, second, count, rate, beta1, rest1, beta2, rest2, root, epsilon,
    BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(grad + place, mask=place < count, other=0.0)
    touched = g != 0.0
    m = beta1 * tl.load(first + place, mask=touched, other=0.0) + rest1 * g
    v = beta2 * tl.load(second + place, mask=touched, other=0.0) + rest2 * g * g
    old = tl.load(value + place, mask=touched, other=0.0)
    tl.store(value + place, old - rate * m / (tl.sqrt(v) * root + epsilon), mask=touched)
    tl.store(first + place, m, mask=touched)
    tl.store(second + place, v, mask=touched)
    tl.store(grad + place, g * 0.0, mask=touched)


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
    check(value, grad, first, second)
    count = value.numel()
    if count == 0:
        return
    beta1, beta2 = betas
    with on(value.device):
        _step[(triton.cdiv(count, _BLOCK),)](
            *(value, grad, first, second, count, rate),
            *(beta1, 1 - beta1, beta2, 1 - beta2, root_correction, epsilon),
            BLOCK=_BLOCK,
        )
