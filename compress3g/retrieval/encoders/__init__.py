"""Encoders of pages and queries; `load_encoder` knows them by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ..config import SignalName

if TYPE_CHECKING:
    from .protocol import Encoder


def load_encoder(
    name: str, *, signals: Sequence[SignalName] = ("indegree",), **options: Any
) -> Encoder:
    """The encoder of a name.

    `text`, `text:MODEL`, `text:MODEL@DIM`: the text layer by a BERT-like model (a folder or a name
    on the hub), all its dimensions or DIM. `colpali:MODEL`, `colqwen2:MODEL`, `colqwen2_5:MODEL`,
    `colidefics3:MODEL`: the picture by a vision-language model; the family may be left out when
    the model is called after it, as in `vidore/colqwen2.5-v0.2`. signals: kinds of saliency to tell
    of pages, for pruning. Options go to the encoder, such as `device`. Raises ConfigError for what
    cannot be loaded, MissingExtra.
    """
    if re.match(r"text(?![^:@])", name):
        from .text_layer import load_text_layer

        return load_text_layer(name.replace("text@", "text:@", 1), signals, **options)
    from .colpali import family_of, load_vision_encoder

    if found := family_of(name):
        return load_vision_encoder(*found, signals=signals, **options)
    raise ConfigError(
        f"no encoder {name!r}: give text, text:FOLDER with a BERT-like model,"
        " or colpali|colqwen2|colqwen2_5|colidefics3:MODEL"
    )
