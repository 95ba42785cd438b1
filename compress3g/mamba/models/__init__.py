"""Vision state-space models, written from their papers, with the published names of parameters."""

from .family import Family, family_of
from .plain_mamba import PlainMamba, PlainMambaConfig
from .registry import MODELS, build, create_model
from .vim import Vim, VimConfig

__all__ = [
    "MODELS", "Family", "PlainMamba", "PlainMambaConfig", "Vim", "VimConfig", "build",
    "create_model", "family_of",
]  # fmt: skip
