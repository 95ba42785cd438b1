"""The mask core: units, gates, masks, budgets, ADMM. Knows torch, knows no domain."""

from .admm import ADMM, AugmentedLagrangianBudget, Residual, l1_projection, top_projection
from .budget import Budget, Keep, Schedule, select
from .gates import Gate, Sigmoid, TopK
from .masks import Gates, Masks, flat, open_ratio, split
from .units import Cut, Units

__all__ = [
    "ADMM",
    "AugmentedLagrangianBudget",
    "Budget",
    "Cut",
    "Gate",
    "Gates",
    "Keep",
    "Masks",
    "Residual",
    "Schedule",
    "Sigmoid",
    "TopK",
    "Units",
    "flat",
    "l1_projection",
    "open_ratio",
    "select",
    "split",
    "top_projection",
]
