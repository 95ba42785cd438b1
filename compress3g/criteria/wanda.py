"""Weights times what they are multiplied by."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..core import Gates, Units
from ._weights import features, summed, weights_of
from .observe import Stats


def wanda(model: nn.Module, units: Sequence[Units], stats: Stats) -> Gates:
    """Sum over the unit's columns j of sum_i |W_ij| ||X_j||_2 / sqrt(N) (2306.11695, section 3).

    The paper's score of a weight, summed over the unit. The norm is over all N tokens; dividing it
    by sqrt(N) changes no order within a model.
    """
    return summed(
        units,
        lambda u, cut: (
            weights_of(model, cut, u.size).abs().sum(2).cpu()
            * features(stats.square[cut.module], u, cut).sqrt().cpu()
        ),
    )
