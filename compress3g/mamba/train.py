"""Training from nothing, and fine-tuning of a pruned model, with or without a teacher."""

from __future__ import annotations

import copy
import logging
import math
import time
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
    distill: float = option(0.0, "Weight of the teacher's logits in the loss.")
    ema: float = option(0.0, "Decay per step of the average of the weights; 0: the last weights.")
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

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of step number `step` of `steps`."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        along = (step - self.warmup) / max(1, steps - self.warmup)
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
    pruning = pruning_of(model)
    if pruning is not None and pruning.gates is not None:
        free.append(pruning.gates)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]


def varied(
    images: Float[Tensor, "b c h w"], config: TrainConfig, generator: torch.Generator
) -> Float[Tensor, "b c h w"]:
    """Mirrored and moved at random; what moves in from outside repeats the border."""
    if config.flip:
        mirror = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(mirror[:, None, None, None], images.flip(3), images)
    if config.shift:
        high, wide = images.shape[2:]
        padded = F.pad(images, [config.shift] * 4, mode="replicate")
        places = torch.randint(2 * config.shift + 1, (len(images), 2), generator=generator)
        parts = [
            one[:, y : y + high, x : x + wide]
            for one, (y, x) in zip(padded, places.tolist(), strict=True)
        ]
        images = torch.stack(parts)
    return images


def _loss(
    logits: Tensor, labels: Int[Tensor, "b"], taught: Tensor | None, config: TrainConfig
) -> Tensor:
    """(1 - w) cross-entropy + w KL(teacher || student) at temperature 1."""
    plain = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
    if taught is None:
        return plain
    student, teacher = logits.log_softmax(-1), taught.log_softmax(-1)
    kl = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return (1 - config.distill) * plain + config.distill * kl


def train(
    model: nn.Module,
    pictures: Pictures,
    preprocess: Preprocess,
    config: TrainConfig,
    *,
    teacher: nn.Module | None = None,
) -> Trained:
    """Trains `model` in place, pruned as it is patched: in training the same tokens go as later.

    teacher: a dense model whose logits count as much as `config.distill` says. With `config.ema`
    the model ends with the average of its weights. Raises ConfigError for `distill` without one.
    """
    if config.distill and teacher is None:
        raise ConfigError("--distill needs a teacher: give --teacher")
    torch.manual_seed(config.seed)
    numbers, generator = np.random.default_rng(config.seed), torch.Generator()
    generator.manual_seed(config.seed)
    steps = max(1, round(config.epochs * len(pictures) / config.batch))
    optimizer = torch.optim.AdamW(_groups(model, config.weight_decay), betas=(0.9, 0.95))
    average = copy.deepcopy(model).eval() if config.ema else None
    began, losses, step = time.process_time(), [], 0
    model.train()
    with Progress("train") as line:
        while step < steps:
            order = numbers.permutation(len(pictures)).tolist()
            for images, labels in batches(pictures, preprocess, config.batch, order):
                if step == steps:
                    break
                images = varied(images, config, generator)
                loss = _step(model, images, labels, teacher, config, optimizer, step, steps)
                losses.append(loss)
                if average is not None:
                    _follow(average, model, min(config.ema, (1 + step) / (10 + step)))
                step += 1
                line.update({"loss": f"{np.mean(losses[-50:]):.3f}"}, step / steps)
    if average is not None:
        model.load_state_dict(average.state_dict())
    model.eval()
    tail = losses[-max(1, len(losses) // 10) :]
    return Trained(steps=steps, loss=float(np.mean(tail)), cpu_seconds=time.process_time() - began)


def _step(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    teacher: nn.Module | None,
    config: TrainConfig,
    optimizer: torch.optim.Optimizer,
    step: int,
    steps: int,
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = config.rate(step, steps)
    taught = None
    if teacher is not None and config.distill:
        with torch.no_grad():
            taught = teacher(images)
    loss = _loss(model(images), labels, taught, config)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    for kept, new in zip(average.parameters(), model.parameters(), strict=True):
        kept.lerp_(new, 1 - decay)


@torch.no_grad()
def correct(
    model: nn.Module, pictures: Pictures, preprocess: Preprocess, *, batch: int = 50
) -> Bool[Tensor, "n"]:
    """Of which pictures the best class is their label."""
    found: list[Tensor] = []
    with Progress("eval") as line:
        for images, labels in batches(pictures, preprocess, batch):
            found.append(model(images).argmax(1) == labels)
            line.update({}, len(found) * batch / len(pictures))
    return torch.cat(found)


def accuracy(
    model: nn.Module, pictures: Pictures, preprocess: Preprocess, *, batch: int = 50
) -> float:
    """Share of pictures whose best class is their label, in percent."""
    return 100 * float(correct(model, pictures, preprocess, batch=batch).double().mean())
