"""Diffusion models: what can be removed from denoisers, and gradients through whole samplers."""

from .trajectory import Recording, rollout
from .units import units_of

__all__ = ["Recording", "rollout", "units_of"]
