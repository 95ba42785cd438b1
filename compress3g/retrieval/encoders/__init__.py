"""Encoders of pages and queries; `load_encoder` knows them by name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ..config import SaliencyName

if TYPE_CHECKING:
    from .protocol import Encoder


def load_encoder(name: str, *, saliency: SaliencyName = "indegree", **options: Any) -> Encoder:
    """The encoder of a name.

    `text`, `text:MODEL`, `text:MODEL@DIM`: the text layer by a BERT-like model (a folder or a name
    on the hub), all its dimensions or DIM. Options go to the encoder, such as `device`. Raises
    ConfigError for what cannot be loaded, MissingExtra.
    """
    if re.match(r"text(?![^:@])", name):
        from .text_layer import load_text_layer

        return load_text_layer(name.replace("text@", "text:@", 1), saliency, **options)
    raise ConfigError(f"no encoder {name!r}: give text, or text:FOLDER with a BERT-like model")
