"""Hugging Face transformers: what can be removed from them, and a command that does it."""

from .pretrained import from_pretrained, save_pretrained
from .prune import PruneConfig, prune
from .units import units_of

__all__ = ["PruneConfig", "from_pretrained", "prune", "save_pretrained", "units_of"]
