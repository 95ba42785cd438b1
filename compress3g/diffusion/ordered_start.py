"""Where masks may start: in the order of a score, instead of all alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..core import Gates, Units, open_ratio
from ..errors import ScoreError

_HALVINGS = 40  # of the interval in which the shift lies


def ordered_logits(
    scores: Mapping[str, Tensor],
    units: Sequence[Units],
    *,
    cost: str,
    slope: float,
    share: float,
    opened: Callable[[Tensor], Tensor],
) -> Gates:
    """Logits of every group whose expected open share of the cost is `share`.

        logit_i = slope (Phi^-1((rank_i + 1/2) / n) - t)

    with the rank of a unit's score over its cost among all n units, and t by bisection. Units far
    from the border are all but decided, those near it are drawn open and closed. The scale of a
    score does not matter, its order does.

    scores: one number per unit, higher stays; opened: logits to probabilities that a gate is not
    0. Raises ScoreError for groups without a score, or with one that is not a number per unit.
    """
    for u in units:
        found = scores.get(u.name)
        if found is None or found.shape != (u.size,) or not bool(found.isfinite().all()):
            raise ScoreError(f"the start has no {u.size} finite scores for {u.name!r}")
    flat = torch.cat([scores[u.name].detach().cpu().double() / u.cost[cost] for u in units])
    rank = flat.argsort(stable=True).argsort().double()
    order = torch.special.ndtri((rank + 0.5) / len(rank))
    sizes = [u.size for u in units]

    def shifted(t: float) -> Gates:
        parts = (slope * (order - t)).float().split(sizes)
        return {u.name: part for u, part in zip(units, parts, strict=True)}

    def left(t: float) -> float:
        gates = {name: opened(z) for name, z in shifted(t).items()}
        return float(open_ratio(gates, units, cost))

    low, high = -30.0, 30.0  # the order lies within, and gates saturate
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if left(middle) > share else (low, middle)
    return shifted(low)
