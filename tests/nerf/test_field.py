from __future__ import annotations

import pytest
import torch

from compress3g.kernels.hash_grid import Levels
from compress3g.nerf.field import HollowField
from compress3g.nerf.gates import skip_gate
from compress3g.nerf.saliency import SaliencyGrid

# Table 1 of HollowNeRF (2308.10122), millions of parameters as printed.
_SIZES = (14, 15, 16, 17, 18, 19)
_TABLE = {
    None: ("0.50", "0.94", "1.77", "3.34", "6.22", "11.49"),
    64: ("0.76", "1.21", "2.04", "3.60", "6.48", "11.75"),
    96: ("1.39", "1.83", "2.66", "4.22", "7.10", "12.37"),
    128: ("2.60", "3.04", "3.87", "5.43", "8.32", "13.58"),
}


def _field(log2_size: int, resolution: int | None = None, **options) -> HollowField:
    saliency = SaliencyGrid(resolution) if resolution else None
    return HollowField(
        Levels.geometric(log2_size=log2_size),
        saliency=saliency,
        generator=torch.Generator().manual_seed(0),
        **options,
    )


@pytest.mark.parametrize("resolution", _TABLE)
@pytest.mark.parametrize("log2_size", _SIZES)
def test_parameters_of_table_1(log2_size, resolution):
    printed = _TABLE[resolution][_SIZES.index(log2_size)]
    assert f"{_field(log2_size, resolution).parameter_count() / 1e6:.2f}" == printed


def test_exact_parameter_counts():
    assert _field(15).parameter_count() == 944_272
    assert _field(15, 64).parameter_count() == 1_206_416


def _reference(field: HollowField, x: torch.Tensor) -> torch.Tensor:
    """Density in float64 from the equations: one trilinear look-up per level, two layers, exp."""
    levels, table = field.levels, field.table.detach().double()
    features = []
    for level, n in enumerate(levels.resolutions):
        low = (x.double() * n).floor().long().clamp(max=n - 1)
        part = x.double() * n - low
        value = torch.zeros(len(x), 2, dtype=torch.float64)
        for corner in range(8):
            bit = torch.tensor([corner >> k & 1 for k in range(3)])
            v = low + bit
            if levels.dense(level):
                index = v[:, 0] + (n + 1) * (v[:, 1] + (n + 1) * v[:, 2])
            else:
                h = v[:, 0] ^ (v[:, 1] * 2654435761) ^ (v[:, 2] * 805459861)
                index = (h & 0xFFFFFFFF) % levels.sizes[level]
            weight = torch.where(bit.bool(), part, 1 - part).prod(-1)
            value += weight[:, None] * table[levels.offsets[level] + index]
        features.append(value)
    v = torch.cat(features, -1)
    p = torch.ones(len(x), dtype=torch.float64)
    if field.saliency is not None:
        r = field.saliency.resolution
        grid = field.saliency.logits.detach().double().view(1, 1, r, r, r)
        where = (2 * x.double() - 1).view(1, 1, 1, -1, 3)
        logit = torch.nn.functional.grid_sample(grid, where, align_corners=True)
        p = logit.flatten().sigmoid()
    hidden = ((v * p[:, None]) @ field.density_layers[0].detach().double().T).relu()
    return p * (hidden @ field.density_layers[1].detach().double().T)[:, 0].exp()


@pytest.mark.parametrize("resolution", [None, 9])
def test_density_follows_the_equations(resolution, generator):
    field = _field(13, resolution)
    field.table.data.uniform_(-1, 1, generator=generator)
    if field.saliency is not None:
        field.saliency.logits.data.normal_(generator=generator)
    x = torch.rand(500, 3, generator=generator)
    sigma, _ = field.density(x)
    # Single precision through 16 look-ups, two layers and an exponential.
    torch.testing.assert_close(sigma.double(), _reference(field, x), rtol=2e-4, atol=1e-6)


def test_the_p_gate_closes_density_where_p_is_zero(generator):
    field = _field(10, 8)
    assert field.saliency is not None
    field.saliency.logits.data.fill_(-200.0)
    sigma, _ = field.density(torch.rand(64, 3, generator=generator))
    assert torch.equal(sigma, torch.zeros(64))


def test_the_tanh_gate_is_open_at_the_first_step():
    # Features of 1e-4 give alpha ||v|| of about 2.4: the paper's alpha is what keeps it open.
    x = torch.rand(256, 3, generator=torch.Generator().manual_seed(1))
    open_gate = _field(12, 8, gate="tanh").density(x)[0].detach()
    # exp(0) = 1 behind the gate.
    assert 0.5 < float(open_gate.mean()) < 1


def test_gradient_of_the_tanh_gate_is_finite_at_zero():
    v = torch.zeros(3, 32, requires_grad=True)
    gate = skip_gate("tanh", torch.ones(3), v, 1e5)
    assert gate is not None
    gate.sum().backward()
    assert v.grad is not None
    assert bool(v.grad.isfinite().all())


def test_saliency_is_interpolated_before_it_is_squashed(generator):
    grid = SaliencyGrid(5)
    grid.logits.data.normal_(generator=generator)
    vertices = torch.cartesian_prod(*[torch.arange(5)] * 3)
    torch.testing.assert_close(
        grid(vertices.float() / 4), grid.volume()[vertices[:, 2], vertices[:, 1], vertices[:, 0]]
    )
    middle = torch.tensor([[0.125, 0.0, 0.0]])
    logits = grid.logits.detach().view(5, 5, 5)
    expected = ((logits[0, 0, 0] + logits[0, 0, 1]) / 2).sigmoid()
    torch.testing.assert_close(grid(middle)[0], expected)


def test_saliency_starts_at_sigmoid_of_one():
    assert float(SaliencyGrid(4).volume().mean()) == pytest.approx(0.7310586, abs=1e-6)
