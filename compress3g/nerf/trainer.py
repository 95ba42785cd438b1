"""The training loop: draw rays, march, shade, step; the pruner looks over its shoulder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.adam import SparseAdam
from ..kernels.hash_grid import Levels
from ..kernels.ray_march import Samples, march
from .config import TrainConfig
from .field import HollowField
from .hull import visual_hull
from .occupancy import OccupancyGrid
from .pixels import Pixels
from .pruning import Pruner, make_pruner
from .render import Rendered, shade
from .scene import Scene

_DEFAULT_STEPS = 2000
_OCCUPANCY_EVERY = 16
_WARM_UP = 128  # steps in which every cell is refreshed, as in Instant-NGP's first 256
_MOST_RAYS = 1 << 14


@dataclass(frozen=True, slots=True)
class Progress:
    """What one step tells the outside."""

    step: int
    done: float  # share of the run, 0 .. 1
    psnr: float  # of the training rays, running mean, dB
    samples: int  # since the start
    seconds: float  # of training
    kept: float  # share of the box that is occupied
    gamma: float | None  # multiplier of the constraint, None without one


class Trainer:
    """Trains a field on a scene; everything a run needs to go on is in `state_dict`."""

    def __init__(self, scene: Scene, config: TrainConfig, *, device: torch.device | None = None) -> None:
        self.scene, self.config = scene, config
        self.device = device or torch.device("cpu")
        self.generator = torch.Generator().manual_seed(config.seed)
        self.march_step = 3**0.5 / config.march
        self._pixels = Pixels(scene, self.device)
        self.pruner: Pruner | None = make_pruner(config) if config.hollow else None
        self.occupancy = OccupancyGrid(config.occupancy, self.march_step).to(self.device)
        if config.hull and scene.has_alpha:
            self.occupancy.allow(visual_hull(scene, config.occupancy).to(self.device))
        self.step = self.samples = 0
        self.seconds = 0.0
        self._loss = 0.0
        self.start_phase()

    def start_phase(self, *, levels: Levels | None = None, begin: float = 0.0, end: float = 1.0) -> None:
        """A fresh field and optimiser for the part [begin, end) of the run; the rays go on."""
        config = self.config
        grid = levels or Levels.geometric(log2_size=config.log2_hashmap, finest=config.finest)
        saliency = self.pruner.saliency() if self.pruner else None
        gate = self.pruner.gate if self.pruner else "none"
        self.field = HollowField(grid, saliency=saliency, gate=gate, generator=self.generator)
        self.field.to(self.device)
        groups = [{"params": [p for n, p in self.field.named_parameters() if "saliency" not in n]}]
        if saliency is not None:
            groups.append({"params": [*saliency.parameters()]})
        self.optimizer = SparseAdam(groups, lr=config.learning_rate)
        self.phase = (begin, end)
        self.phase_step = 0
        self.rays = 64

    def done(self) -> float:
        """Share of the run that is over."""
        if self.config.seconds is not None:
            return min(1.0, self.seconds / self.config.seconds)
        return min(1.0, self.step / (self.config.steps or _DEFAULT_STEPS))

    def phase_done(self) -> float:
        """Share of the current phase that is over."""
        begin, end = self.phase
        return min(1.0, max(0.0, (self.done() - begin) / (end - begin)))

    def fit(self, after_step: Callable[[Progress], bool] | None = None) -> None:
        """Train to the end of the run, or until `after_step` returns False."""
        while self.done() < 1.0:
            began = time.perf_counter()
            self._train_step()
            self.seconds += time.perf_counter() - began
            if after_step is not None and not after_step(self.progress()):
                return

    def progress(self) -> Progress:
        """Where the run stands."""
        gamma = self.pruner.gamma() if self.pruner else None
        psnr = -10 * torch.log10(torch.tensor(max(self._loss, 1e-10))).item()
        return Progress(
            *(self.step, self.done(), psnr, self.samples, self.seconds),
            *(self.occupancy.fraction(), gamma),
        )

    def _train_step(self) -> None:
        if self.pruner:
            self.pruner.before_step(self)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * 0.1 ** self.phase_done()
        if self.pruner:
            self.pruner.set_rates(self)
        samples, rendered, loss = self._forward()
        total = loss
        if self.pruner and (penalty := self.pruner.penalty(self)) is not None:
            total = loss + penalty
        total.backward()
        self.optimizer.step()
        self._loss = loss.item() if self.step == 0 else 0.95 * self._loss + 0.05 * loss.item()
        self.step += 1
        self.phase_step += 1
        self.samples += len(samples)
        self.rays = max(16, min(_MOST_RAYS, self.rays * self.config.samples // max(1, len(samples))))
        if self.pruner:
            self.pruner.after_step(self, samples, rendered)
        if self.phase_step % _OCCUPANCY_EVERY == 0:
            share = 1.0 if self.phase_step <= _WARM_UP else 0.25
            self.occupancy.update(self.density, self.generator, share=share)

    def density(self, x: Tensor) -> Tensor:
        """Density of points, for the occupancy grid."""
        return self.field.density(x)[0]

    def _forward(self) -> tuple[Samples, Rendered, Tensor]:
        rays = self._pixels.draw(self.rays, self.generator)
        jitter = torch.rand(len(rays.origin), generator=self.generator).to(self.device)
        background = torch.ones_like(rays.origin)
        if self.scene.has_alpha:
            background = torch.rand(len(rays.origin), 3, generator=self.generator).to(self.device)
        samples = march(
            rays.origin,
            rays.direction,
            jitter,
            self.occupancy.bits,
            side=self.occupancy.side,
            step=self.march_step,
            near=self.scene.near / self.scene.side,
        )
        rendered = shade(self.field, samples, rays.direction, background, self.march_step)
        return samples, rendered, (rendered.colour - rays.over(background)).square().mean()
