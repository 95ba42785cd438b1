from __future__ import annotations

import pytest
import torch
from torch import nn

from compress3g.core import Cut, Units, materialize
from compress3g.criteria import refit
from compress3g.errors import ConfigError, ScoreError

UNITS = [Units("hidden", 6, writes=(Cut("0", "out", 2),), reads=(Cut("2", "in", 2),))]
KEEP = {"hidden": torch.tensor([0, 2, 3, 5])}
KEPT = KEEP["hidden"][:, None].mul(2).add(torch.arange(2)).flatten()
GONE = torch.tensor([2, 3, 8, 9])


def network(bias=True):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 12), nn.GELU(), nn.Linear(12, 4, bias=bias))
    return net.double()


def data(net):
    x = torch.randn(3, 40, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        return x, net[1](net[0](x + 0.5)).reshape(-1, 12), x + 0.5


def fit(net, batches, **options):
    refit(net, UNITS, KEEP, lambda: batches, run=lambda m, b: m(b), **options)


@pytest.mark.parametrize("bias", [True, False])
def test_refit_is_the_least_squares_fit_of_the_dense_output(bias):
    net = network(bias)
    _, hidden, x = data(net)
    dense = hidden @ net[2].weight.detach().T + (net[2].bias.detach() if bias else 0)
    seen = torch.cat([hidden[:, KEPT], torch.ones(len(hidden), int(bias)).double()], 1)
    expected = torch.linalg.lstsq(seen, dense).solution
    fit(net, x, ridge=0.0)
    found = net[2].weight.detach()[:, KEPT].T
    found = torch.cat([found, net[2].bias.detach()[None]]) if bias else found
    # Normal equations square the condition of `seen`, some 100.
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)


def test_ridge_shrinks_the_prediction_as_added_rows_do():
    net = network()
    _, hidden, x = data(net)
    old = net[2].weight.detach().clone()
    centred = hidden - hidden.mean(0)
    kept, gone = centred[:, KEPT], centred[:, GONE]
    strength = 0.3 * kept.square().sum(0).mean()
    rows = strength.sqrt() * torch.eye(len(KEPT), dtype=torch.float64)
    a = torch.linalg.lstsq(torch.cat([kept, rows]), torch.cat([gone, rows.new_zeros(8, 4)]))
    fit(net, x, ridge=0.3)
    expected = old[:, KEPT] + old[:, GONE] @ a.solution.T
    assert torch.allclose(net[2].weight.detach()[:, KEPT], expected, rtol=0, atol=1e-10)


def test_convolutions_take_over_what_can_be_predicted():
    """Channels that are affine functions of others are no loss, whatever the kernel."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Identity(), nn.Conv2d(6, 4, 3)).double()
    with torch.no_grad():
        for channel, (first, second) in {1: (0, 2), 4: (3, 5)}.items():
            for p in (net[0].weight, net[0].bias):
                p[channel] = 0.7 * p[first] - 0.4 * p[second]
            net[0].bias[channel] += 0.3
    units = [Units("channels", 6, writes=(Cut("0", "out"),), reads=(Cut("2", "in"),))]
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    with torch.no_grad():
        dense = net(x)
        keep = {"channels": torch.tensor([0, 2, 3, 5])}
        refit(net, units, keep, lambda: [x], run=lambda m, b: m(b), ridge=0.0)
        small = materialize(net, units, keep)(x)
    assert torch.allclose(small, dense, rtol=0, atol=1e-9)


def test_bad_input_is_refused():
    net = network()
    with pytest.raises(ScoreError, match="no calibration batch"):
        fit(net, [])
    with pytest.raises(ConfigError, match="negative"):
        fit(net, [], ridge=-1.0)
