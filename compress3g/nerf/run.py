"""One training run from options to files: what `compress3g nerf train` does between in and out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ..engine.checkpoint import StopSignal, atomic_write, write_json
from ..engine.progress import Progress as Line
from ..errors import Compress3GError
from ..kernels import registry
from .checkpoint import load_checkpoint, save_checkpoint
from .config import TrainConfig
from .contact_sheet import Column, contact_sheet, error_map, slice_column
from .evaluation import evaluate
from .metrics import ViewScore
from .result import Result, result_of
from .run_folder import RunFolder
from .scene import Scene
from .trainer import Progress, Trainer

_CHECKPOINT_EVERY = 120.0  # seconds
_ROWS = 3


class Stopped(Compress3GError):
    """The run was told to stop and has saved itself; `signal` says by what."""

    def __init__(self, step: int, signal: int) -> None:
        super().__init__(f"stopped at step {step}")
        self.signal = signal


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run."""

    trainer: Trainer
    result: Result


def train_and_compare(
    scene: Scene,
    config: TrainConfig,
    folder: RunFolder,
    *,
    compare: bool,
    resume: bool,
    toml: Callable[[TrainConfig], str],
    device: torch.device,
) -> tuple[Run, Run | None]:
    """The run and, to compare with, a plain grid of equal table size and as many steps.

    toml: a configuration as the text of a file that `--config` reads. Raises Stopped as `train`.
    """
    run = train(scene, config, folder, toml=toml(config), device=device, resume=resume)
    if not compare:
        return run, None
    twin = replace(config, hollow=False, seconds=None, steps=run.result.steps)
    again = resume and folder.twin.checkpoint.exists()
    return run, train(scene, twin, folder.twin, toml=toml(twin), device=device, resume=again)


def train(
    scene: Scene,
    config: TrainConfig,
    folder: RunFolder,
    *,
    toml: str,
    device: torch.device,
    resume: bool,
) -> Run:
    """Trains to the end, leaving config, checkpoint, model and result in the folder.

    The first checkpoint is written before the first step: a disk that is full is noticed at once,
    and an earlier run in the folder is not lost before this one could begin.
    Raises Stopped after a checkpoint was written because of SIGTERM or Ctrl-C.
    """
    for op in registry.operations():
        registry.active(op, device.type)  # raises for a backend that was asked for and cannot run
    title = "hollow" if config.hollow else "plain"
    with StopSignal() as stop, Line(title) as line:
        trainer = Trainer(scene, config, device=device)
        if resume:
            load_checkpoint(trainer, folder.checkpoint)
        save_checkpoint(trainer, folder.checkpoint)
        folder.begin(toml, resume=resume)
        saved = time.monotonic()

        def after_step(now: Progress) -> bool:
            nonlocal saved
            line.update(_fields(now), now.done)
            if time.monotonic() - saved > _CHECKPOINT_EVERY:
                save_checkpoint(trainer, folder.checkpoint)
                saved = time.monotonic()
            return not stop.requested

        trainer.fit(after_step)
        save_checkpoint(trainer, folder.checkpoint)
    if stop.requested and trainer.done() < 1:
        raise Stopped(trainer.step, stop.signal or 0)
    with Line(f"{title} test views") as line:
        result = result_of(trainer, watch=line.over)
    trainer.model().save(folder.model, {**scene.about(), "result": result.to_json()})
    write_json(folder.result, result.to_json())
    return Run(trainer, result)


def write_sheet(folder: RunFolder, run: Run, plain: Run | None) -> None:
    """Writes the contact sheet: truth, plain and hollow (or one and its error), saliency."""
    trainer = run.trainer
    views = _some_views(run)
    names = [score.name for score, _, _ in views]
    columns = {"ground truth": Column([t for _, t, _ in views], _size(trainer.scene), names)}
    if plain is not None:
        columns["plain"] = _column(plain)
    columns["hollow" if trainer.config.hollow else "plain"] = _column(run)
    if plain is None:
        columns["error"] = Column([error_map(t, r) for _, t, r in views], "bright: 0.25 or more")
    if trainer.config.hollow:
        caption = f"{run.result.kept_fraction:.1%} of cells kept\ndark 0, bright 1"
        picture = trainer.pruner.picture(trainer).cpu()
        columns["saliency"] = slice_column(picture, caption, min(_ROWS, len(views)))
    sheet = contact_sheet(columns, footer=_footer(run))
    atomic_write(folder.sheet, lambda file: sheet.save(file, "PNG", optimize=True))


def _some_views(run: Run) -> list[tuple[ViewScore, torch.Tensor, torch.Tensor]]:
    """Score, truth and rendering of a few test views, spread over the set."""
    test = run.trainer.scene.test
    count = min(_ROWS, len(test))
    picked = test.select([i * len(test) // count for i in range(count)])
    return list(evaluate(run.trainer.model(), picked))


def _column(run: Run) -> Column:
    views = _some_views(run)
    caption = f"{run.result.psnr:.2f} dB\n{run.result.params:,} parameters"
    labels = [f"{score.psnr:.2f} dB" for score, _, _ in views]
    return Column([r for _, _, r in views], caption, labels)


def _size(scene: Scene) -> str:
    cameras = scene.test.cameras
    return f"{len(scene.test)} test views, {cameras.width}×{cameras.height}"


def _footer(run: Run) -> dict[str, str]:
    config, result, levels = run.trainer.config, run.result, run.trainer.field.levels
    footer = {
        "scene": run.trainer.scene.name,
        "steps": f"{result.steps:,}",
        "table": f"{len(levels.resolutions)} levels, {levels.entries:,} entries",
        "training": f"{result.seconds:.0f} s",
    }
    if config.hollow:
        footer |= {"pruner": config.pruner, "kept": f"{result.kept_cells:,} cells"}
    return footer


def _fields(now: Progress) -> dict[str, str]:
    """What the live line shows."""
    rate = max(now.seconds, 1e-9)
    # The first ones survive on a narrow terminal.
    fields = {
        "PSNR": "-" if math.isnan(now.psnr) else f"{now.psnr:.2f}",
        "occupied": f"{now.occupied:.1%}",
        "it/s": f"{now.step / rate:.1f}",
        "Msamples/s": f"{now.samples / rate / 1e6:.2f}",
    }
    if now.gamma is not None:
        fields["gamma"] = f"{now.gamma:.2g}"
    fields["step"] = f"{now.step:,}"
    if now.phase != "main":
        fields["phase"] = now.phase
    return fields
