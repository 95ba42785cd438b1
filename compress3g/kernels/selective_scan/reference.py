"""The recurrence step by step in plain torch: the truth for tests, in double precision too."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ._around import per_channel, run
from ._inputs import Inputs, Outputs


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
    B, C = per_channel(B, A.shape[0]), per_channel(C, A.shape[0])
    rows = []
    for k in range(decay.shape[1]):
        state = (decay[:, k, :, None] * A).exp() * state + drive[:, k, :, None] * B[:, k]
        rows.append((C[:, k] * state).sum(-1))
    return torch.stack(rows, 1), state


def scan(x: Inputs, *, ungated: bool, last_state: bool) -> Outputs:
    """All outputs, wanted or not, differentiable by autograd."""
    return run(x, _recurrence)
