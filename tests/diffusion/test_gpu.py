from __future__ import annotations

import copy

import pytest
import torch

from compress3g.diffusion import EcoDiffConfig, PruneConfig, learn_masks, prune, scores_of
from compress3g.diffusion.pipelines import denoiser_of

from .pipelines import OPTIONS, pipeline
from .test_ecodiff import PROMPTS, QUICK

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),
]

FAMILIES = ("SD3", "SD")


@pytest.mark.parametrize("name", FAMILIES)
def test_masks_are_learnt_on_a_gpu_as_on_a_cpu(name):
    losses = []
    for device in ("cpu", "cuda"):
        pipe = copy.deepcopy(pipeline(name)).to(device)
        learned = learn_masks(pipe, PROMPTS, EcoDiffConfig(**QUICK), call=OPTIONS[name])
        losses.append([row["loss"] for row in learned.history])
        assert all(z.device.type == "cpu" for z in learned.logits.values())
    # Noise of the gates is drawn on the device: the same law, not the same numbers.
    assert losses[1] == pytest.approx(losses[0], rel=1.0)


@pytest.mark.parametrize("method", ["magnitude", "taylor", "fisher"])
@pytest.mark.parametrize("name", FAMILIES)
def test_scores_and_cuts_of_a_gpu_are_those_of_a_cpu(name, method):
    kept, weights = [], []
    config = PruneConfig(method=method, ratio=0.2, steps=2)
    for device in ("cpu", "cuda"):
        pipe = copy.deepcopy(pipeline(name)).to(device)
        scores = scores_of(pipe, PROMPTS, config)
        prune(pipe, scores, **config.how())
        model = denoiser_of(pipe)[1]
        kept.append({k: tuple(p.shape) for k, p in model.named_parameters()})
        weights.append(scores)
        assert next(model.parameters()).device.type == device
    assert kept[0] == kept[1]
    for group, cpu in weights[0].items():
        scale = float(cpu.abs().max()) + 1e-12
        torch.testing.assert_close(weights[1][group].cpu(), cpu, atol=1e-2 * scale, rtol=0)
