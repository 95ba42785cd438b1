"""Diffusion models: what can be removed from denoisers, and gradients through whole samplers."""

from .sampling import Replay
from .trajectory import Recording, rollout
from .units import units_of

__all__ = ["Recording", "Replay", "rollout", "units_of"]
