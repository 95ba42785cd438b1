"""Vision state-space models, written from their papers, with the published names of parameters."""

from .family import Family, family_of
from .plain_mamba import PlainMamba, PlainMambaConfig
from .registry import KINDS, MODELS, Config, Model, build, create_model, kind_of
from .vim import Vim, VimConfig
from .vmamba import VMamba, VMambaConfig

__all__ = [
    "KINDS", "MODELS", "Config", "Family", "Model", "PlainMamba", "PlainMambaConfig", "VMamba",
    "VMambaConfig", "Vim", "VimConfig", "build", "create_model", "family_of", "kind_of",
]  # fmt: skip
