"""How much may stay, and which: from scores to a decision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import BudgetError, ScoreError
from .masks import Gates
from .units import Units

Keep: TypeAlias = dict[str, Tensor]  # ascending kept indices per Units


@dataclass(frozen=True, slots=True)
class Budget:
    """What may stay.

    keep: fraction of the cost, in (0, 1]; kind: which cost; scope: compare units of all groups or
    within each; floor: units always kept in each non-bypass group; multiple: kept counts are a
    multiple of this where the size allows (8 on tensor cores).
    """

    keep: float
    kind: str = "params"
    scope: Literal["global", "group"] = "global"
    floor: int = 1
    multiple: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise BudgetError(f"a budget keeps a fraction in (0, 1], got {self.keep}")
        if self.floor < 0 or self.multiple < 1:
            raise BudgetError(f"floor {self.floor} and multiple {self.multiple} make no budget")


@dataclass(frozen=True, slots=True)
class Schedule:
    """A value over training steps: constant, a curve, constant; cubic is that of 1710.01878.

    >>> Schedule(1.0, 0.5, begin=0, finish=10, shape="linear").at(5)
    0.75
    """

    start: float
    end: float
    begin: int
    finish: int
    shape: Literal["linear", "cosine", "cubic", "step"] = "cubic"

    def at(self, step: int) -> float:
        """The value at a step."""
        if step >= self.finish:
            return self.end
        if step <= self.begin or self.shape == "step":
            return self.start
        t = (step - self.begin) / (self.finish - self.begin)
        left = {
            "linear": 1 - t,
            "cosine": 0.5 * (1 + math.cos(math.pi * t)),
            "cubic": (1 - t) ** 3,
        }[self.shape]
        return self.end + (self.start - self.end) * left


@dataclass(frozen=True, slots=True)
class _Pool:
    """All units of all groups in one row."""

    score: Float[Tensor, "U"]
    cost: Float[Tensor, "U"]
    group: Int[Tensor, "U"]
    sizes: Int[Tensor, "G"]


def _pool(scores: Gates, units: Sequence[Units], kind: str, normalize: str) -> _Pool:
    parts = []
    for u in units:
        if kind not in u.cost:
            raise ScoreError(f"units {u.name!r} have no cost of kind {kind!r}: price them first")
        s = scores[u.name].detach().double()
        if tuple(s.shape) != (u.size,):
            raise ScoreError(f"scores of {u.name!r} have shape {tuple(s.shape)}, need ({u.size},)")
        if bool(s.isnan().any()):
            raise ScoreError(f"scores of {u.name!r}: {int(s.isnan().sum())} of {u.size} are NaN")
        if normalize == "z":
            s = (s - s.mean()) / s.std(correction=0).clamp_min(1e-12)
        elif normalize == "max":
            s = s / s.abs().max().clamp_min(1e-12)
        parts.append(s)
    device = parts[0].device
    sizes = torch.tensor([u.size for u in units], device=device)
    each = torch.tensor([float(u.cost[kind]) for u in units], device=device, dtype=torch.float64)
    group = torch.repeat_interleave(torch.arange(len(units), device=device), sizes)
    return _Pool(torch.cat(parts), each[group], group, sizes)


def _rank(pool: _Pool, order: Int[Tensor, "U"]) -> Int[Tensor, "U"]:
    """Position of every unit in the order of its own group."""
    # Two bytes per group sort ten times as fast as eight.
    small = pool.group.to(torch.int16 if len(pool.sizes) < 1 << 15 else torch.int64)
    order = order[small[order].argsort(stable=True)]
    first = pool.sizes.cumsum(0) - pool.sizes
    rank = torch.empty_like(order)
    # Sorted by group, the groups stand where they stand in the pool.
    rank[order] = torch.arange(len(order), device=order.device) - first[pool.group]
    return rank


def _take(
    pool: _Pool, order: Tensor, must: Bool[Tensor, "U"], may: Bool[Tensor, "U"], budget: float
) -> Bool[Tensor, "U"]:
    """The `must` units and then the others in order while the running cost fits."""
    floor = float(pool.cost[must].sum())
    left = budget * (1 + 1e-9) - floor
    if left < 0:
        raise BudgetError(
            f"the floor alone costs {floor:.6g} of {budget:.6g}: "
            f"keep at least {floor / float(pool.cost.sum()):.3f}"
        )
    order = order[(may & ~must)[order]]
    fits = pool.cost[order].cumsum(0) <= left
    chosen = must.clone()
    chosen[order[fits]] = True
    return chosen


def select(
    scores: Gates,
    units: Sequence[Units],
    budget: Budget,
    *,
    normalize: Literal["none", "z", "max"] = "none",
    per_cost: bool = False,
) -> Keep:
    """Ascending indices of the best-scoring units that fit the budget, per group.

    global: one stable descending order over all units, floors first, kept while the running cost
    fits. group: the same inside each group. normalize="z" standardises scores within each group
    first (FLAP 2312.11983). per_cost ranks by score / cost. Ties: earlier group, then lower index.
    Children of a dropped bypass group are dropped and their cost returns to the budget once.
    Raises ScoreError on NaN or misshapen scores, BudgetError when the floors do not fit.

    >>> select({"a": torch.tensor([3.0, 1.0, 2.0])}, [Units("a", 3)], Budget(0.7, "units"))
    {'a': tensor([0, 2])}
    """
    pool = _pool(scores, units, budget.kind, normalize)
    key = pool.score / pool.cost.clamp_min(1e-30) if per_cost else pool.score
    # One stable order for everything: ties go to the earlier group, then to the lower index.
    order = key.argsort(descending=True, stable=True)
    rank = _rank(pool, order)
    bypass = torch.tensor([u.bypass is not None for u in units], device=key.device)[pool.group]
    floor = torch.where(bypass, 0, budget.floor)
    if budget.scope == "group":
        count = (pool.sizes.double() * budget.keep + 1e-9).floor().long()[pool.group]
        # A group of one block cannot be kept in part: within groups, blocks stay.
        chosen = bypass | (rank < torch.maximum(count, floor))
    else:
        chosen = _global(pool, order, rank < floor, units, budget)
    if budget.multiple > 1:
        chosen = _round(pool, rank, chosen, bypass, budget)
    parts = chosen.split([u.size for u in units])
    return {u.name: part.nonzero()[:, 0] for u, part in zip(units, parts, strict=True)}


def _global(
    pool: _Pool, order: Tensor, must: Tensor, units: Sequence[Units], budget: Budget
) -> Bool[Tensor, "U"]:
    total = budget.keep * float(pool.cost.sum())
    chosen = _take(pool, order, must, torch.ones_like(must), total)
    names = {u.name: i for i, u in enumerate(units)}
    parents = [(g, names[u.inside]) for g, u in enumerate(units) if u.inside is not None]
    if not parents:
        return chosen
    closed = {p for _, p in parents if not bool(chosen[pool.group == p].any())}
    while inner := {g for g, p in parents if p in closed} - closed:
        closed |= inner
    if not closed:
        return chosen
    # The parents stay closed: with the freed cost one could come back without its children.
    may = ~torch.isin(pool.group, torch.tensor(sorted(closed), device=order.device))
    return _take(pool, order, must & may, may, total) & may


def _round(
    pool: _Pool, rank: Tensor, chosen: Tensor, bypass: Tensor, budget: Budget
) -> Bool[Tensor, "U"]:
    """Kept counts rounded down to the multiple, but not below one multiple or the floor."""
    count = torch.zeros_like(pool.sizes).index_add_(0, pool.group, chosen.long())
    m = budget.multiple
    least = torch.full_like(count, -(-max(budget.floor, 1) // m) * m)
    rounded = torch.where(count > 0, torch.maximum(count // m * m, least), 0)
    allowed = torch.where(pool.sizes >= m, torch.minimum(rounded, pool.sizes), count)[pool.group]
    return torch.where(bypass, chosen, rank < allowed)
