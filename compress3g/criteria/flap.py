"""How much what a unit writes fluctuates: what does not is a bias."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..core import Gates, Units
from ._weights import features, summed, weights_of
from .observe import Stats


def flap(model: nn.Module, units: Sequence[Units], stats: Stats) -> Gates:
    """Sum over the unit's columns j of Var(X_j) ||W_:,j||_2^2 (2312.11983, metric "WIFV").

    Compare units of different layers by select(normalize="z"), and let the readers' biases take
    over what is removed: materialize(means=stats.mean). The released code averages squared scores
    over a head's channels; the plain sum is what removal adds to the squared error of independent
    channels, so heads and neurons stay comparable.
    """
    return summed(
        units,
        lambda u, cut: (
            weights_of(model, cut, u.size).square().sum(2).cpu()
            * features(stats.variance[cut.module], u, cut).cpu()
        ),
    )
