"""Models by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...errors import ConfigError
from .vim import Vim, VimConfig

MODELS = {
    "vim_tiny": VimConfig(width=192),
    "vim_small": VimConfig(width=384),
    "vim_base": VimConfig(width=768),
    "vim_fashion": VimConfig(
        image=(28, 28), patch=4, stride=4, channels=1, width=64, depth=8, classes=10
    ),
}


def create_model(name: str, **sizes: Any) -> Vim:
    """A model with random weights; `sizes` replaces fields of its configuration.

    `vim_tiny_patch16_224` and the like name the same as `vim_tiny`.
    Raises ConfigError, with the names that exist, for another one.

    >>> create_model("vim_tiny", depth=2).config.inner
    384
    """
    short = name.removesuffix("_patch16_224")
    if short not in MODELS:
        raise ConfigError(f"no model {name!r}: use {', '.join(MODELS)}")
    return Vim(replace(MODELS[short], **sizes))
