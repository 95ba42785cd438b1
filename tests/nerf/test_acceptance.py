"""What a hollow run promises besides PSNR, by the pruner that promises it after few steps.

benchmarks/nerf_acceptance.py measures all pruners, and says what does not hold.
"""

from __future__ import annotations

import pytest
import torch

from compress3g.kernels.ray_march import march
from compress3g.nerf.config import TrainConfig
from compress3g.nerf.hull import visual_hull
from compress3g.nerf.trainer import Trainer

# Without the hull, so that pruning has to find the empty space by itself.
_OPTIONS = {
    **{"steps": 250, "hull": False, "log2_hashmap": 11, "samples": 4096, "march": 128},
    **{"occupancy": 32, "saliency_res": 16, "sparsity": 0.05},
}


@pytest.fixture(scope="module")
def trained(scene):
    """Trainers after a run: without pruning, and pruned to exactly C of the vertices."""
    trainers = {
        "plain": Trainer(scene, TrainConfig(**_OPTIONS)),
        "projected": Trainer(scene, TrainConfig(**_OPTIONS, hollow=True, pruner="projected")),
    }
    for trainer in trainers.values():
        trainer.fit()
    return trainers


def _samples(trainer):
    """Number that the rays of a test view take."""
    model = trainer.model()
    cameras = model.to_unit(trainer.scene.test.cameras)
    pixel = torch.arange(cameras.width * cameras.height)
    x, y = pixel % cameras.width, pixel // cameras.width
    origin, direction = cameras.rays(torch.zeros_like(pixel), x, y)
    half = torch.full_like(origin[:, 0], 0.5)
    grid = {"side": model.occupancy.side, "step": model.march_step, "near": model.near}
    return len(march(origin, direction, half, model.occupancy.bits, **grid))


def test_the_mean_saliency_ends_within_its_budget(trained):
    saliency = trained["projected"].field.saliency
    assert float(saliency.volume().mean()) <= 1.05 * _OPTIONS["sparsity"]


def test_nine_tenths_of_the_space_outside_the_hull_are_closed(trained, scene):
    kept = trained["projected"].pruner.kept(trained["projected"])
    outside = ~visual_hull(scene, len(kept))
    assert float(outside.float().mean()) > 0.3
    assert float((~kept[outside]).float().mean()) >= 0.9
    assert kept.any()


def test_a_hollow_model_takes_no_more_samples_than_a_plain_one(trained):
    assert _samples(trained["projected"]) <= _samples(trained["plain"])
