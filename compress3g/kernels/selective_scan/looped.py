"""The recurrence as torch's scan operator: in a graph one node whose body is a step.

What exports to a graph of any length at the size of one step, as ONNX's Scan. To run it in torch
itself is slow: `chunked` is for that.
"""

from __future__ import annotations

import importlib.util

from jaxtyping import Float
from torch import Tensor

from ._around import per_channel, run
from ._inputs import Inputs, Outputs

_OPERATOR = "torch._higher_order_ops.scan"


def usable() -> str | None:
    """None, or why not."""
    return None if importlib.util.find_spec(_OPERATOR) else "this torch has no scan operator"


def _recurrence(
    decay: Float[Tensor, "b l e"],
    drive: Float[Tensor, "b l e"],
    A: Float[Tensor, "e n"],
    B: Float[Tensor, "b g l n"],
    C: Float[Tensor, "b g l n"],
    state: Float[Tensor, "b e n"],
) -> tuple[Float[Tensor, "b l e"], Float[Tensor, "b e n"]]:
    from torch._higher_order_ops.scan import scan as operator

    e = A.shape[0]
    wide = (decay, drive, per_channel(B, e), per_channel(C, e))
    # Lambdas: the operator refuses steps that do anything else, as functions do whose types are
    # checked while they run.
    last, rows = operator(
        lambda before, x: (lambda after: (after, (x[3] * after).sum(-1)))(
            (x[0][..., None] * A).exp() * before + x[1][..., None] * x[2]
        ),
        state,
        tuple(t.transpose(0, 1) for t in wide),
    )
    return rows.transpose(0, 1), last


def scan(x: Inputs, *, ungated: bool, last_state: bool) -> Outputs:
    """All outputs, wanted or not."""
    return run(x, _recurrence)
