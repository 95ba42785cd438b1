"""The port of the terrain U-Net: what of it can go, and what is left computes what masking does."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from compress3g.core import gated
from compress3g.diffusion import PruneConfig, prune, skipped_of, units_of
from compress3g.diffusion.pruned_models import kept_of
from compress3g.diffusion.units import kind_of

from .tiny import random_scores

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import _terrain
import diffusion_terrain


def network():
    torch.manual_seed(0)
    return _terrain.TerrainUNet(multipliers=(1, 2), blocks=1, attention_from=1).eval()


def given():
    g = torch.Generator().manual_seed(1)
    return torch.randn(2, 1, 16, 16, generator=g), torch.tensor([80.0, 0.5]), torch.rand(2)


def test_its_heads_and_channel_groups_are_found():
    model = network()
    kinds = {kind_of(u) for u in units_of(model)}
    assert kinds == {"heads", "groups"}
    assert not skipped_of(model)
    blocks = [m for m in model.modules() if isinstance(m, _terrain.Residual)]
    assert sum(kind_of(u) == "groups" for u in units_of(model)) == len(blocks)


def test_the_benchmark_ranks_masks_as_the_product_does():
    """Logits in one list of all groups, and not group by group as norms."""
    g = torch.Generator().manual_seed(3)
    units = units_of(network())
    logits = {u.name: torch.randn(u.size, generator=g) + i for i, u in enumerate(units)}
    name = "ecodiff@0.3"
    theirs = diffusion_terrain.pruned(network(), name, 0.2, {name: logits}, [])

    def kept_units(model):
        keep = kept_of(model.config["compress3g"], units)
        return {name: kept.tolist() for name, kept in keep.items()}

    def by(method):
        pipe = _terrain.Pipe(network())
        prune(pipe, logits, **PruneConfig(method=method, ratio=0.2, round_to=1).how())
        return kept_units(pipe.unet)

    assert kept_units(theirs) == by("ecodiff")
    assert kept_units(theirs) != by("magnitude")


def test_what_is_left_computes_what_masking_does():
    model, whole = network(), network()
    units = units_of(whole)
    prune(_terrain.Pipe(model), random_scores(units), ratio=0.3, round_to=1)
    keep = kept_of(model.config["compress3g"], units)
    gates = {u.name: torch.zeros(u.size).index_fill(0, keep[u.name], 1.0) for u in units}
    inputs = given()
    with torch.no_grad(), gated(whole, units, gates):
        masked = whole(*inputs)
    with torch.no_grad():
        # Sums of fewer terms round differently: some float32 steps of values below 1.
        assert torch.allclose(model(*inputs), masked, atol=1e-5)


def test_without_noise_it_gives_its_input_back():
    noisy, _, difficulty = given()
    sigma = torch.full((2,), _terrain.SIGMA_MIN)
    with torch.no_grad():
        found = network()(noisy.clamp(-1, 1), sigma, difficulty)
    assert torch.allclose(found, noisy.clamp(-1, 1), atol=1e-6)


@pytest.mark.parametrize("wavenumber", [3, 20])
def test_a_wave_stands_in_its_ring_of_the_spectrum(wavenumber):
    x = torch.arange(64) * (2 * math.pi * wavenumber / 64)
    field = x.cos().expand(1, 1, 64, 64)
    assert int(diffusion_terrain.spectrum(field).argmax()) + 1 == wavenumber
    assert diffusion_terrain.decibels(10 * field + torch.rand(64, 64), field) > 1
