from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from compress3g.diffusion.aptp import AptpPipeline, train_router
from compress3g.diffusion.aptp.corpus import Corpus

from .conftest import CONFIG, PROMPTS

pytestmark = pytest.mark.gpu


def test_a_router_is_trained_and_routes_on_a_gpu_as_on_a_cpu(pipe):
    shares, images = [], []
    for device in ("cpu", "cuda"):
        own = copy.deepcopy(pipe).to(device)
        router = train_router(Corpus.of(own, PROMPTS, steps=4), CONFIG)
        routed = AptpPipeline(own, router)
        shares.append(router.shares.tolist())
        seeds = [torch.Generator().manual_seed(i) for i in range(4)]
        made = routed(PROMPTS[:4], generator=seeds, num_inference_steps=2, output_type="np")
        images.append(np.asarray(made.images))
    # The same draws on both; what differs is the order of sums.
    assert shares[1] == pytest.approx(shares[0], abs=0.05)
    assert np.isfinite(images[1]).all()
