"""The training loop: draw rays, march, shade, step; the pruner looks over its shoulder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError, SceneError
from ..kernels.adam import SparseAdam
from ..kernels.ray_march import Samples, march
from .config import TrainConfig
from .field import HollowField
from .hull import visual_hull
from .model import NerfModel
from .occupancy import OccupancyGrid
from .phase import Phase
from .pixels import Pixels, Rays
from .pruning import Pruner, make_pruner
from .render import shade
from .scene import Scene

DEFAULT_STEPS = 2000
_FIRST_RAYS = 64
_MOST_RAYS = 1 << 14


@dataclass(frozen=True, slots=True)
class Progress:
    """What one step tells the outside."""

    step: int
    done: float  # share of the run, 0 .. 1
    psnr: float  # of the training rays, running mean, dB
    samples: int  # since the start
    seconds: float  # of training
    phase: str
    occupied: float  # share of the box
    gamma: float | None  # multiplier of the constraint, None without one


class Trainer:
    """Trains a field on a scene: `fit()`, then `model()`.

    pruner, phase: instead of those the configuration names, for experiments.
    """

    def __init__(
        self,
        scene: Scene,
        config: TrainConfig,
        *,
        device: torch.device | None = None,
        pruner: Pruner | None = None,
        phase: Phase | None = None,
    ) -> None:
        self.scene, self.config = scene, config
        self.device = device or torch.device("cpu")
        # A GPU is idle between the launches of small steps.
        usual = 1 << 18 if self.device.type == "cuda" else 1 << 14
        self.samples_per_step = config.samples or usual
        self.generator = torch.Generator().manual_seed(config.seed)
        self._pixels = Pixels(scene, self.device)
        self.pruner = pruner or make_pruner(config)
        self.step = self.samples = 0
        self.seconds = 0.0
        self.loss = math.nan
        self.occupancy = OccupancyGrid(config.occupancy, 3**0.5 / config.march).to(self.device)
        if config.hull and scene.has_alpha:
            hull = visual_hull(scene, config.occupancy)
            if not hull.any():
                raise SceneError(
                    f"{scene.path}: the images' alpha leaves no space in the box: their poses or "
                    "--box are wrong, else give --no-hull"
                )
            self.occupancy.allow(hull.to(self.device))
        self.start_phase(phase or Phase.whole(config))
        self.pruner.start(self)

    def start_phase(self, phase: Phase) -> None:
        """A fresh field and optimiser; rays and the occupancy grid's allowed cells go on."""
        self.phase, self.phase_step = phase, 0
        self.occupancy.step = phase.march_step
        self.rays = _FIRST_RAYS
        field = HollowField(
            phase.levels,
            kept=phase.kept,
            saliency=self.pruner.saliency(),
            gate=self.pruner.gate,
            generator=self.generator,
        )
        self.field = field.to(self.device)
        rest = [p for name, p in field.named_parameters() if not name.startswith("saliency.")]
        groups = [{"params": rest}]
        if field.saliency is not None:
            groups.append({"params": [*field.saliency.parameters()]})
        self.optimizer = SparseAdam(groups, lr=self.config.learning_rate)

    def done(self) -> float:
        """Share of the run that is over."""
        if self.config.seconds is not None:
            return min(1.0, self.seconds / self.config.seconds)
        return min(1.0, self.step / (self.config.steps or DEFAULT_STEPS))

    def learning_rate(self) -> float:
        """Adam's rate: falls to a tenth during each phase."""
        return float(self.config.learning_rate * 0.1 ** self.phase_done())

    def phase_done(self) -> float:
        """Share of the current phase that is over."""
        begin, end = self.phase.begin, self.phase.end
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
        psnr = -10 * math.log10(max(self.loss, 1e-10)) if self.step else math.nan
        return Progress(
            *(self.step, self.done(), psnr, self.samples, self.seconds, self.phase.name),
            *(self.occupancy.fraction(), self.pruner.gamma()),
        )

    def model(self) -> NerfModel:
        """What has been trained, sharing its memory with the trainer."""
        return NerfModel(
            field=self.field,
            occupancy=self.occupancy,
            march_step=self.phase.march_step,
            near=self._near(),
            cameras=self.scene.unit(self.scene.train),
            centre=self.scene.centre,
            side=self.scene.side,
        )

    def refresh_occupancy(self) -> None:
        """Ask the field about every allowed cell."""
        self.occupancy.update(self._density, self.generator, share=1.0)

    def march_random_rays(self, count: int) -> tuple[Samples, Rays]:
        """Samples of random training rays in occupied cells, and the rays."""
        rays = self._pixels.draw(count, self.generator)
        jitter = torch.rand(count, generator=self.generator).to(self.device)
        samples = march(
            *(rays.origin, rays.direction, jitter, self.occupancy.bits),
            side=self.occupancy.side,
            step=self.phase.march_step,
            near=self._near(),
        )
        return samples, rays

    def _near(self) -> float:
        return self.scene.near / self.scene.side

    def _density(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
        return self.field.density(x)[0]

    def _train_step(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.pruner.before_step(self)
        count, loss = self._forward()
        penalty = self.pruner.penalty(self)
        (loss if penalty is None else loss + penalty).backward()
        self.optimizer.step()
        self._note(loss.item(), count)
        if self.phase_step % self.phase.occupancy_every == 0:
            share = 1.0 if self.phase_step <= self.phase.warm_up else 0.25
            self.occupancy.update(self._density, self.generator, share=share)
        self.pruner.after_step(self)

    def _forward(self) -> tuple[int, Float[Tensor, ""]]:
        """Number of samples, and the mean squared error of a bundle of random rays."""
        samples, rays = self.march_random_rays(self.rays)
        background = torch.ones_like(rays.origin)
        if self.scene.has_alpha:
            # What is behind changes from ray to ray, so density cannot paint the background.
            background = torch.rand(len(background), 3, generator=self.generator).to(self.device)
        rendered = shade(self.field, samples, rays.direction, background, self.phase.march_step)
        self.pruner.watch(self, samples, rendered.weight.detach())
        return len(samples), (rendered.colour - rays.over(background)).square().mean()

    def _note(self, loss: float, count: int) -> None:
        if not math.isfinite(loss):
            raise ConfigError(
                f"training diverged at step {self.step}: try a --learning-rate below "
                f"{self.config.learning_rate:g}"
            )
        self.loss = 0.95 * self.loss + 0.05 * loss if self.step else loss
        self.step += 1
        self.phase_step += 1
        self.samples += count
        # The number of samples is what a step costs, so rays adapt to keep it constant.
        wanted = self.rays * self.samples_per_step // max(1, count)
        self.rays = max(16, min(max(_MOST_RAYS, self.samples_per_step), wanted))
