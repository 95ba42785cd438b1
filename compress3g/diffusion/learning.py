"""What runs that learn something of a denoiser share: frozen weights, and errors in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ..criteria import held
from ..errors import ConfigError


@contextmanager
def frozen(model: Any, inner_checkpoint: bool) -> Iterator[None]:
    """Weights without gradients, no dropout, perhaps blocks checkpointed; afterwards as before."""
    enable = inner_checkpoint and not getattr(model, "is_gradient_checkpointing", False)
    with held(model):
        if enable:
            try:
                model.enable_gradient_checkpointing()
            except (AttributeError, ValueError) as error:
                raise ConfigError(f"no --inner-checkpoint for this denoiser: {error}") from None
        try:
            yield
        finally:
            if enable:
                model.disable_gradient_checkpointing()


def short_of_memory(error: RuntimeError, doing: str, remedies: str) -> Exception:
    """One line that says what lowers the need, when memory was the problem; else the error."""
    text = str(error)
    if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in text:
        return error
    return ConfigError(f"out of memory while {doing}: lower it with {remedies}")


def difference(then: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str:
    """The first option that two configurations have different values of."""
    name = next((n for n in now if (then or {}).get(n) != now[n]), "")
    return f"{name} {(then or {}).get(name)!r} instead of {now.get(name)!r}"
