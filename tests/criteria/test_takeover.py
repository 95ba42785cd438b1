from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from compress3g.core import Cut, Units, gated
from compress3g.criteria import takeover
from compress3g.errors import ConfigError, SiteError

UNITS = [
    Units("first", 6, writes=(Cut("0", "out", 2),), reads=(Cut("2", "in", 2),)),
    Units("second", 8, writes=(Cut("3", "out"),), reads=(Cut("5", "in"),)),
]
KEEP = {"first": torch.tensor([0, 2, 3, 5]), "second": torch.tensor([1, 2, 4, 5, 7])}
COLUMNS = [torch.tensor([0, 1, 4, 5, 6, 7, 10, 11]), KEEP["second"]]


def network(bias=True):
    torch.manual_seed(0)
    layers = (nn.Linear(5, 12), nn.GELU(), nn.Linear(12, 4, bias=bias))
    more = (nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3, bias=bias))
    return nn.Sequential(*layers, *more).double()


def data(rows=90):
    return 1 + torch.randn(rows, 5, generator=torch.Generator().manual_seed(1)).double()


def taken(net, x, *, bias=True, **options):
    options = {"ridge": 0.0, **options}
    run = lambda m: m(torch.cat((x, x)))  # noqa: E731
    return takeover(net, UNITS, KEEP, run, biased=lambda name: bias, **options)


def mended(net, found):
    """The network with what readers take over, still with columns that gates must close."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        for name, more in found.items():
            net.get_submodule(name).weight[:, more.kept] += more.weight
            if more.bias is not None:
                net.get_submodule(name).bias += more.bias
    return net


def closed():
    return {u.name: torch.zeros(u.size).index_fill(0, KEEP[u.name], 1.0) for u in UNITS}


def fitted(seen, wanted):
    """Least squares in which every row counts by 1 / (its energy + the median's)."""
    energy = wanted.square().sum(1, keepdim=True)
    root = (energy + energy.median()).rsqrt()
    return torch.linalg.lstsq(root * seen, root * wanted).solution


@pytest.mark.parametrize("bias", [True, False])
def test_each_reader_is_the_least_squares_fit_of_its_whole_output_to_mended_inputs(bias):
    net, x = network(bias), data()
    found = taken(net, x, bias=bias)
    assert list(found) == ["2", "5"]
    with torch.no_grad():
        state, left = x, x
        for first, columns in zip((0, 3), COLUMNS, strict=True):
            write, act, read = net[first : first + 3]
            state = read(act(write(state)))
            seen = act(write(left))[:, columns]
            ones = torch.ones(len(seen), int(bias)).double()
            fit = fitted(torch.cat((seen, ones), 1), state)
            left = torch.cat((seen, ones), 1) @ fit
            more = found[str(first + 2)]
            assert torch.equal(more.kept, columns)
            # found in float64, kept in float32
            expected = fit[: len(columns)].T - read.weight[:, columns]
            assert torch.allclose(more.weight.double(), expected, rtol=0, atol=1e-6)
            if bias:
                assert torch.allclose(more.bias.double(), fit[-1] - read.bias, rtol=0, atol=1e-6)
        small = mended(net, found)
        with gated(small, UNITS, closed()):
            assert torch.allclose(small(x), left, rtol=0, atol=1e-5)


class Stream(nn.Module):
    """Two readers whose outputs are added to what is given, and one between that loses nothing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.reads = nn.ModuleList(nn.Linear(6, 5) for _ in range(3)).double()
        self.writes = nn.ModuleList(nn.Linear(5, 6) for _ in range(3)).double()

    def forward(self, x):
        for write, read in zip(self.writes, self.reads, strict=True):
            x = x + read(torch.tanh(write(x)))
        return x


def test_a_reader_of_a_stream_is_fitted_to_what_those_before_it_left_too():
    net, x = Stream(), data()
    units = [
        Units(str(i), 6, writes=(Cut(f"writes.{i}", "out"),), reads=(Cut(f"reads.{i}", "in"),))
        for i in (0, 2)
    ]
    keep = {"0": torch.tensor([0, 1, 3]), "2": torch.tensor([1, 2, 4, 5])}
    streams = {f"reads.{i}": "x" for i in range(3)}
    run = lambda m: m(torch.cat((x, x)))  # noqa: E731
    found = takeover(net, units, keep, run, biased=lambda name: True, streams=streams, ridge=0.0)
    with torch.no_grad():
        whole = left = x
        for i, (write, read) in enumerate(zip(net.writes, net.reads, strict=True)):
            whole = whole + read(torch.tanh(write(whole)))
            seen = torch.tanh(write(left))
            if str(i) not in keep:
                left = left + read(seen)
                continue
            seen = torch.cat((seen[:, keep[str(i)]], torch.ones(len(x), 1).double()), 1)
            fit = fitted(seen, whole - left)  # all that the stream lacks
            left = left + seen @ fit
            expected = fit[:-1].T - read.weight[:, keep[str(i)]]
            # errors are carried in float32
            assert torch.allclose(found[f"reads.{i}"].weight.double(), expected, rtol=0, atol=1e-5)


def test_ridge_shrinks_what_is_added_as_rows_of_their_own_do():
    net, x = network(), data()
    more = taken(net, x, ridge=0.3)["2"]
    with torch.no_grad():
        hidden = net[1](net[0](x))
        seen = hidden[:, COLUMNS[0]]
        lost = net[2](hidden) - seen @ net[2].weight[:, COLUMNS[0]].T - net[2].bias
        energy = net[2](hidden).square().sum(1, keepdim=True)
        weights = 1 / (energy + energy.median())
        weights /= weights.sum()
        centred, off = (weights.sqrt() * (t - (weights * t).sum(0)) for t in (seen, lost))
        rows = (0.3 * centred.square().sum(0).mean()).sqrt() * torch.eye(8).double()
        both = torch.cat((centred, rows)), torch.cat((off, off.new_zeros(8, 4)))
        expected = torch.linalg.lstsq(*both).solution.T
    assert torch.allclose(more.weight.double(), expected, rtol=0, atol=1e-6)


def test_the_network_mended_is_closer_on_other_data():
    net, x, other = network(), data(), data(200) - 0.2
    errors = []
    with torch.no_grad():
        whole = net(other)
        for found in ({}, taken(net, x, ridge=1e-3)):
            small = mended(net, found)
            with gated(small, UNITS, closed()):
                errors.append(float((small(other) - whole).square().mean()))
    assert errors[1] < 0.2 * errors[0]


def test_one_huge_row_is_not_all_that_is_fitted():
    """As a token in a thousand is in language models; the others are mended as without it."""
    net, x, other = network(), data(300), data(200)
    seen = torch.cat((x, 1000 * x[:1]))
    errors = []
    with torch.no_grad():
        whole = net(other)
        for batch in (x, seen):
            small = mended(net, taken(net, batch, ridge=1e-3))
            with gated(small, UNITS, closed()):
                errors.append(float((small(other) - whole).square().mean()))
    assert errors[1] < 1.5 * errors[0]


def test_rows_that_do_not_count_change_nothing():
    net, x = network(), data()
    padded = torch.cat((x, 1e3 * data(7)))
    valid = torch.arange(len(padded))[:, None] < len(x)
    expected, found = taken(net, x), taken(net, padded, valid=valid)
    for name, more in expected.items():
        assert torch.allclose(more.weight, found[name].weight, rtol=0, atol=1e-6)
        assert torch.allclose(more.bias, found[name].bias, rtol=0, atol=1e-6)


def test_nothing_is_changed_and_no_hook_is_left():
    net, x = network(), data()
    before, was = copy.deepcopy(net.state_dict()), net(x)
    taken(net, x)
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())
    assert torch.equal(net(x), was)


def test_a_reader_that_loses_nothing_is_left_out():
    net, keep = network(), {**KEEP, "first": torch.arange(6)}
    x = data()
    found = takeover(net, UNITS, keep, lambda m: m(torch.cat((x, x))), biased=lambda name: True)
    assert list(found) == ["5"]


def test_bad_input_is_refused():
    net, x = network(), data()
    with pytest.raises(ConfigError, match="negative"):
        taken(net, x, ridge=-1.0)
    with pytest.raises(SiteError, match="2 is given 91 rows"):
        takeover(net, UNITS, KEEP, lambda m: m(data(91)), biased=lambda name: True)
