from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.kernels.hash_grid import Levels
from compress3g.nerf.field import HollowField
from compress3g.nerf.gates import GateName
from compress3g.nerf.harmonics import harmonics
from compress3g.nerf.saliency import SaliencyGrid

_GATES: tuple[GateName, ...] = ("p", "tanh", "none")
_SMALL = Levels.geometric(count=5, log2_size=8, coarsest=4, finest=64)
_PAPER = Levels.geometric(log2_size=10)  # 16 levels of 2 features, all but none hashed


def _rand(*shape: int, seed: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def _field(
    levels: Levels = _SMALL, resolution: int | None = 6, gate: GateName = "p", seed: int = 0
) -> HollowField:
    """A field as after training: features, saliency and density of order one."""
    saliency = None if resolution is None else SaliencyGrid(resolution)
    field = HollowField(
        levels, saliency=saliency, gate=gate, generator=torch.Generator().manual_seed(seed)
    )
    with torch.no_grad():
        field.table.mul_(1e4)
        if saliency is not None:
            saliency.logits.copy_(_rand(*saliency.logits.shape, seed=seed + 1) * 6 - 3)
    field.alpha = 0.3
    return field


@dataclass
class Twin:
    """The field in double, written from the equations, with nothing of it but its numbers."""

    table: torch.Tensor
    density_layers: list[torch.Tensor]
    colour_layers: list[torch.Tensor]
    logits: torch.Tensor | None
    levels: Levels
    gate: str
    alpha: float

    @classmethod
    def of(cls, field: HollowField) -> Twin:
        logits = None
        if field.saliency is not None:
            r = field.saliency.resolution
            logits = field.saliency.logits.detach().double().view(r, r, r)
        return cls(
            field.table.detach().double(),
            [w.detach().double() for w in field.density_layers],
            [w.detach().double() for w in field.colour_layers],
            logits,
            field.levels,
            field.gate,
            field.alpha,
        )

    def parameters(self) -> list[torch.Tensor]:
        logits = [] if self.logits is None else [self.logits]
        return [self.table, *self.density_layers, *self.colour_layers, *logits]

    def density(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        v = torch.cat([self._level(x, k) for k in range(len(self.levels.resolutions))], 1)
        p = torch.ones(len(x)).double()
        if self.logits is not None:
            p = torch.sigmoid(_trilinear(x * (len(self.logits) - 1), self._logit))
            v = p[:, None] * v
        h = torch.relu(v @ self.density_layers[0].T) @ self.density_layers[1].T
        sigma = torch.exp(h[:, 0])
        if self.logits is not None and self.gate != "none":
            sigma = sigma * (p if self.gate == "p" else torch.tanh(self.alpha * v.norm(dim=1)))
        return sigma, h

    def colour(self, h: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
        y = torch.cat([h[:, 1:], harmonics(view)], 1)
        a, b, c = self.colour_layers
        return torch.sigmoid(torch.relu(torch.relu(y @ a.T) @ b.T) @ c.T)

    def _logit(self, vertex: torch.Tensor) -> torch.Tensor:
        assert self.logits is not None
        last = len(self.logits) - 1
        x, y, z = vertex.clamp(max=last).unbind(-1)
        return self.logits[z, y, x]

    def _level(self, x: torch.Tensor, level: int) -> torch.Tensor:
        cells, size = self.levels.resolutions[level], self.levels.sizes[level]
        start = self.levels.offsets[level]

        def feature(vertex: torch.Tensor) -> torch.Tensor:
            rows = []
            for i, j, k in vertex.tolist():
                if (cells + 1) ** 3 <= size:
                    rows.append(start + i + j * (cells + 1) + k * (cells + 1) ** 2)
                else:
                    mixed = i ^ (j * 2654435761) % 2**32 ^ (k * 805459861) % 2**32
                    rows.append(start + mixed % size)
            return self.table[rows]

        return _trilinear(x * cells, feature)


def _trilinear(place: torch.Tensor, value) -> torch.Tensor:
    low = place.floor()
    part = place - low
    total: torch.Tensor | float = 0.0
    for corner in range(8):
        bit = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2 & 1])
        weight = torch.where(bit.bool(), part, 1 - part).prod(-1)
        found = value((low + bit).long())
        total = total + (weight[:, None] * found if found.dim() == 2 else weight * found)
    return total


def _points(count: int, seed: int = 0) -> torch.Tensor:
    # On 1/64 of a cell of the finest level every position is exact in float32.
    return (_rand(count, 3, seed=seed) * 4096).floor() / 4096


def _views(count: int, seed: int = 0) -> torch.Tensor:
    v = _rand(count, 3, seed=seed) - 0.5
    return v / v.norm(dim=1, keepdim=True)


# HollowNeRF (2308.10122), Table 1: millions of parameters for T = 2^14 .. 2^19.
_TABLE_1 = {
    0: "0.50 0.94 1.77 3.34 6.22 11.49",
    64: "0.76 1.21 2.04 3.60 6.48 11.75",
    96: "1.39 1.83 2.66 4.22 7.10 12.37",
    128: "2.60 3.04 3.87 5.43 8.32 13.58",
}


def _counted(log2_size: int, resolution: int) -> int:
    # Tensors without memory: 2^19 entries and 128^3 vertices are 54 MB otherwise.
    with torch.device("meta"):
        saliency = SaliencyGrid(resolution) if resolution else None
        levels = Levels.geometric(log2_size=log2_size)
        field = HollowField(levels, saliency=saliency, generator=torch.Generator())
        assert field.table.is_meta
        return field.parameter_count()


@pytest.mark.parametrize("resolution", _TABLE_1)
def test_parameter_counts_are_those_of_the_paper_to_the_digit(resolution):
    found = [f"{_counted(size, resolution) / 1e6:.2f}" for size in range(14, 20)]
    assert " ".join(found) == _TABLE_1[resolution]


def test_exact_parameter_counts():
    # 2 sum_l n_l by the levels' rule, 9,344 of two networks without bias, 64^3 of the saliency.
    assert _counted(15, 0) == 944_272
    assert _counted(15, 64) == 1_206_416


def test_a_field_counts_what_it_trains():
    field = _field()
    assert field.parameter_count() == sum(p.numel() for p in field.parameters())
    networks = 32 * 64 + 64 * 16 + 31 * 64 + 64 * 64 + 64 * 3
    assert _counted(14, 0) - 2 * Levels.geometric(log2_size=14).entries == networks
    # Buffers would escape the count and an optimiser.
    assert not list(field.buffers())


@pytest.mark.parametrize("gate", _GATES)
@pytest.mark.parametrize("levels", [_SMALL, _PAPER])
@pytest.mark.parametrize("resolution", [None, 2, 7])
def test_density_is_its_equation(gate, levels, resolution):
    field, x = _field(levels, resolution, gate), _points(80)
    sigma, h = field.density(x)
    true_sigma, true_h = Twin.of(field).density(x.double())
    # Sums of up to 64 products of order one in float32; those of the C code in another order.
    torch.testing.assert_close(h.double(), true_h, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sigma.double(), true_sigma, atol=1e-5, rtol=1e-5)


def test_colour_is_its_equation():
    field = _field()
    x, view = _points(60), _views(9)
    index = torch.arange(0, 60, 3)
    ray = torch.arange(20) % 9
    _, h = field.density(x)
    found = field.colour(h, harmonics(view), index, ray)
    twin = Twin.of(field)
    true = twin.colour(twin.density(x.double())[1][index], view.double()[ray])
    torch.testing.assert_close(found.double(), true, atol=1e-5, rtol=0)
    assert ((found > 0) & (found < 1)).all()


def _loss(model, x, view, upstream) -> torch.Tensor:
    """Something of both density and colour, so that every parameter counts."""
    sigma, h = model.density(x)
    every = torch.arange(len(x))
    if isinstance(model, Twin):
        colour = model.colour(h, view)
    else:
        colour = model.colour(h, harmonics(view), every, every)
    return (sigma * upstream[:, 0]).sum() + (colour * upstream[:, 1:]).sum()


@pytest.mark.parametrize("gate", _GATES)
@pytest.mark.parametrize("resolution", [None, 5])
def test_gradients_are_those_of_finite_differences(gate, resolution):
    field = _field(resolution=resolution, gate=gate)
    x, view, upstream = _points(24), _views(24), _rand(24, 4, seed=7) - 0.5
    _loss(field, x, view, upstream).backward()
    found = [p.grad.double() for p in (field.table, *field.density_layers, *field.colour_layers)]
    if field.saliency is not None:
        found.append(field.saliency.logits.grad.double())
    twin, step = Twin.of(field), 1e-6
    wide = (x.double(), view.double(), upstream.double())
    for parameter, gradient in zip(twin.parameters(), found, strict=True):
        # One random direction per parameter: the table, each layer, the saliency.
        way = _rand(*parameter.shape, seed=11).double() * 2 - 1
        original = parameter.clone()
        values = []
        for side in (step, -step):
            parameter.copy_(original + side * way)
            values.append(float(_loss(twin, *wide)))
        parameter.copy_(original)
        expected = (values[0] - values[1]) / (2 * step)
        along = float((gradient.reshape(-1) * way.reshape(-1)).sum())
        # The gradient is of float32. Its terms cancel, so the error is measured by their size.
        size = float((gradient.reshape(-1) * way.reshape(-1)).abs().sum())
        assert expected == pytest.approx(along, abs=2e-5 * size + 1e-7)
        assert size > 0


def _pruned(gate: GateName, logit: float) -> HollowField:
    field = _field(gate=gate)
    assert field.saliency is not None
    with torch.no_grad():
        field.saliency.logits.fill_(logit)
    return field


@pytest.mark.parametrize("gate", ["p", "tanh"])
def test_a_gate_closes_exactly_where_p_is_zero(gate):
    # sigmoid(-200) is 0 in float32.
    sigma, h = _pruned(gate, -200.0).density(_points(50))
    assert not h.any()
    # Gate p gives an exact zero, the tanh 0.3 * sqrt(1e-20).
    assert sigma.max() <= (0 if gate == "p" else 3.1e-11)


def test_without_a_gate_pruned_space_is_a_haze_of_density_one():
    sigma, _ = _pruned("none", -200.0).density(_points(50))
    assert torch.equal(sigma, torch.ones(50))


@pytest.mark.parametrize("gate", _GATES)
def test_pruned_points_neither_read_nor_train_the_table(gate):
    field = _pruned(gate, -200.0)
    sigma, h = field.density(_points(50))
    (sigma.sum() + h.square().sum()).backward()
    assert not field.table.grad.any()
    assert all(p.grad.isfinite().all() for p in field.parameters() if p.grad is not None)


@pytest.mark.parametrize("gate", _GATES)
def test_half_pruned_points_train_the_table_by_p(gate):
    # v = p f: with the upstream of v held equal, df = p dv.
    grads = []
    for logit in (200.0, 0.0):
        field = _pruned(gate, logit)
        assert field.saliency is not None
        with torch.no_grad():
            field.table.mul_(1 / field.saliency(_points(1))[0])
        _, h = field.density(_points(50))
        h.sum().backward()
        grads.append(field.table.grad)
    torch.testing.assert_close(grads[1], 0.5 * grads[0], atol=1e-6, rtol=1e-4)


def _constant_density(logit: float) -> tuple[HollowField, torch.Tensor]:
    """A field whose density network gives `logit` at every point, by a weight of its own."""
    field = _field(resolution=None)
    with torch.no_grad():
        field.table.fill_(1.0)
        for weight in field.density_layers:
            weight.zero_()
        field.density_layers[0][0, 0] = 1.0
        field.density_layers[1][0, 0] = logit
    sigma, h = field.density(_points(1))
    assert h[0, 0].item() == pytest.approx(logit)
    return field, sigma


@settings(max_examples=25, deadline=None)
@given(st.floats(-40, 40, width=32))
def test_the_gradient_of_exp_is_that_of_the_clamped_logit(logit):
    field, sigma = _constant_density(logit)
    # Double: exp(30) is 1e13.
    assert sigma.item() == pytest.approx(math.exp(min(logit, 30)), rel=1e-5)
    sigma.sum().backward()
    slope = math.exp(min(max(logit, -15), 15))
    assert float(field.density_layers[1].grad[0, 0]) == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("logit", [100.0, 1e4, -1e4])
def test_extreme_logits_stay_finite(logit):
    field, sigma = _constant_density(logit)
    sigma.sum().backward()
    assert sigma.isfinite().all()
    assert field.table.grad.isfinite().all()


def test_a_fresh_field_is_nearly_empty_features_and_a_haze():
    generator = torch.Generator().manual_seed(0)
    field = HollowField(_PAPER, generator=generator)
    assert 0.99e-4 < field.table.abs().max().item() <= 1e-4
    sigma, _ = field.density(_points(20))
    torch.testing.assert_close(sigma, torch.ones(20), atol=1e-3, rtol=0)


def test_a_fresh_hollow_field_has_the_density_of_p():
    field = HollowField(_SMALL, saliency=SaliencyGrid(4), generator=torch.Generator())
    sigma, _ = field.density(_points(20))
    torch.testing.assert_close(sigma, torch.full((20,), 0.7310586), atol=1e-3, rtol=0)


def test_a_fresh_field_with_the_paper_s_gate_is_open():
    # Features of 1e-4 make alpha ||v|| about 2.4 at the paper's alpha, which is the default.
    field = HollowField(
        _PAPER, saliency=SaliencyGrid(4), gate="tanh", generator=torch.Generator().manual_seed(0)
    )
    sigma, _ = field.density(_points(200))
    # Interpolated features are smaller than those of the vertices.
    assert 0.5 < sigma.mean().item() < 1


def test_the_same_seed_gives_the_same_field():
    one, same, other = (_field(seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["table"], other["table"])


def test_no_points_have_no_density():
    field = _field()
    sigma, h = field.density(torch.zeros(0, 3))
    none = torch.zeros(0, dtype=torch.long)
    assert sigma.shape == (0,)
    assert field.colour(h, harmonics(_views(2)), none, none).shape == (0, 3)
