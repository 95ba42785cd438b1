"""Weights on disk: published files as they are, and folders of our own."""

from __future__ import annotations

import argparse
import dataclasses
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..engine.checkpoint import read_json, write_json
from ..engine.folder import atomic_folder
from ..errors import FormatError
from .config import PruneConfig
from .inference import infer, published_names
from .models import KINDS, Model, Vim, build, crop_of, kind_of
from .patch import apply_patch, pruning_of
from .pictures import Preprocess
from .schedule import PruneSchedule

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_GATES = "token_pruning.gates"
_LISTED = 6  # names in an error


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model as it was saved; patched when it was saved with a schedule of pruning."""

    model: Model
    preprocess: Preprocess
    pruning: PruneConfig | None = None
    about: dict[str, Any] = field(default_factory=dict)  # how it was trained, what it reached


def load_checkpoint(source: Path | str | Mapping[str, Any]) -> Checkpoint:
    """The model of a published file (.pth, .safetensors), a state dict, or a folder of ours.

    The architecture follows from the shapes, and every name must fit. Raises FormatError, which
    lists names, when keys are missing or left over.
    """
    if isinstance(source, Mapping):
        return _from_state(source, "the state dict")
    path = Path(source)
    if path.is_dir():
        return _from_folder(path)
    return _from_state(_read(path), str(path))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # The authors' training scripts put their parsed options beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FormatError(f"{path} does not exist") from None
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FormatError(f"{path} is no checkpoint that can be read ({first})") from None
    if not isinstance(found, Mapping):
        raise FormatError(f"{path} holds a {type(found).__name__}, not a state dict")
    return found


def unwrapped(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors under `model`, `state_dict` or `model_ema`, without `module.` and `backbone.`.

    >>> list(unwrapped({"model": {"module.head.bias": torch.zeros(2)}}))
    ['head.bias']
    """
    for key in ("model", "state_dict", "model_ema"):
        if isinstance(state.get(key), Mapping):
            return unwrapped(state[key])
    prefix = re.compile(r"^(module\.|backbone\.)+")
    return {prefix.sub("", k): v for k, v in state.items() if isinstance(v, Tensor)}


def _from_state(source: Mapping[str, Any], where: str) -> Checkpoint:
    state = published_names(unwrapped(source))
    model = build(infer(state, where))
    load_strictly(model, state, where)
    preprocess = Preprocess.imagenet(model.config.image, crop_of(model.config))
    return Checkpoint(model=model.eval(), preprocess=preprocess)


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Loads all of it. Raises FormatError listing what is missing, left over or misshapen."""
    wanted = model.state_dict()
    problems = {
        "lacks": [k for k in wanted if k not in state],
        "has what the model has not:": [k for k in state if k not in wanted],
        "has other shapes for": [
            f"{k} {tuple(state[k].shape)} for {tuple(wanted[k].shape)}"
            for k in wanted
            if k in state and state[k].shape != wanted[k].shape
        ],
    }
    told = [f"{what} {_listed(names)}" for what, names in problems.items() if names]
    if told:
        raise FormatError(f"{where} {'; '.join(told)}")
    model.load_state_dict(dict(state))


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown} and {len(names) - _LISTED} more"


def resized_positions(
    positions: Float[Tensor, "1 n d"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "1 m d"]:
    """Positions for another grid of patches: bicubic, the class token's put back in the middle."""
    middle = old[0] * old[1] // 2
    cls = positions[:, middle : middle + 1]
    patches = torch.cat([positions[:, :middle], positions[:, middle + 1 :]], dim=1)
    grid = patches.transpose(1, 2).reshape(1, -1, *old)
    wide = interpolate(grid, size=new, mode="bicubic", align_corners=False)
    flat = wide.flatten(2).transpose(1, 2)
    middle = new[0] * new[1] // 2
    return torch.cat([flat[:, :middle], cls, flat[:, middle:]], dim=1)


def resize_images(model: Vim, image: tuple[int, int]) -> None:
    """Makes the model take images of another size, its positions interpolated."""
    config = dataclasses.replace(model.config, image=image)
    positions = resized_positions(model.pos_embed.detach(), model.config.grid, config.grid)
    model.pos_embed = nn.Parameter(positions)
    model.config = config


def save_checkpoint(
    folder: Path | str,
    model: Model,
    preprocess: Preprocess,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Writes weights and config.json, the model's pruning too; the folder is whole or not there.

    Raises ConfigError when the folder exists.
    """
    pruning = pruning_of(model)
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    if pruning is not None and pruning.gates is not None:
        tensors[_GATES] = pruning.gates.detach().cpu()
    described = {
        "model_type": kind_of(model.config),
        "sizes": dataclasses.asdict(model.config),
        "preprocess": dataclasses.asdict(preprocess),
        "pruning": None if pruning is None else dataclasses.asdict(pruning.config),
        "about": dict(about or {}),
    }
    with atomic_folder(Path(folder)) as made:
        save_file(tensors, made / _WEIGHTS, metadata={"format": "pt"})
        write_json(made / _CONFIG, described)


def _from_folder(folder: Path) -> Checkpoint:
    described = read_json(folder / _CONFIG)
    try:
        made_of: Any = KINDS[described["model_type"]][0]
        model = build(made_of(**_tuples(described["sizes"])))
        preprocess = Preprocess(**_tuples(described["preprocess"]))
        pruning = described.get("pruning")
        if pruning is not None:
            schedule = PruneSchedule(**_tuples(pruning.pop("schedule")))
            pruning = PruneConfig(schedule=schedule, **pruning)
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{folder / _CONFIG} is not that of a model: {error}") from None
    state = dict(_read(folder / _WEIGHTS))
    gates = state.pop(_GATES, None)
    load_strictly(model, state, str(folder / _WEIGHTS))
    if pruning is not None:
        made = apply_patch(model, pruning)
        if gates is not None and made.gates is not None:
            made.gates.data.copy_(gates)
    return Checkpoint(
        model=model.eval(),
        preprocess=preprocess,
        pruning=pruning,
        about=described.get("about", {}),
    )


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists where dataclasses have tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
