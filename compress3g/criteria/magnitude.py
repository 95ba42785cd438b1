"""Norms of a unit's weights: no data needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core import Cut, Gates, Units
from ._weights import weights_of


def magnitude(model: nn.Module, units: Sequence[Units], *, both: bool = False) -> Gates:
    """||W_g||_2 over each unit's columns in its readers (Li et al. 1608.08710 with the l2 norm).

    both: the geometric mean with the norm of the rows that write it, sqrt(||W_g|| ||V_g||), which
    scaling a linear writer by c and its reader by 1/c leaves alone when all of a unit is scaled.
    """
    read = {u.name: _norm(model, u, u.reads) for u in units}
    if not both:
        return read
    return {u.name: (read[u.name] * _norm(model, u, u.writes)).sqrt() for u in units}


def _norm(model: nn.Module, u: Units, cuts: Sequence[Cut]) -> Tensor:
    squares = [weights_of(model, cut, u.size).square().sum((1, 2)).cpu() for cut in cuts]
    return torch.stack(squares).sum(0).sqrt()
