"""A training run on disk, complete enough to go on from bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engine.checkpoint import load_tensors, save_tensors
from ..errors import FormatError
from .config import TrainConfig
from .model import check_convention, kept_of, levels_of
from .phase import Phase
from .trainer import Trainer

_COUNTERS = ("step", "phase_step", "rays", "samples", "seconds", "loss")
_MAY_CHANGE = ("steps", "seconds")  # a run may be made longer


def save_checkpoint(trainer: Trainer, path: Path) -> None:
    """Writes model, optimiser, pruner, generator and counters; atomically."""
    tensors, metadata = trainer.model().state()
    tensors |= {"occupancy.density": trainer.occupancy.density}
    tensors |= {"generator": trainer.generator.get_state()}
    for i, parameter in enumerate(_parameters(trainer)):
        for name, value in trainer.optimizer.state[parameter].items():
            tensors[f"optimizer.{i}.{name}"] = torch.as_tensor(value)
    for name, value in trainer.pruner.state_dict().items():
        tensors[f"pruner.{name}"] = torch.as_tensor(value, dtype=_kind(value))
    phase = {f.name: getattr(trainer.phase, f.name) for f in dataclasses.fields(Phase)}
    del phase["levels"], phase["kept"]  # the model's
    counters = {name: getattr(trainer, name) for name in _COUNTERS}
    config = dataclasses.asdict(trainer.config)
    more = {"phase": phase, "counters": counters, "config": config}
    # With this a checkpoint is a model file too, and a run can be looked at while it trains.
    save_tensors(path, tensors, {**metadata, **more, "about": trainer.scene.about()})


def load_checkpoint(trainer: Trainer, path: Path) -> None:
    """Makes a fresh trainer go on from a checkpoint.

    Raises FormatError, one line, for damaged files, another grid convention, and a run whose
    options differ in more than its length.
    """
    tensors, metadata = load_tensors(path)
    check_convention(metadata, path)
    try:
        _check_config(trainer.config, metadata["config"], path)
        _check_scene(trainer, tensors, metadata, path)
        kept = kept_of(tensors, metadata)
        phase = Phase(levels=levels_of(metadata), kept=kept, **metadata["phase"])
        trainer.pruner.load_state_dict(_plain(_under("pruner.", tensors)))
        trainer.start_phase(phase)
        trainer.field.load_state_dict(_under("field.", tensors))
        trainer.field.alpha = metadata["alpha"]
        trainer.occupancy.restore(
            tensors["occupancy.density"], tensors["occupancy.allowed"], tensors["occupancy.bits"]
        )
        trainer.generator.set_state(tensors["generator"])
        for i, parameter in enumerate(_parameters(trainer)):
            state = _under(f"optimizer.{i}.", tensors)
            if state:
                step = int(state.pop("step"))
                moved = {name: t.to(trainer.device) for name, t in state.items()}
                trainer.optimizer.state[parameter] = {"step": step, **moved}
        for name in _COUNTERS:
            setattr(trainer, name, metadata["counters"][name])
    except FormatError:
        raise
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise FormatError(f"{path} is not a checkpoint of this version: {error!r}") from None


def _check_config(now: TrainConfig, then: dict[str, Any], path: Path) -> None:
    for name, value in dataclasses.asdict(now).items():
        if name not in _MAY_CHANGE and value != then[name]:
            raise FormatError(
                f"{path} was trained with {_flag(name, then[name])}, not {_flag(name, value)}: "
                "give that again"
            )


def _flag(name: str, value: Any) -> str:
    """The option as it is typed."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {'default' if value is None else value}"


def _check_scene(
    trainer: Trainer, then: dict[str, Tensor], metadata: dict[str, Any], path: Path
) -> None:
    """The training cameras, in units of the cube, are those the run began with."""
    now, about = trainer.model().state()
    same = all(torch.equal(now[n], then[n]) for n in now if n.startswith("cameras."))
    if not same or any(about[name] != metadata[name] for name in ("camera", "near")):
        raise FormatError(
            f"{path} was trained on other views or in another box than those of "
            f"{trainer.scene.path}: give the scene, --downscale, --box and --near it began with"
        )


def _parameters(trainer: Trainer) -> list[Tensor]:
    return [p for group in trainer.optimizer.param_groups for p in group["params"]]


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _kind(value: Any) -> torch.dtype | None:
    # Python floats are double; as float32 the multiplier would not go on bit for bit.
    return torch.float64 if isinstance(value, float) else None


def _plain(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: t.item() if t.dim() == 0 else t for name, t in tensors.items()}
