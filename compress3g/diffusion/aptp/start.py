"""Where gates can start: at the budget, the units with the largest weights of each group open."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...criteria.magnitude import magnitude
from .codes import Space

_FIRM = 3.0  # a gate of this logit is flipped by the noise once in twenty times
_STEEPNESS = 12.0  # so half of a group's units lie between firmly open and firmly closed
_ROUNDS = 40  # of bisection


def by_magnitude(denoiser: nn.Module, space: Space, target: float) -> Float[Tensor, "U"]:
    """Logits, bias included, of which `target` of the multiply-adds stays; blocks stay (ours).

    The share q of every group is open, those with the largest weights first. Logits are firm: the
    noise of gates in the middle makes another network in every step, and at a small budget none of
    these can draw anything, so that no gate learns what it is for.
    """
    ranks = []
    for u, scores in ((u, magnitude(denoiser, [u])) for u in space.units if u.bypass is None):
        places = scores[u.name].argsort(descending=True, stable=True).argsort()
        ranks.append((places + 0.5) / u.size)
    rank = torch.cat(ranks)
    blocks = torch.zeros(len(space.order))
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


def _names(space: Space) -> list[str]:
    return [u.name for u in space.units if u.bypass is None]


def _sizes(space: Space) -> list[int]:
    return [u.size for u in space.units if u.bypass is None]
