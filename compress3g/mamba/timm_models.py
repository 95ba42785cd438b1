"""Our models under their names in timm, for its `create_model` and its data configurations."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from ..errors import ConfigError, require
from .models import MODELS, Model, create_model, crop_of
from .pictures import Preprocess

# timm's words for fields of our configurations.
_FIELDS = {"num_classes": "classes", "in_chans": "channels", "drop_path_rate": "drop_path"}


def register_in_timm() -> list[str]:
    """Names that `timm.create_model` knows from now on, all of ours; twice does nothing more.

    Not done by an import of this package: timm takes seconds, and torchvision, to import. Its
    num_classes, in_chans, drop_path_rate and img_size are fields of our configurations, whose other
    fields go by their own names; `checkpoint_path` takes published files. Raises MissingExtra
    without timm.
    """
    timm = require("timm", extra="timm", purpose="its registry of models")
    known = set(timm.list_models())
    for name in MODELS:
        if name not in known:
            timm.models.register_model(_entry(name))
    return list(MODELS)


def _entry(name: str) -> Callable[..., Model]:
    """What timm calls; it looks for __name__ and the names its module exports."""

    def create(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        **words: Any,
    ) -> Model:
        if pretrained:
            raise ConfigError(
                f"no weights of {name} are at hand: give timm checkpoint_path, or use "
                "compress3g.mamba.load_checkpoint"
            )
        return _described(create_model(name, **_sizes(name, words)), crop_of(MODELS[name]))

    create.__name__ = create.__qualname__ = name
    create.__module__ = __name__
    setattr(sys.modules[__name__], name, create)
    return create


def _sizes(name: str, words: dict[str, Any]) -> dict[str, Any]:
    """Fields of a configuration. Raises ConfigError for words that are none."""
    side = words.pop("img_size", None)
    sizes = {_FIELDS.get(word, word): value for word, value in words.items()}
    if side is not None:
        sizes["image"] = (side, side) if isinstance(side, int) else tuple(side)
    known = [field.name for field in fields(MODELS[name])]
    foreign = [word for word in sizes if word not in known]
    if foreign:
        raise ConfigError(f"{name} has no {', '.join(foreign)}: it has {', '.join(known)}")
    return sizes


def _described(model: Any, crop: float) -> Model:
    """The model with what timm asks it for: classes, and how pictures are to be made ready."""
    config = model.config
    look = Preprocess.imagenet(config.image)
    model.num_classes = config.classes
    model.default_cfg = model.pretrained_cfg = {
        "num_classes": config.classes,
        "input_size": (config.channels, *config.image),
        "interpolation": "bicubic",
        "crop_pct": crop,
        "mean": look.mean,
        "std": look.std,
        "architecture": type(model).__name__,
    }
    made: Model = model
    return made
