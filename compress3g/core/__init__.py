"""The mask core: what can be removed, how much may stay, which, and how it goes."""

from .admm import ADMM, AugmentedLagrangianBudget, Residual, l1_projection, top_projection
from .apply import gated, watched
from .budget import Budget, Keep, Schedule, select
from .gates import Gate, GumbelSigmoid, HardConcrete, Scalar, Sigmoid, SoftThreshold, TopK
from .masks import Gates, Masks, flat, open_ratio, split
from .price import price
from .surgery import load, materialize, save
from .tokens import gather_tokens, keep_tokens, scatter_tokens
from .units import Cut, Units

__all__ = [
    "ADMM", "AugmentedLagrangianBudget", "Budget", "Cut", "Gate", "Gates", "GumbelSigmoid",
    "HardConcrete", "Keep", "Masks", "Residual", "Scalar", "Schedule", "Sigmoid", "SoftThreshold",
    "TopK", "Units", "flat", "gated", "gather_tokens", "keep_tokens", "l1_projection",
    "load", "materialize", "open_ratio", "price", "save", "scatter_tokens", "select",
    "split", "top_projection", "watched",
]  # fmt: skip
