"""What a hollow run promises besides PSNR: its budget, closed gates, hollow insides, fewer samples.

    python benchmarks/nerf_acceptance.py [--quick] [--json] [--pruners rewind saliency ...]

Two scenes whose shape is known exactly: a ball, ray traced here, and the shipped orchard with its
spherical fruits. No visual hull, so that pruning has to find the empty space by itself. Measured
after every run, beside a plain grid of equal table size and steps:

- S(G), the mean of p, over the budget C (HollowNeRF 2308.10122, 3.4);
- the share of cells outside the visual hull that are closed;
- density deeper than three cells inside, over that at the surface, where the renderer samples;
- samples per pixel of the test views.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch is loaded, as the command line does it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from _report import goal, parser, report

from compress3g.kernels.ray_march import march
from compress3g.nerf.cameras import Cameras
from compress3g.nerf.config import TrainConfig
from compress3g.nerf.hull import visual_hull
from compress3g.nerf.result import result_of
from compress3g.nerf.scene import Scene, Views
from compress3g.nerf.trainer import Trainer
from compress3g.nerf.visibility import cell_of

ROOT = Path(__file__).parent.parent
PRUNERS = ("rewind", "saliency", "projected", "paper")
BUDGET = {"saliency": 0.05, "projected": 0.05, "paper": 0.04}  # the defaults of C
DEEP = 3  # cells below the surface


@dataclass(frozen=True, slots=True)
class Solid:
    """A scene, and the balls in it: centres [b, 3] and radii [b] in units of the cube."""

    scene: Scene
    centres: torch.Tensor
    radii: torch.Tensor


def look_at(eyes: torch.Tensor) -> torch.Tensor:
    """Camera-to-world poses [n, 3, 4] that look at the origin."""
    back = torch.nn.functional.normalize(eyes, dim=1)
    right = torch.linalg.cross(torch.tensor([0.0, 0, 1]).expand_as(back), back)
    right = torch.nn.functional.normalize(right, dim=1)
    return torch.stack([right, torch.linalg.cross(back, right), back, eyes], 2)


def ball(size: int = 96, radius: float = 0.5) -> Solid:
    """A ball in a box of side 2, coloured by its normal, 40 training and 4 test views."""
    generator = torch.Generator().manual_seed(0)
    eyes = 3 * torch.nn.functional.normalize(torch.randn(44, 3, generator=generator), dim=1)
    cameras = Cameras(
        width=size,
        height=size,
        intrinsics=torch.tensor([[1.4 * size, 1.4 * size, size / 2, size / 2]]).expand(44, 4),
        distortion=torch.zeros(44, 6),
        model="pinhole",
        poses=look_at(eyes),
    )
    view, y, x = torch.meshgrid(*(torch.arange(n) for n in (44, size, size)), indexing="ij")
    origin, direction = cameras.rays(view.reshape(-1), x.reshape(-1), y.reshape(-1))
    b = (origin * direction).sum(1)
    root = b.square() - (origin.square().sum(1) - radius**2)
    normal = (origin + (-b - root.clamp(min=0).sqrt())[:, None] * direction) / radius
    rgba = torch.cat([0.5 + 0.4 * normal, torch.ones_like(b)[:, None]], 1) * (root > 0)[:, None]
    images = (rgba.clamp(0, 1) * 255).round().byte().view(44, size, size, 4)
    names = tuple(f"v{i:02d}" for i in range(44))
    views = Views(cameras=cameras, images=images, names=names)
    scene = Scene(
        name="ball", path=ROOT, format="blender", train=views.select(range(40)),
        test=views.select(range(40, 44)), centre=torch.zeros(3), side=2.0, near=0.0, has_alpha=True,
    )  # fmt: skip
    return Solid(scene, torch.full((1, 3), 0.5), torch.tensor([radius / 2]))


def orchard() -> Solid:
    """The shipped scene; every fourth fruit is a sphere."""
    sys.path.insert(0, str(ROOT / "scenes"))
    import numpy as np
    from generator.orchard import SEED, _places

    scene = Scene.load(ROOT / "scenes" / "orchard")
    centres, radii = (torch.from_numpy(v).float() for v in _places(np.random.default_rng(SEED)))
    unit = (centres[::4] - scene.centre) / scene.side + 0.5
    return Solid(scene, unit, radii[::4] / scene.side)


@torch.no_grad()
def rendered_density(trainer: Trainer, x: torch.Tensor) -> torch.Tensor:
    """Density at points of the cube as the renderer meets it: none in cells it skips."""
    sigma, _ = trainer.field.density(x)
    return sigma * trainer.occupancy.cells().reshape(-1)[cell_of(x, trainer.occupancy.side)]


def interior_ratio(trainer: Trainer, solid: Solid, points: int = 200_000) -> float:
    """Mean density deeper than DEEP cells inside, over the mean within a cell of the surface."""
    cell = 1 / trainer.occupancy.side
    generator = torch.Generator().manual_seed(1)
    which = torch.randint(len(solid.radii), (points,), generator=generator)
    away = torch.randn(points, 3, generator=generator)
    away = torch.nn.functional.normalize(away, dim=1)
    share = torch.rand(points, 1, generator=generator) ** (1 / 3)  # even in the ball
    radius = solid.radii[which, None]
    density = rendered_density(trainer, solid.centres[which] + away * share * (radius + cell))
    depth = (radius - share * (radius + cell))[:, 0]
    inside, surface = density[depth > DEEP * cell], density[depth.abs() < cell]
    return float(inside.mean() / surface.mean())


def samples_per_pixel(trainer: Trainer) -> float:
    """Samples that a test view's ray takes, on average."""
    model = trainer.model()
    cameras = model.to_unit(trainer.scene.test.cameras)
    pixel = torch.arange(cameras.width * cameras.height)
    taken = 0
    for view in range(len(cameras)):
        origin, direction = cameras.rays(
            torch.full_like(pixel, view), pixel % cameras.width, pixel // cameras.width
        )
        taken += len(
            march(
                *(origin, direction, torch.full_like(origin[:, 0], 0.5), model.occupancy.bits),
                side=model.occupancy.side, step=model.march_step, near=model.near,
            )
        )  # fmt: skip
    return taken / (len(cameras) * len(pixel))


def closed_share(trainer: Trainer) -> float:
    """Share of the pruner's cells outside the visual hull that it closed."""
    kept = trainer.pruner.kept(trainer)
    return float((~kept[~visual_hull(trainer.scene, len(kept))]).float().mean())


def measure(solid: Solid, config: TrainConfig) -> dict[str, float]:
    trainer = Trainer(solid.scene, config)
    trainer.fit()
    row = {
        "psnr": result_of(trainer).psnr,
        "seconds": trainer.seconds,
        "samples_per_pixel": samples_per_pixel(trainer),
        "interior_over_surface": interior_ratio(trainer, solid),
    }
    if config.hollow:
        row["closed_outside_hull"] = closed_share(trainer)
    if trainer.field.saliency is not None:
        row["S"] = float(trainer.field.saliency.volume().mean())
    return row


def judge(name: str, pruner: str, row: dict[str, float], plain: dict[str, float]) -> list[Any]:
    where = f"{name}, {pruner}: "
    ratio = row["samples_per_pixel"] / plain["samples_per_pixel"]
    inside = row["interior_over_surface"]
    goals = [
        goal(where + "cells outside the hull closed", row["closed_outside_hull"], 0.9),
        goal(where + "density inside over surface", inside, 0.01, at_least=False),
        goal(where + "samples per pixel over plain's", ratio, 1.0, at_least=False),
    ]
    if pruner in BUDGET:
        goals.append(goal(where + "S(G) over C", row["S"] / BUDGET[pruner], 1.05, at_least=False))
    return goals


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--pruners", nargs="+", choices=PRUNERS, default=list(PRUNERS))
    options_of.add_argument("--steps", type=int, default=1000)
    options_of.add_argument("--seed", type=int, default=0)
    options_of.add_argument("--threads", type=int, default=2)
    options = options_of.parse_args()
    torch.set_num_threads(options.threads)
    if options.quick:
        options.pruners = [name for name in options.pruners if name in ("rewind", "projected")]
    began, steps = time.monotonic(), 300 if options.quick else options.steps
    shared = {"steps": steps, "seed": options.seed, "hull": False, "march": 256}
    shared |= {"log2_hashmap": 12, "saliency_res": 32}
    goals: list[Any] = []
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for solid in [ball()] if options.quick else [ball(), orchard()]:
        name = solid.scene.name
        rows[name] = {"plain": measure(solid, TrainConfig(**shared))}
        for pruner in options.pruners:
            config = TrainConfig(hollow=True, pruner=pruner, **shared)
            rows[name][pruner] = measure(solid, config)
        for pruner, row in rows[name].items():
            text = "  ".join(f"{key} {value:.4g}" for key, value in row.items())
            print(f"{name:8}{pruner:10}{text}", flush=True)
        for pruner in options.pruners:
            goals += judge(name, pruner, rows[name][pruner], rows[name]["plain"])
    report(
        "nerf_acceptance",
        options,
        seeds=[options.seed],
        goals=goals,
        rows=rows,
        seconds=time.monotonic() - began,
        config=shared,
    )


if __name__ == "__main__":
    main()
