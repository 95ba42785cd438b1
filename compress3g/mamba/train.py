"""Training from nothing, and fine-tuning of a pruned model, with or without a teacher."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..engine.fields import check_ranges, option
from ..engine.progress import Progress
from ..errors import ConfigError
from .data import Pictures, batches
from .patch import pruning_of
from .pictures import Preprocess
from .step import Stepper

_log = logging.getLogger(__name__)

_RANGES: dict[str, tuple[float, float]] = {
    "epochs": (0.001, 10_000),
    "lr": (1e-9, 1),
    "min_lr": (0, 1),
    "batch": (1, 1 << 16),
    "warmup": (0, 1 << 20),
    "weight_decay": (0, 10),
    "label_smoothing": (0, 0.9),
    "distill": (0, 1),
    "ema": (0, 0.99999),
    "erase": (0, 1 << 12),
    "minutes": (0, 1 << 20),
    "seed": (0, 2**63 - 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """AdamW with warm-up and a cosine to `min_lr`."""

    epochs: float = option(1.0, "Passes over the pictures; fractions too.")
    lr: float = option(3e-4, "Highest learning rate.")
    min_lr: float = option(1e-6, "Learning rate at the end.")
    warmup: int = option(20, "Steps from zero to --lr.")
    batch: int = option(64, "Pictures per step.")
    weight_decay: float = option(0.05, "Of matrices; vectors, positions and A are never decayed.")
    label_smoothing: float = option(0.0, "Share of the target spread over all classes.")
    flip: bool = option(True, "Mirror every other picture.")
    shift: int = option(0, "Move pictures by up to this many pixels.")
    erase: int = option(0, "Side of a square that is blanked somewhere in every picture.")
    distill: float = option(0.0, "Weight of the teacher's logits in the loss.")
    ema: float = option(0.0, "Decay per step of the average of the weights; 0: the last weights.")
    minutes: float = option(0.0, "Train for so long, whatever --epochs says; 0: by --epochs.")
    seed: int = option(0, "Of everything random.")

    def __post_init__(self) -> None:
        """Raise ConfigError naming the option for every value nothing can be trained with."""
        check_ranges(self, _RANGES)
        if self.min_lr > self.lr:
            _log.warning(
                "--min-lr %g is above --lr %g: the rate will rise over the run",
                self.min_lr,
                self.lr,
            )

    def rate(self, step: int, along: float) -> float:
        """Learning rate of step number `step`, `along` of the way from the warm-up to the end."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        return self.min_lr + (self.lr - self.min_lr) * (1 + math.cos(math.pi * along)) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a run did."""

    steps: int
    loss: float  # mean over the last tenth
    cpu_seconds: float


# A, and biases of four directions in one matrix.
_NEVER_DECAYED = ("_log", "A_logs", "dt_projs_bias")


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        plain = p.ndim < 2 or name in ("cls_token", "pos_embed") or name.endswith(_NEVER_DECAYED)
        (free if plain else decayed).append(p)
    free += _gates(model)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]


def varied(
    images: Float[Tensor, "b c h w"], config: TrainConfig, generator: torch.Generator
) -> Float[Tensor, "b c h w"]:
    """Mirrored, moved and blanked at random; what moves in from outside repeats the border."""
    count, device = len(images), images.device
    high, wide = images.shape[2:]

    def places(end: int) -> Int[Tensor, "b 2"]:
        return torch.randint(end, (count, 2), generator=generator).to(device)

    if config.flip:
        mirror = torch.rand(count, generator=generator) < 0.5
        images = torch.where(mirror.to(device)[:, None, None, None], images.flip(3), images)
    if config.shift:
        padded = F.pad(images, [config.shift] * 4, mode="replicate")
        y, x = places(2 * config.shift + 1).unbind(1)
        rows = y[:, None] + torch.arange(high, device=device)
        columns = x[:, None] + torch.arange(wide, device=device)
        picture = torch.arange(count, device=device)[:, None, None]
        moved = padded.permute(0, 2, 3, 1)[picture, rows[:, :, None], columns[:, None]]
        images = moved.permute(0, 3, 1, 2)
    if config.erase:
        y, x = (places(max(high, wide)) - config.erase // 2).unbind(1)
        rows = torch.arange(high, device=device) - y[:, None]
        columns = torch.arange(wide, device=device) - x[:, None]
        hit = [(at >= 0) & (at < config.erase) for at in (rows, columns)]
        gone = hit[0][:, :, None] & hit[1][:, None]
        images = images.masked_fill(gone[:, None], 0)  # the mean colour, after normalisation
    return images


def _endless(
    pictures: Pictures, preprocess: Preprocess, config: TrainConfig
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches of one size; a pass over the pictures may end inside one."""
    numbers = np.random.default_rng(config.seed)
    size, left = min(config.batch, len(pictures)), np.empty(0, np.int64)
    while True:
        if len(left) < size:
            left = np.concatenate([left, numbers.permutation(len(pictures))])
        part, left = left[:size], left[size:]
        yield from batches(pictures, preprocess, size, part.tolist())


def train(
    model: nn.Module,
    pictures: Pictures,
    preprocess: Preprocess,
    config: TrainConfig,
    *,
    teacher: nn.Module | None = None,
    watch: Callable[[int], None] | None = None,
    every: float = 20.0,
) -> Trained:
    """Trains `model` in place, pruned as it is patched: in training the same tokens go as later.

    It stays on the device it is on; on a GPU a step is one captured graph where that works.
    teacher: a dense model whose logits count as much as `config.distill` says. With `config.ema`
    the model ends with the average of its weights and gates, and the last statistics of batches.
    watch: called with the number of steps done about `every` so many seconds. Raises ConfigError
    for `distill` without a teacher, and for no pictures.
    """
    if config.distill and teacher is None:
        raise ConfigError("--distill needs a teacher: give --teacher")
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    device = next(model.parameters()).device
    steps = max(1, round(config.epochs * len(pictures) / config.batch))
    groups = _groups(model, config.weight_decay)
    stepper = Stepper(
        model, groups, teacher, distill=config.distill, smoothing=config.label_smoothing
    )
    average = [p.detach().clone() for p in _trained(model)] if config.ema else None
    endless = _endless(pictures, preprocess, config)
    clock, began, losses, step = time.monotonic(), time.process_time(), [], 0
    told = clock
    model.train()
    with Progress("train") as line:
        while (done := _done(step, steps, clock, config)) < 1:
            images, labels = next(endless)
            images = varied(images.to(device), config, generator)
            warm = config.warmup / steps if not config.minutes else 0.0
            rate = config.rate(step, max(0.0, (done - warm) / max(1e-9, 1 - warm)))
            loss = stepper(images, labels.to(device), rate)
            if average is not None:
                _follow(average, _trained(model), min(config.ema, (1 + step) / (10 + step)))
            if device.type == "cpu" or step % _LOOK == 0:  # a GPU waits while it is asked
                losses.append(float(loss))
                line.update({"loss": f"{np.mean(losses[-50:]):.3f}"}, done)
            step += 1
            if watch is not None and time.monotonic() - told >= every:
                told = time.monotonic()
                model.eval()
                watch(step)
                model.train()
    if average is not None:
        _follow(_trained(model), average, 0.0)
    model.eval()
    tail = losses[-max(1, len(losses) // 10) :]
    return Trained(steps=step, loss=float(np.mean(tail)), cpu_seconds=time.process_time() - began)


_LOOK = 16  # steps between two looks at the loss on a GPU


def _done(step: int, steps: int, clock: float, config: TrainConfig) -> float:
    """Share of the run that is over, by the clock if it has minutes."""
    if config.minutes:
        return (time.monotonic() - clock) / (60 * config.minutes) if step else 0.0
    return step / steps


def _gates(model: nn.Module) -> list[nn.Parameter]:
    """Those of holes, where they are trained."""
    pruning = pruning_of(model)
    return [] if pruning is None or pruning.gates is None else [pruning.gates]


def _trained(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *_gates(model)]


@torch.no_grad()
def _follow(average: list[Tensor], values: list[Tensor], decay: float) -> None:
    torch._foreach_lerp_(average, values, 1 - decay)


@torch.no_grad()
def correct(
    model: nn.Module, pictures: Pictures, preprocess: Preprocess, *, batch: int = 50
) -> Bool[Tensor, "n"]:
    """Of which pictures the best class is their label."""
    found: list[Tensor] = []
    device = next(model.parameters()).device
    with Progress("eval") as line:
        for images, labels in batches(pictures, preprocess, batch):
            found.append(model(images.to(device)).argmax(1) == labels.to(device))
            line.update({}, len(found) * batch / len(pictures))
    return torch.cat(found).cpu()


def accuracy(
    model: nn.Module, pictures: Pictures, preprocess: Preprocess, *, batch: int = 50
) -> float:
    """Share of pictures whose best class is their label, in percent."""
    return 100 * float(correct(model, pictures, preprocess, batch=batch).double().mean())
