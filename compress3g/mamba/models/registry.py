"""Models by name, and by their configurations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...errors import ConfigError
from .mamba_vision import MambaVision, MambaVisionConfig
from .plain_mamba import PlainMamba, PlainMambaConfig
from .vim import Vim, VimConfig
from .vmamba import VMamba, VMambaConfig

Model = Vim | PlainMamba | VMamba | MambaVision
Config = VimConfig | PlainMambaConfig | VMambaConfig | MambaVisionConfig

MODELS: dict[str, Config] = {
    "vim_tiny": VimConfig(width=192),
    "vim_small": VimConfig(width=384),
    "vim_base": VimConfig(width=768),
    "vim_fashion": VimConfig(
        image=(28, 28), patch=4, stride=4, channels=1, width=64, depth=8, classes=10
    ),
    "vim_cifar10": VimConfig(image=(32, 32), patch=4, stride=4, width=96, depth=12, classes=10),
    "plain_mamba_l1": PlainMambaConfig(),
    "plain_mamba_l2": PlainMambaConfig(width=384, stem_convs=2, depthwise=()),
    "plain_mamba_l3": PlainMambaConfig(width=448, depth=36, stem_convs=2, depthwise=()),
    # s1l8, s2l15 and s2l15 of the published table.
    "vmamba_tiny": VMambaConfig(),
    "vmamba_small": VMambaConfig(depths=(2, 2, 15, 2), expand=2.0),
    "vmamba_base": VMambaConfig(width=128, depths=(2, 2, 15, 2), expand=2.0),
    "mamba_vision_tiny": MambaVisionConfig(),
    "mamba_vision_tiny2": MambaVisionConfig(depths=(1, 3, 11, 4)),
    "mamba_vision_small": MambaVisionConfig(width=96, stem=64, depths=(3, 3, 7, 5)),
    "mamba_vision_base": MambaVisionConfig(
        width=128, stem=64, depths=(3, 3, 10, 5), layer_scale=True
    ),
}

# Share of a picture's shorter side that the authors' evaluation crops; 0.875 of all others.
_CROPS = {
    "mamba_vision_tiny": 1.0,
    "mamba_vision_tiny2": 0.98,
    "mamba_vision_small": 0.93,
    "mamba_vision_base": 1.0,
}

# In the config.json of our folders.
KINDS: dict[str, tuple[type[Config], type[Model]]] = {
    "vim": (VimConfig, Vim),
    "plain_mamba": (PlainMambaConfig, PlainMamba),
    "vmamba": (VMambaConfig, VMamba),
    "mamba_vision": (MambaVisionConfig, MambaVision),
}


def kind_of(config: Config) -> str:
    """Name of the kind of model that has such a configuration."""
    return next(name for name, (wanted, _) in KINDS.items() if type(config) is wanted)


def crop_of(config: Config) -> float:
    """Share of a picture's shorter side that the model was evaluated on.

    >>> crop_of(VimConfig())
    0.875
    """
    return next((crop for name, crop in _CROPS.items() if MODELS[name] == config), 0.875)


def build(config: Config) -> Model:
    """The model of that configuration, with random weights."""
    made: Any = KINDS[kind_of(config)][1]
    model: Model = made(config)
    return model


def create_model(name: str, **sizes: Any) -> Model:
    """A model with random weights; `sizes` replaces fields of its configuration.

    `vim_tiny_patch16_224` and the like name the same as `vim_tiny`.
    Raises ConfigError, with the names that exist, for another one.

    >>> create_model("vim_tiny", depth=2).config.depth
    2
    """
    short = name.removesuffix("_patch16_224")
    if short not in MODELS:
        raise ConfigError(f"no model {name!r}: use {', '.join(MODELS)}")
    return build(replace(MODELS[short], **sizes))
