"""Models by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...errors import ConfigError
from .plain_mamba import PlainMamba, PlainMambaConfig
from .vim import Vim, VimConfig

MODELS: dict[str, VimConfig | PlainMambaConfig] = {
    "vim_tiny": VimConfig(width=192),
    "vim_small": VimConfig(width=384),
    "vim_base": VimConfig(width=768),
    "vim_fashion": VimConfig(
        image=(28, 28), patch=4, stride=4, channels=1, width=64, depth=8, classes=10
    ),
    "plain_mamba_l1": PlainMambaConfig(),
    "plain_mamba_l2": PlainMambaConfig(width=384, stem_convs=2, depthwise=()),
    "plain_mamba_l3": PlainMambaConfig(width=448, depth=36, stem_convs=2, depthwise=()),
}


def build(config: VimConfig | PlainMambaConfig) -> Vim | PlainMamba:
    """The model of that configuration, with random weights."""
    return Vim(config) if isinstance(config, VimConfig) else PlainMamba(config)


def create_model(name: str, **sizes: Any) -> Vim | PlainMamba:
    """A model with random weights; `sizes` replaces fields of its configuration.

    `vim_tiny_patch16_224` and the like name the same as `vim_tiny`.
    Raises ConfigError, with the names that exist, for another one.

    >>> create_model("vim_tiny", depth=2).config.inner
    384
    """
    short = name.removesuffix("_patch16_224")
    if short not in MODELS:
        raise ConfigError(f"no model {name!r}: use {', '.join(MODELS)}")
    return build(replace(MODELS[short], **sizes))
