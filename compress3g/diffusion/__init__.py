"""Diffusion models: what can be removed from denoisers, and gradients through whole samplers."""

from .config import EcoDiffConfig
from .ecodiff import learn_masks
from .learned import Learned
from .refit import refit
from .sampling import Replay
from .trajectory import Recording, rollout
from .units import units_of

__all__ = [
    "EcoDiffConfig", "Learned", "Recording", "Replay", "learn_masks", "refit", "rollout",
    "units_of",
]  # fmt: skip
