"""Vision state-space models, written from their papers, with the published names of parameters."""

from .registry import MODELS, create_model
from .vim import Vim, VimConfig

__all__ = ["MODELS", "Vim", "VimConfig", "create_model"]
