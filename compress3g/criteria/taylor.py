"""What the loss would change by when a unit goes, from the gradient of its gate alone.

At g = 1 the gate's gradient is <x_g, dL/dx_g> = sum_j <W_:,j, dL/dW_:,j> over the unit's columns:
the group Taylor saliency of a frozen matrix, without any weight's gradient.
"""

from __future__ import annotations

from ..core import Gates
from .observe import Stats


def taylor(stats: Stats) -> Gates:
    """mean over batches of |dL/dg| (Michel et al. 1905.10650)."""
    return stats.gate_grad


def taylor_signed(stats: Stats) -> Gates:
    """|mean over batches of dL/dg|: what cancels between batches counts as nothing.

    The first order of |L(without g) - L|, Molchanov et al. 1906.10771.
    """
    return {name: g.abs() for name, g in stats.gradient.items()}


def fisher(stats: Stats) -> Gates:
    """mean over samples of (dL/dg)^2: the diagonal of the Fisher matrix (2204.09656)."""
    return stats.gate_square
