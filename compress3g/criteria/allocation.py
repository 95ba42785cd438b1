"""How many units of each group stay, when no single ranking decides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from ..core import Budget, Gates, Keep, Units
from ..errors import BudgetError


def best(scores: Tensor, count: int) -> Tensor:
    """Ascending indices of the `count` largest; ties go to the lower index."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def by_layer(scores: Gates, units: Sequence[Units], budget: Budget) -> Keep:
    """Every layer keeps the same share of its cost (AMP, 2504.21174).

    A layer is what shares `Units.inside`. Small groups first: the best round(keep n) of each; the
    largest group (the neurons) makes up for what rounding the heads gave away or took.
    Raises BudgetError with the smallest feasible share when the floors of a layer do not fit.
    """
    layers: dict[str, list[Units]] = {}
    for u in units:
        layers.setdefault(u.inside or u.name, []).append(u)
    keep: Keep = {}
    for layer, members in layers.items():
        floors = [(u, min(budget.floor, u.size) * u.cost[budget.kind]) for u in members]
        whole = sum(u.cost[budget.kind] * u.size for u in members)
        left, reserved = budget.keep * whole * (1 + 1e-9), sum(cost for _, cost in floors)
        if reserved > left:
            raise BudgetError(
                f"{layer} cannot keep {budget.keep} of its {budget.kind}: the smallest that is "
                f"feasible is {reserved / whole + 5e-5:.4f}"
            )
        *rounded, last = sorted(floors, key=lambda pair: pair[0].size)
        for u, floor in rounded:
            reserved -= floor
            fits = math.floor((left - reserved) / u.cost[budget.kind])
            count = max(min(budget.floor, u.size), min(round(budget.keep * u.size), fits))
            keep[u.name] = best(scores[u.name], count)
            left -= count * u.cost[budget.kind]
        fits = math.floor(left / last[0].cost[budget.kind])
        keep[last[0].name] = best(scores[last[0].name], min(last[0].size, fits))
    return {u.name: keep[u.name] for u in units}


def pq_index(w: Tensor, *, p: float = 0.5, q: float = 1.0) -> float:
    """I(w) = 1 - d^(1/q - 1/p) ||w||_p / ||w||_q, 0 < p < q (2302.05601, definition 1).

    0 for a constant vector, towards 1 the fewer entries hold its norm; 0 for zeros.

    >>> import torch
    >>> pq_index(torch.ones(8))
    0.0
    """
    size = w.detach().double().abs()
    if not bool(size.any()):
        return 0.0
    size = size / size.max()
    norm_p, norm_q = (float(size.pow(r).sum().pow(1 / r)) for r in (p, q))
    scale = float(len(size) ** (1 / q - 1 / p))
    return max(0.0, 1 - scale * norm_p / norm_q)


def pq_kept(
    w: Tensor,
    *,
    p: float = 0.5,
    q: float = 1.0,
    eta: float = 0.0,
    gamma: float = 1.0,
    beta: float = 0.9,
) -> int:
    """How many entries of w its PQ index says are needed (SAP, 2302.05601, algorithm 1).

    r = d (1 + eta)^(-q/(q-p)) (1 - I)^(pq/(q-p));  floor(d min(gamma (1 - r/d), beta)) are pruned.
    """
    d = len(w)
    wide = float((1 + eta) ** (-q / (q - p)))
    r = d * wide * float((1 - pq_index(w, p=p, q=q)) ** (p * q / (q - p)))
    share = min(max(gamma * (1 - r / d), 0.0), beta)
    return d - math.floor(d * share)


def by_pq_index(scores: Gates, units: Sequence[Units], budget: Budget) -> Keep:
    """Groups with concentrated scores lose more, as the PQ index of their scores says.

    The paper prunes what `pq_kept` names at gamma = 1, round after round; here one round meets
    the budget: gamma is the smallest, by bisection, whose cost fits.
    Raises BudgetError when even gamma at its limit (every group at floor) does not fit.
    """
    total = budget.keep * sum(u.cost[budget.kind] * u.size for u in units) * (1 + 1e-9)

    def counts(gamma: float) -> Mapping[str, int]:
        return {
            u.name: max(budget.floor, min(u.size, pq_kept(scores[u.name], gamma=gamma, beta=1.0)))
            for u in units
        }

    def cost(gamma: float) -> float:
        kept = counts(gamma)
        return sum(u.cost[budget.kind] * kept[u.name] for u in units)

    low, high = 0.0, 1.0
    while cost(high) > total:
        low, high = high, high * 2
        if high > 1e12:
            raise BudgetError(
                f"scores so even that the PQ index prunes nothing cannot keep {budget.keep} of "
                f"{budget.kind}: allocate by a ranking"
            )
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) > total else (low, middle)
    return {name: best(scores[name], count) for name, count in counts(high).items()}
