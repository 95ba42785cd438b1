"""Learnt masks: logits, what they were learnt with, and how learning went."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core import Gates, HardConcrete, Units
from ..core.surgery import digest
from ..engine.checkpoint import load_tensors, save_tensors
from ..errors import FormatError
from .config import EcoDiffConfig

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Learned:
    """What `learn_masks` returns.

    logits: per Units name, float32 on the CPU; a higher one stays longer.
    history: per update: `loss` (squared error of the latent over its squared norm), `open`
    (expected share of the prunable cost that stays), `target` (what the budget allowed), `gamma`,
    `clipped` (share of the drawn gates at exactly 0 or 1, where the loss has no gradient).
    stopped: why learning ended early, or "".
    """

    logits: dict[str, Tensor]
    config: EcoDiffConfig
    history: tuple[dict[str, float], ...]
    digest: str
    stopped: str = ""

    @property
    def missed(self) -> float:
        """How much more of the prunable cost was still open at the end than the budget allows.

        Such logits rank units of a model that was never as small as it was to be.
        """
        last = self.history[-1] if self.history else {"open": 0.0, "target": 0.0}
        return max(0.0, last["open"] - last["target"])

    def scores(self) -> Gates:
        """The logits, for `core.select`."""
        return self.logits

    def gates(self) -> Gates:
        """Deterministic multipliers, clip(1.2 sigmoid(logit) - 0.1, 0, 1)."""
        return {name: HardConcrete().hard(z) for name, z in self.logits.items()}

    def check(self, units: Sequence[Units]) -> None:
        """Raises FormatError when the masks are of another model, naming the first difference."""
        if self.digest == digest(units):
            return
        ours = [(name, len(z)) for name, z in self.logits.items()]
        pairs = itertools.zip_longest(ours, [(u.name, u.size) for u in units])
        there, here = next(((a, b) for a, b in pairs if a != b), (self.digest, digest(units)))
        raise FormatError(f"masks of another model: they have {there}, this one has {here}")

    def save(self, path: Path) -> None:
        """Writes one safetensors file, whole or not at all."""
        about = {
            "format": _FORMAT,
            "config": dataclasses.asdict(self.config),
            "history": list(self.history),
            "digest": self.digest,
            "stopped": self.stopped,
            # JSON objects are sorted on the way: the order of units must survive.
            "order": list(self.logits),
        }
        save_tensors(path, {f"logits/{name}": z for name, z in self.logits.items()}, about)

    @classmethod
    def load(cls, path: Path) -> Learned:
        """What `save` wrote. Raises FormatError, one line, for anything else."""
        tensors, about = load_tensors(path)
        if about.get("format") != _FORMAT or "order" not in about:
            raise FormatError(f"{path} holds no learnt masks of format {_FORMAT}")
        try:
            return cls(
                logits={name: tensors[f"logits/{name}"] for name in about["order"]},
                config=EcoDiffConfig(**about["config"]),
                history=tuple(_record(r) for r in about["history"]),
                digest=about["digest"],
                stopped=about["stopped"],
            )
        except (KeyError, TypeError) as error:
            raise FormatError(f"{path} holds no learnt masks: {error!r}") from None


def _record(values: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}
