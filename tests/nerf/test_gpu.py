from __future__ import annotations

import pytest
import torch

from compress3g.nerf.config import TrainConfig
from compress3g.nerf.trainer import Trainer

from .test_trainer import _SMALL, _psnr

pytestmark = pytest.mark.gpu


def test_the_first_step_is_that_of_a_cpu(scene):
    losses = []
    for device in ("cpu", "cuda"):
        trainer = Trainer(scene, TrainConfig(steps=20, **_SMALL), device=torch.device(device))
        trainer._train_step()
        losses.append(trainer.loss)
    # Products of ten bits on the GPU.
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)


@pytest.mark.parametrize("pruner", [None, "rewind", "saliency", "projected", "paper"])
def test_a_gpu_learns_what_a_cpu_does(scene, pruner):
    options = {"hollow": True, "pruner": pruner} if pruner else {}
    config = TrainConfig(steps=150, hull=False, **_SMALL, **options)
    found = []
    for device in ("cpu", "cuda"):
        trainer = Trainer(scene, config, device=torch.device(device))
        trainer.fit()
        found.append(_psnr(trainer))
    assert found[1] > found[0] - 1.5
