from __future__ import annotations

import copy

import pytest
import torch

from compress3g.core import Budget, gated, materialize, price, select
from compress3g.diffusion import refit, units_of

from . import denoisers
from .denoisers import denoiser, first_latent, predict


def test_several_passes_come_to_the_same():
    model, passes = denoiser("SD3", torch.float32), []
    units = price(model, units_of(model))
    scores = {u.name: torch.rand(u.size, generator=torch.Generator().manual_seed(0)) for u in units}
    keep = select(scores, units, Budget(0.6))

    def batches():
        passes.append(1)
        return [first_latent("SD3", torch.float32)]

    def run(m, z):
        predict("SD3", m, torch.cat([z, z]), torch.tensor(7.0))

    found = []
    for memory in (1 << 30, 1):
        small = copy.deepcopy(model)
        refit(small, units, keep, batches, run=run, memory=memory)
        found.append(dict(small.named_parameters()))
    assert len(passes) == 1 + sum(len(u.reads) for u in units)
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])


@pytest.mark.parametrize("name", denoisers.DENOISERS)
def test_refit_brings_a_pruned_denoiser_closer(name):
    model = denoiser(name, torch.float32)
    units = price(model, units_of(model))
    scores = {u.name: torch.rand(u.size, generator=torch.Generator().manual_seed(0)) for u in units}
    keep = select(scores, units, Budget(0.7))
    shape = (2, *first_latent(name).shape[1:])
    *seen, unseen = (denoisers.noise(*shape, seed=i, dtype=torch.float32) for i in range(9))

    def run(m, z):
        return predict(name, m, z, torch.tensor(300.0))

    gates = {u.name: torch.zeros(u.size).index_fill(0, keep[u.name], 1.0) for u in units}
    small = copy.deepcopy(model)
    with torch.no_grad():
        dense = run(model, unseen)
        with gated(model, units, gates):
            plain = (run(model, unseen) - dense).square().mean()
        refit(small, units, keep, lambda: seen, run=run)
        mended = (run(materialize(small, units, keep), unseen) - dense).square().mean()
    assert mended < 0.95 * plain  # random networks: hardly an input predicts another
