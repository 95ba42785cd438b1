"""A fine-tune in three runs: look, cut, finish. Only the middle one must be a single process."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from transformers import TrainerCallback

from ..engine.checkpoint import load_tensors, read_json, write_json
from ..engine.folder import atomic_folder, refuse_existing
from ..errors import ConfigError, FormatError
from ..transformer import from_pretrained as load_whole
from .dropout import lighten_dropout
from .folder import ADAPTER, Form, attach, write, write_delta
from .light import STATE
from .plan import Plan
from .report import Report
from .tasks import score
from .trainer import LightPeftCallback, some_batches
from .tune import Prepared, TuneConfig, adapted, fit, prepare, trainer_of

Which: TypeAlias = Literal["estimated", "cut"]
STAGE, CHECKPOINT, SMALL = "stage.json", "checkpoint", "small"
_FORMAT = 1
_NEXT = {"estimated": "compress3g peft cut", "cut": "compress3g peft finish"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What a run leaves for the next one beside its checkpoint.

    model, data, test: what the first run was given; samples: how many there were to train with;
    step_ms: median training step of the first run.
    """

    stage: Which
    model: str
    data: str
    test: str | None
    config: dict[str, Any]
    samples: int
    step_ms: float | None = None

    @classmethod
    def load(cls, folder: Path, wanted: Which) -> Stage:
        """Raises ConfigError for a folder of another stage, FormatError for what is none."""
        if not (folder / STAGE).is_file():
            raise ConfigError(f"{folder} is no folder of a stage: it has no {STAGE}")
        about = read_json(folder / STAGE)
        if about.pop("format", None) != _FORMAT:
            raise FormatError(f"{folder / STAGE} is not of format {_FORMAT}")
        try:
            found = cls(**about)
        except TypeError as error:
            raise FormatError(f"{folder / STAGE} is not whole: {error}") from None
        if found.stage != wanted:
            raise ConfigError(f"{folder} is {found.stage} already: go on with {_NEXT[found.stage]}")
        return found

    def save(self, folder: Path) -> None:
        """Writes stage.json."""
        write_json(folder / STAGE, {"format": _FORMAT, **asdict(self)})

    def prepared(self) -> tuple[Prepared, TuneConfig]:
        """The first run's samples. Raises ConfigError when they are others now."""
        config = TuneConfig(**self.config)
        test = None if self.test is None else Path(self.test)
        made = prepare(Path(self.model), Path(self.data), config, test)
        if len(made.train) != self.samples:
            raise ConfigError(
                f"{self.data} gives {len(made.train)} samples, the first stage had {self.samples}: "
                "put its file back, or estimate again"
            )
        return made, config


def estimate(
    model: Path,
    data: Path,
    config: TuneConfig,
    output: Path,
    *,
    test: Path | None = None,
    device: str = "cpu",
) -> int:
    """Trains through the estimation and leaves a folder for `cut`; the steps that were made.

    Several processes (torchrun) each take their share of the samples and look at the same gates.
    """
    refuse_existing(output)
    made = prepare(model, data, config, test)
    tuned = adapted(made, config)
    callback = LightPeftCallback(config, cut=False, loss=made.task.loss)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(tuned, made, config, Path(folder), device, [callback])
        fit(trainer, callback)
        steps = int(trainer.state.global_step)
        if not trainer.is_world_process_zero():
            return steps
        about = Stage(
            stage="estimated",
            model=str(model.resolve()),
            data=str(data.resolve()),
            test=None if test is None else str(test.resolve()),
            config=asdict(config),
            samples=len(made.train),
            step_ms=callback.step_ms[0],
        )
        with atomic_folder(output) as temporary:
            shutil.copytree(Path(folder) / f"checkpoint-{steps}", temporary / CHECKPOINT)
            about.save(temporary)
    return steps


def cut(stage: Path, output: Path, *, device: str = "cpu") -> Report:
    """Cuts what `estimate` left, with its optimiser, as one run would have; a folder for `finish`.

    small/ is the small base with its adapter. Raises ConfigError in more than one process.
    """
    refuse_existing(output)
    about = Stage.load(stage, "estimated")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("the cut is made by one process: start it without torchrun")
    made, config = about.prepared()
    model, checkpoint = adapted(made, config), stage / CHECKPOINT
    model.load_adapter(str(checkpoint), "default", is_trainable=True)
    light = model.light
    light.restore(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(model, made, config, Path(folder), device)
        optimizer = trainer.create_optimizer()
    _load_moments(optimizer, checkpoint)
    if made.task.loss is not None:
        light.loss = made.task.loss
    light.begin(config.steps)  # gates are open while the plan is made, as in one run
    loader = trainer.get_train_dataloader()
    report: Report = light.cut(optimizer, lambda: some_batches(loader, model, config))
    with atomic_folder(output) as temporary:
        write(temporary / SMALL, model, made.folder, report.to_json(), form="adapter")
        left = temporary / CHECKPOINT
        left.mkdir()
        for file in checkpoint.iterdir():
            if file.name == "trainer_state.json" or file.name[:4] == "rng_":
                shutil.copyfile(file, left / file.name)
        schedule = torch.load(checkpoint / "scheduler.pt", weights_only=True)
        for key in ("base_lrs", "_last_lr"):
            schedule[key] = [rate * config.rate_after_cut for rate in schedule[key]]
        torch.save(schedule, left / "scheduler.pt")
        torch.save(optimizer.state_dict(), left / "optimizer.pt")
        model.save_pretrained(str(left), save_embedding_layers=False)
        light.save_state(left)
        Stage(**{**asdict(about), "stage": "cut"}).save(temporary)
    return report


def _load_moments(optimizer: Any, checkpoint: Path) -> None:
    """The optimiser's state after the estimation. Raises FormatError when it cannot be read."""
    file = checkpoint / "optimizer.pt"
    try:
        optimizer.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise FormatError(f"{file} cannot be read: {reason}: estimate again") from None


def finish(
    stage: Path, output: Path, *, form: Form = "merged", device: str = "cpu"
) -> Mapping[str, Any]:
    """Trains what `cut` left to the end of the run, and saves it; the report with its figure.

    Several processes (torchrun) may do it: the small model is an ordinary one.
    """
    refuse_existing(output)
    about = Stage.load(stage, "cut")
    made, config = about.prepared()
    base = load_whole(stage / SMALL)
    model = attach(base, stage / SMALL / ADAPTER, train=True)
    lighten_dropout(model)
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(model, made, config, Path(folder), device, [clock])
        fit(trainer, None, stage / CHECKPOINT)
    model = model.cpu()
    report = read_json(stage / SMALL / "report.json")
    if about.step_ms is not None and clock.times:
        report["step_ms"] = (about.step_ms, statistics.median(clock.times))
    figures = {**report, made.task.measure: score(made.task, model, made.tokenizer, made.held)}
    if not trainer.is_world_process_zero():
        return figures
    if form == "delta":
        away, held = load_tensors(stage / CHECKPOINT / STATE)
        plan = Plan.from_json(held["plan"], str(stage / CHECKPOINT / STATE))
        write_delta(output, model, made.folder, report, plan=plan, away=away)
    else:
        write(output, model, made.folder, report, form=form)
    return figures


class _Clock(TrainerCallback):
    """Milliseconds of every step."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._started = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts."""
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stops."""
        self.times.append((time.perf_counter() - self._started) * 1e3)
