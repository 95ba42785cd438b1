"""Vision state-space models, written from their papers, with the published names of parameters."""

from .family import Family, family_of
from .mamba_vision import MambaVision, MambaVisionConfig
from .plain_mamba import PlainMamba, PlainMambaConfig
from .registry import KINDS, MODELS, Config, Model, build, create_model, crop_of, kind_of
from .vim import Vim, VimConfig
from .vmamba import VMamba, VMambaConfig

__all__ = [
    "KINDS", "MODELS", "Config", "Family", "MambaVision", "MambaVisionConfig", "Model",
    "PlainMamba", "PlainMambaConfig", "VMamba", "VMambaConfig", "Vim", "VimConfig", "build",
    "create_model", "crop_of", "family_of", "kind_of",
]  # fmt: skip
