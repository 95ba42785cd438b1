"""Models from folders or hubs, and fingerprints of what was loaded."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import nn, uint8

from ..._compat.torchvision_cpu import declare_operators
from ...errors import ConfigError, require


def transformers_module() -> Any:
    """The transformers package. Raises MissingExtra."""
    declare_operators()
    return require("transformers", extra="retrieval", purpose="encoders")


def pretrained(kind: Any, model: str, **options: Any) -> Any:
    """`kind.from_pretrained`. Raises ConfigError in one line when the model cannot be had."""
    logging = transformers_module().utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # our own line on the terminal stays whole
    try:
        return kind.from_pretrained(model, **options)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(f"encoder {model!r} cannot be loaded: {reason}") from None
    finally:
        if shown:
            logging.enable_progress_bar()


def weights_digest(model: nn.Module) -> str:
    """Sixteen hex digits of the SHA-256 over names, types and bytes of all weights."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(uint8).numpy().data)
    return digest.hexdigest()[:16]
