"""The recurrence in plain torch, all chunks of 16 steps at once: a graph that exports and compiles.

Inside a chunk, h_s = P_s H + l_s: l starts from zero, H is the state before the chunk, and P_s is
the product of the decays up to s. Only exponents of decay times A occur: dividing by such products,
or subtracting their logarithms, overflows as soon as a chunk forgets its start.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ._around import per_channel, run
from ._inputs import Inputs, Outputs

_STEPS = 16


def usable() -> str | None:
    """None: plain torch runs everywhere."""
    return None


def _recurrence(
    decay: Float[Tensor, "b l e"],
    drive: Float[Tensor, "b l e"],
    A: Float[Tensor, "e n"],
    B: Float[Tensor, "b g l n"],
    C: Float[Tensor, "b g l n"],
    state: Float[Tensor, "b e n"],
) -> tuple[Float[Tensor, "b l e"], Float[Tensor, "b e n"]]:
    length, e = decay.shape[1:]
    chunks = -(-length // _STEPS)

    def split(x: Tensor) -> Tensor:
        """(b, l, ...) to (b, chunks, steps, ...); steps beyond the end change no state."""
        padding = [0, 0] * (x.dim() - 2) + [0, chunks * _STEPS - length]
        whole: Tensor = F.pad(x, padding)
        return whole.reshape(x.shape[0], chunks, _STEPS, *x.shape[2:])

    # Taken apart once: the gradient of `unbind` is one `stack`, of an index a full tensor each.
    factors = (split(decay)[..., None] * A).exp().unbind(2)
    shares = (split(drive)[..., None] * split(per_channel(B, e))).unbind(2)
    product, local = [factors[0]], [shares[0]]
    for factor, share in zip(factors[1:], shares[1:], strict=True):
        product.append(factor * product[-1])
        local.append(factor * local[-1] + share)
    before = []
    for whole, end in zip(product[-1].unbind(1), local[-1].unbind(1), strict=True):
        before.append(state)
        state = whole * state + end
    start = torch.stack(before, 1)
    rows = [
        (c * (p * start + h)).sum(-1)
        for c, p, h in zip(split(per_channel(C, e)).unbind(2), product, local, strict=True)
    ]
    return torch.stack(rows, 2).flatten(1, 2)[:, :length], state


def scan(x: Inputs, *, ungated: bool, last_state: bool) -> Outputs:
    """All outputs, wanted or not, differentiable by autograd."""
    return run(x, _recurrence)
