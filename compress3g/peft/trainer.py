"""Light-PEFT in the library's own training loop: a callback for any Trainer, and a Trainer."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import Trainer, TrainerCallback

from ..errors import ConfigError
from .config import LightPeftConfig
from .cost import Batch
from .cut import scale_schedule, unwrapped
from .light import STATE, Light, is_weak
from .ranking import Loss

_log = logging.getLogger(__name__)
_RECENT = 100  # steps whose median is the step's time


class LightPeftCallback(TrainerCallback):
    """Gates at the start, the cut after the estimation, for the PeftModel of any Trainer.

    To go on from a checkpoint, call `restore(model, folder)` before `train(resume_from_checkpoint)`
    (LightPeftTrainer does). cut=False stops the run when the estimation is over: the first of the
    three stages for launches whose parameters are wrapped or sharded. loss: of model and batch, for
    the criteria that look at it at the cut; by default the model's own.
    """

    def __init__(
        self,
        config: LightPeftConfig | None = None,
        *,
        cut: bool = True,
        loss: Loss | None = None,
    ) -> None:
        self._config, self._cut, self._loss = config or LightPeftConfig(), cut, loss
        self.light: Light | None = None
        self._times: tuple[deque[float], deque[float]] = (
            deque(maxlen=_RECENT),
            deque(maxlen=_RECENT),
        )
        self._started = 0.0

    def restore(self, model: Any, checkpoint: str | Path) -> None:
        """Put the model, dense and adapted as at the start, into the state of a checkpoint."""
        self.light = _light_of(model, self._config)
        self.light.restore(Path(checkpoint))

    def on_train_begin(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        """Opens the gates. Raises ConfigError for runs that cannot be cut."""
        model = about["model"]
        if self.light is None:
            self.light = _light_of(model, self._config)
        if _reentrant(args):
            raise ConfigError(
                "gates get no gradient through reentrant checkpointing: set "
                "use_reentrant to False in the checkpointing's options"
            )
        if self._cut and dist.is_available() and dist.is_initialized() and _wrapped(args):
            raise ConfigError(
                f"{args.world_size} processes wrap their parameters, which cannot be cut in the "
                "run: `compress3g peft estimate`, then `cut` in one process, then `finish`"
            )
        if int(getattr(args, "n_gpu", 1)) > 1:
            raise ConfigError(
                f"this process trains on {args.n_gpu} devices, which get copies of the gates: show "
                "it one (CUDA_VISIBLE_DEVICES=0)"
            )
        if getattr(args, "torch_compile", False):
            _log.warning("torch.compile sees the gates and compiles anew after the cut")
        if self._loss is not None:
            self.light.loss = self._loss
        self.light.begin(state.max_steps)
        rate = args.learning_rate * self.light.config.mask_lr_mult
        by_gates = self.light.config.criterion == "l1_mask" and self.light.stage == "estimation"
        if by_gates and is_weak(self.light.steps, rate):
            _log.warning(
                f"{self.light.steps} steps at rate {rate:g} hardly move the gates: their order "
                "will be noise; look longer or raise mask_lr_mult"
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts the clock."""
        self._started = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        """The gates' own step, once per optimiser step."""
        model, optimizer = about["model"], about["optimizer"]
        light = self._running()
        if light.stage != "estimation":
            return
        scaler = getattr(optimizer, "scaler", None)
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        if scaler is not None:  # so adapters are looked at unscaled, and a skip is the scaler's too
            with suppress(RuntimeError):  # it was done already, where gradients are clipped
                scaler.unscale_(unwrapped(optimizer))
        rate = optimizer.param_groups[0]["lr"]
        if not light.observe(
            rate,
            scale=scale,
            batches=lambda: some_batches(about.get("train_dataloader"), model, light.config),
        ):
            for p in model.parameters():
                p.grad = None  # an optimiser skips what has no gradient

    def on_step_end(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        """The cut, when the estimation is over."""
        model, loader = about["model"], about.get("train_dataloader")
        light = self._running()
        spent = (time.perf_counter() - self._started) * 1e3
        self._times[light.stage == "cut"].append(spent)
        if light.due and not self._cut:
            control.should_training_stop = control.should_save = True
        elif light.due:
            report = light.cut(
                about["optimizer"], lambda: some_batches(loader, model, light.config)
            )
            scale_schedule(about.get("lr_scheduler"), light.config.rate_after_cut)
            _log.info(report.line)
        before, after = self._times
        if before and len(after) >= 3:
            light.timed(statistics.median(before), statistics.median(after))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Puts the state beside the checkpoint's own files."""
        self._running().share()
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if folder.is_dir() and state.is_world_process_zero:
            self._running().save_state(folder)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Closes gates that are open still: after an early stop, or without a cut."""
        self._running().close()

    @property
    def step_ms(self) -> tuple[float | None, float | None]:
        """Median milliseconds of the steps before and after the cut, None before any."""
        before, after = (statistics.median(t) if t else None for t in self._times)
        return before, after

    def _running(self) -> Light:
        if self.light is None:
            raise ConfigError("the callback has seen no start of training: add it before train()")
        return self.light


def _reentrant(args: Any) -> bool:
    """Of gradient checkpointing, which newer versions call activation checkpointing."""
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        if vars(args).get(name):
            return bool((vars(args).get(f"{name}_kwargs") or {}).get("use_reentrant", False))
    return False


def _wrapped(args: Any) -> bool:
    return int(getattr(args, "world_size", 1)) > 1


def _light_of(model: Any, config: LightPeftConfig) -> Light:
    """The model's own, from get_light_peft_model, or a new one."""
    found = getattr(model, "light", None)
    if not isinstance(found, Light):
        model.light = found = Light(model, config)
    return found


def some_batches(loader: Any, model: Any, config: LightPeftConfig) -> Sequence[Batch]:
    """`config.samples` of the training samples, without disturbing the loader's order."""
    dataset = getattr(loader, "dataset", None)
    if dataset is None or not hasattr(dataset, "__len__"):
        return []
    generator = torch.Generator().manual_seed(config.seed)
    chosen = torch.randperm(len(dataset), generator=generator)[: config.samples].tolist()
    size = max(1, int(getattr(loader, "total_batch_size", None) or 8))
    device = next(model.parameters()).device
    batches = []
    for i in range(math.ceil(len(chosen) / size)):
        made = loader.collate_fn([dataset[j] for j in chosen[i * size : (i + 1) * size]])
        batches.append({k: v.to(device) for k, v in made.items() if isinstance(v, torch.Tensor)})
    return batches


class LightPeftTrainer(Trainer):
    """A Trainer with the callback, whose checkpoints it goes on from by itself."""

    def __init__(
        self, *args: Any, light: LightPeftConfig | None = None, cut: bool = True, **kwargs: Any
    ) -> None:
        self.callback = LightPeftCallback(light, cut=cut)
        kwargs["callbacks"] = [*(kwargs.get("callbacks") or ()), self.callback]
        super().__init__(*args, **kwargs)

    @property
    def light(self) -> Light:
        """Stage, plan and report. Raises ConfigError before training."""
        return self.callback._running()

    def _load_from_checkpoint(self, resume_from_checkpoint: Any, model: Any = None) -> None:
        if (Path(resume_from_checkpoint) / STATE).is_file():
            self.callback.restore(self.model, resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)
