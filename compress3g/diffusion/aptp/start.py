"""Where gates can start: at a budget, the units with the largest weights of each group open."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...criteria.magnitude import magnitude
from .codes import Space

_FIRM = 3.0  # a gate of this logit is flipped by the noise once in twenty times
_STEEPNESS = 12.0  # so half of a group's units lie between firmly open and firmly closed
_GOLDEN = 0.6180339887498949  # whose multiples are spread evenly between 0 and 1
_ROUNDS = 40  # of bisection


def by_magnitude(
    denoiser: nn.Module, space: Space, target: float, *, staggered: bool = False
) -> Float[Tensor, "U"]:
    """What GS takes, bias included, where `target` of the multiply-adds stays; blocks stay (ours).

    `SoftCode.inverse` makes logits of it. The share q of every group is open, those with the
    largest weights first. Gates are firm: the noise of those in the middle makes another network in
    every step, and at a small budget none of these can draw anything, so that no gate learns what
    it is for.

    staggered: groups of a size lose their next unit one after the other as the target falls. At
    once, as without, sizes come in steps, and two codes of unlike targets can be the same.
    """
    ranks = []
    for i, u in enumerate(u for u in space.units if u.bypass is None):
        scores = magnitude(denoiser, [u])[u.name]
        places = scores.argsort(descending=True, stable=True).argsort()
        ranks.append((places + ((i * _GOLDEN) % 1 if staggered else 0.5)) / u.size)
    rank = torch.cat(ranks)
    blocks = torch.full((len(space.order),), _FIRM)
    low, high = 0.0, 1.0
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        gates = dict(zip(_names(space), (rank < middle).float().split(_sizes(space)), strict=True))
        for name, gate in gates.items():
            if not gate.any():
                gates[name] = gate.index_fill(0, gate.new_zeros(1, dtype=torch.long), 1.0)
        gates |= {u.name: torch.ones(1) for u in space.units if u.bypass is not None}
        low, high = (middle, high) if float(space.share(gates)) < target else (low, middle)
    return torch.cat([blocks, (_STEEPNESS * (high - rank)).clamp(-_FIRM, _FIRM)])


def graded(
    denoiser: nn.Module, space: Space, target: float, count: int, ratio: float
) -> Float[Tensor, "N U"]:
    """The same of `count` networks, the smallest first, that cost `target` on average (ours)."""
    sizes = graded_sizes(space, target, count, ratio)
    each = [by_magnitude(denoiser, space, float(size), staggered=True) for size in sizes]
    return torch.stack(each)


def graded_sizes(space: Space, target: float, count: int, ratio: float) -> Float[Tensor, "N"]:
    """What they cost, `target` on average.

    What they cost above the least there can be grows from each to the next by the same factor, and
    by `ratio` from the smallest to the largest; or less, where the largest would be more than all.
    """
    least, room = space.least, target - space.least
    while True:
        factors = torch.logspace(0, 1, count, base=ratio) if count > 1 else torch.ones(1)
        sizes = least + room * factors / factors.mean()
        if float(sizes.max()) <= 1:
            return sizes
        ratio = 1 + (ratio - 1) / 2


def _names(space: Space) -> list[str]:
    return [u.name for u in space.units if u.bypass is None]


def _sizes(space: Space) -> list[int]:
    return [u.size for u in space.units if u.bypass is None]
