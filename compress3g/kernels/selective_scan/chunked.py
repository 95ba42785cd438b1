"""The recurrence in plain torch, all chunks of 16 steps at once: a graph that exports and compiles.

Inside a chunk, h_s = P_s H + l_s: l starts from zero, H is the state before the chunk, and P_s is
the product of the decays up to s. Only exponents of decay times A occur: dividing by such products, or
subtracting their logarithms, overflows as soon as a chunk forgets its start.
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

    B, C = split(per_channel(B, e)), split(per_channel(C, e))
    factor = (split(decay)[..., None] * A).exp()
    share = split(drive)[..., None] * B
    product, local = [factor[:, :, 0]], [share[:, :, 0]]
    for s in range(1, _STEPS):
        product.append(factor[:, :, s] * product[-1])
        local.append(factor[:, :, s] * local[-1] + share[:, :, s])
    before = []
    for c in range(chunks):
        before.append(state)
        state = product[-1][:, c] * state + local[-1][:, c]
    start = torch.stack(before, 1)
    rows = [(C[:, :, s] * (product[s] * start + local[s])).sum(-1) for s in range(_STEPS)]
    return torch.stack(rows, 2).flatten(1, 2)[:, :length], state


def scan(x: Inputs) -> Outputs:
    """All outputs, differentiable by autograd."""
    return run(x, _recurrence)
