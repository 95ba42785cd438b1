"""What could be removed from a pipeline's denoiser, from its configuration alone."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core import Units
from ..engine.checkpoint import read_json
from ..errors import Compress3GError, ConfigError, require
from .prune import KINDS, priced_units
from .pruned_models import class_named
from .units import Skipped, kind_of, skipped_of


@dataclass(frozen=True, slots=True)
class Inspection:
    """A denoiser without weights: its units with their price, what is skipped, all parameters."""

    denoiser: str
    params: int
    units: list[Units]
    skipped: list[Skipped]

    @property
    def prunable(self) -> int:
        """Parameters that belong to units."""
        return round(sum(u.cost["params"] * u.size for u in self.units))

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "denoiser": self.denoiser,
            "params": self.params,
            "prunable": self.prunable,
            "units": [
                {"name": u.name, "kind": kind_of(u), "size": u.size, "params": u.cost["params"]}
                for u in self.units
            ],
            "skipped": [{"name": s.name, "reason": s.reason} for s in self.skipped],
        }


def inspect_folder(folder: Path) -> Inspection:
    """Builds the denoiser of a pipeline folder on the meta device and looks at it.

    Raises ConfigError for what is no pipeline folder or names a class that diffusers lacks.
    """
    folder = Path(folder)
    if not (folder / "model_index.json").is_file():
        raise ConfigError(f"{folder} is no diffusers pipeline: it has no model_index.json")
    index = read_json(folder / "model_index.json")
    attribute = next((a for a in ("unet", "transformer") if index.get(a, [None])[0]), None)
    if attribute is None:
        raise ConfigError(f"{folder / 'model_index.json'} names neither a unet nor a transformer")
    config = read_json(folder / attribute / "config.json")
    model = _skeleton(index[attribute][1], config, folder / attribute / "config.json")
    return Inspection(
        denoiser=type(model).__name__,
        params=sum(p.numel() for p in model.parameters()),
        units=priced_units(model, KINDS),
        skipped=skipped_of(model),
    )


def _skeleton(name: str, config: dict[str, Any], file: Path) -> Any:
    require("diffusers", extra="diffusion", purpose="diffusion pipelines")
    diffusers = importlib.import_module("diffusers")
    try:
        kind = class_named(name) if name.startswith("Pruned") else getattr(diffusers, name)
        with torch.device("meta"):
            return kind.from_config(config)
    except Compress3GError:
        raise
    except (AttributeError, TypeError, ValueError, KeyError, json.JSONDecodeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{file}: no {name} can be built from it: {reason}") from None
