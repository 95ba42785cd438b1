"""The selective scan, whichever backend runs it."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Shaped
from torch import Tensor

from ..cost import spend
from ..registry import pick
from ._inputs import GapMode, Inputs
from ._opaque import flops


def selective_scan(
    u: Float[Tensor, "b l e"],
    delta: Float[Tensor, "b l e"],
    A: Float[Tensor, "e n"],
    B: Float[Tensor, "b l n"] | Float[Tensor, "b g l n"],
    C: Float[Tensor, "b l n"] | Float[Tensor, "b g l n"],
    D: Float[Tensor, "e"] | None = None,
    z: Float[Tensor, "b l e"] | None = None,
    *,
    delta_bias: Float[Tensor, "e"] | None = None,
    delta_softplus: bool = False,
    gap: Shaped[Tensor, "b l"] | Float[Tensor, "b l e"] | None = None,
    gap_mode: GapMode = "current",
    reverse: bool = False,
    initial_state: Float[Tensor, "b e n"] | None = None,
    return_last_state: bool = False,
    return_ungated: bool = False,
    backend: str = "auto",
) -> Any:  # Tensor or tuple[Tensor, ...]
    """Outputs of a selective state-space model, differentiable in every float argument.

        h_k = exp((Delta_k + G_k) A) h_{k-1} + Delta_k B_k u_k,   y_k = C_k . h_k + D u_k

    and y_k silu(z_k) with a gate z (Mamba 2312.00752, algorithm 2; the hole's decay G after
    2409.18962). Delta = softplus(delta + delta_bias), or without the softplus. Groups split the
    channels of B and C evenly.

    gap: number of positions missing before each token in the order of the scan, from which
    gap_mode forms G: "current" gap_k Delta_k, "previous" gap_k Delta_{k-1}, "mean" gap_k times the
    mean Delta of the sequence, "bias" gap_k softplus(delta_bias), "hold" 0. A float gap is G.
    reverse: scans from the last token; a gap then counts what is missing after the token.
    return_ungated, return_last_state: also y before the gate, and the state (float32) after the
    last step: then a tuple (out[, ungated][, last state]).
    backend: "auto" is the first usable one of the device; `compress3g doctor` names it.

    16-bit inputs are calculated in float32, and the outputs have the type of u.
    Raises ConfigError on shapes that do not fit, BackendError when the backend cannot run.

    >>> import torch
    >>> one = torch.ones(1, 3, 1)
    >>> selective_scan(one, one, -torch.ones(1, 1), one, one).flatten()
    tensor([1.0000, 1.3679, 1.5032])
    """
    B, C = (t[:, None] if t.dim() == 3 else t for t in (B, C))
    x = Inputs(
        u=u,
        delta=delta,
        A=A,
        B=B,
        C=C,
        D=D,
        z=z,
        delta_bias=delta_bias,
        gap=gap,
        initial_state=initial_state,
        delta_softplus=delta_softplus,
        gap_mode=gap_mode,
        reverse=reverse,
    )
    x.check()
    with spend("selective_scan", lambda: flops(x)):
        found = pick("selective_scan", u.device, backend).scan(
            x, ungated=return_ungated, last_state=return_last_state
        )
    wanted = [found.out]
    if return_ungated:
        wanted.append(found.ungated)
    if return_last_state:
        wanted.append(found.last_state)
    return wanted[0] if len(wanted) == 1 else tuple(wanted)
