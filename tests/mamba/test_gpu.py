from __future__ import annotations

import copy

import pytest
import torch

from compress3g.kernels import registry
from compress3g.mamba import PruneConfig, PruneSchedule, pruned

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("align", [None, "none", "hold", "current", "previous", "mean", "bias"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_logits_and_gradients_are_those_of_a_cpu(vim, images, align, backend):
    pruning = align and PruneConfig(
        schedule=PruneSchedule(layers=(1, 3), keep=(0.6, 0.6)), align=align, conv_align="zero"
    )
    found = []
    for device in ("cpu", "cuda"):
        model = copy.deepcopy(vim).to(device)
        with registry.use(**registry.use_everywhere(backend)), pruned(model, pruning or None):
            logits = model(images.to(device))
            logits.square().sum().backward()
        found.append([logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 10
    for cpu, gpu in zip(*found, strict=True):
        scale = float(cpu.abs().max()) + 1e-6
        torch.testing.assert_close(gpu.cpu(), cpu, atol=1e-3 * scale, rtol=0)
