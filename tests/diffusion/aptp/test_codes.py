"""From logits to networks: prices are what the cut network really costs, no group vanishes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.core import Cut, Units, gated
from compress3g.diffusion.aptp.codes import SoftCode, as_gates, bundled, space_of
from compress3g.diffusion.aptp.experts import expert_of
from compress3g.diffusion.units import kind_of
from compress3g.errors import BudgetError
from compress3g.profile import count_flops

from ..tiny import ARCHITECTURES, FAMILIES, dense_copy
from .conftest import deep

seeds = st.integers(0, 2**20)


def space(name, depth=True, bundle=8):
    model = dense_copy(name)
    return model, space_of(
        model, lambda m: ARCHITECTURES[name].run(m, 1), depth=depth, bundle=bundle
    )


@pytest.fixture(scope="module")
def unet():
    return space("UNet2DConditionModel SD")


def logits(found, seed, scale=4.0):
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(found.width, generator=g) - 3.0  # the gates' bias taken back


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("depth", [True, False])
def test_a_code_costs_what_its_network_costs(name, depth):
    model, found = space(name, depth)
    keep = SoftCode(found).hard(logits(found, 1))
    said = float(found.share(as_gates(keep, found)))
    expert = expert_of(model, found, keep)
    run = ARCHITECTURES[name].run
    really = count_flops(lambda: run(expert, 1)).total / count_flops(lambda: run(model, 1)).total
    assert said == pytest.approx(really, abs=1e-6)
    assert 0 < really < 1


@pytest.mark.parametrize("name", FAMILIES)
def test_an_expert_computes_what_the_gates_do_and_shares_what_is_whole(name, tmp_path):
    model, found = space(name)
    keep = SoftCode(found).hard(logits(found, 2))
    run = ARCHITECTURES[name].run
    with torch.no_grad(), gated(model, found.units, as_gates(keep, found)):
        masked = run(model, 2)
    expert = expert_of(model, found, keep)
    with torch.no_grad():
        cut = run(expert, 2)
    assert torch.allclose(cut, masked, atol=2e-5 * float(masked.abs().max()))  # float32 sums
    ours = {p.data_ptr() for p in expert.parameters()}
    assert ours & {p.data_ptr() for p in model.parameters()}
    expert.save_pretrained(tmp_path)
    again = type(expert).from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(run(again, 2), cut)


@settings(max_examples=25, deadline=None)
@given(seeds, st.floats(0.5, 30))
def test_no_group_vanishes_and_blocks_go_in_their_order(unet, seed, scale):
    _, found = unet
    code = SoftCode(found)
    z = logits(found, seed, scale) - 5
    keep, soft = code.hard(z), code.gates(z)
    for u in found.units:
        if u.bypass is None:
            assert len(keep[u.name])
            assert float(soft[u.name].max()) >= 0.5 - 1e-6
    stays = [len(keep[found.units[i].name]) for i in found.order]
    assert stays == sorted(stays, reverse=True)
    assert stays[0] == 1


def test_depth_gates_are_the_tail_sums_of_a_softmax(unet):
    _, found = unet
    code, z = SoftCode(found, tau=0.4, bias=3.0), logits(found, 4).double()
    order = list(found.order)
    p = z[: len(order)][order].softmax(0)
    for place in range(1, len(order)):
        c = p[place:].sum()
        wanted = ((torch.log(c / (1 - c)) + 3) / 0.4).sigmoid()
        gate = code.gates(z.float())[found.units[order[place]].name]
        assert float(gate) == pytest.approx(float(wanted), abs=1e-4)


@pytest.mark.parametrize("bias", [3.0, 0.0, -2.0])
@pytest.mark.parametrize("count", [1, 2, 32])
def test_logits_of_wanted_gates_keep_as_many_blocks_as_are_wanted(count, bias):
    found = deep(count)[1]
    code, order = SoftCode(found, bias=bias), list(found.order)
    for stay in range(1, count + 1):
        wanted = torch.linspace(-2, 2, found.width)
        wanted[:count] = torch.full((count,), -3.0).index_fill(0, torch.tensor(order[:stay]), 3.0)
        z = code.inverse(wanted)
        keep = code.hard(z)
        assert [len(keep[f"b{i}"]) for i in order] == [1] * stay + [0] * (count - stay)
        # The first always stays; the last that stays, and the first that goes, are as wanted.
        p = z[order].double().softmax(0)
        for place, x in ((stay - 1, 3.0), (stay, -3.0)):
            if 0 < place < count:
                tail = float(p[place:].sum())
                assert math.log(tail / (1 - tail)) + bias == pytest.approx(x, abs=1e-4)
        assert bool((p > 1e-5).all())  # none is out of reach for a gradient
        assert torch.allclose(z[count:] + bias, wanted[count:], atol=1e-6)


def test_noise_is_one_gumbel_or_a_difference_of_two(unet):
    _, found = unet
    many = torch.zeros(4000, found.width)
    for noise, mean in (("logistic", 0.0), ("gumbel", 0.5772)):
        code = SoftCode(found, tau=1.0, bias=0.0, noise=noise)
        drawn = code._drawn(many, torch.Generator().manual_seed(0))
        # 4000 x width draws: a standard error below 0.01 for either distribution.
        assert float(drawn.mean()) == pytest.approx(mean, abs=0.02)


def test_similarity_counts_groups_alike_and_closed_blocks_not_at_all(unet):
    _, found = unet
    code = SoftCode(found)
    open_ = {u.name: torch.ones(u.size) for u in found.units}
    block = next(u for u in found.units if any(v.inside == u.name for v in found.units))
    child = next(v for v in found.units if v.inside == block.name)
    vector = code.similarity_vector(open_)
    assert float(vector.norm()) == pytest.approx(1, abs=1e-5)
    weights = {u.name: float(part.square().sum()) for u, part in _parts(vector, found)}
    assert max(weights.values()) == pytest.approx(min(weights.values()), rel=1e-4)
    closed = code.similarity_vector({**open_, block.name: torch.zeros(1)})
    assert {u.name: float(p.abs().sum()) for u, p in _parts(closed, found)}[child.name] == 0


@settings(max_examples=25, deadline=None)
@given(seeds, st.floats(0.5, 30))
def test_going_by_indices_is_going_group_by_group(unet, seed, scale):
    _, found = unet
    code, z = SoftCode(found), logits(found, seed, scale)
    soft = ((code._ordered(z).double() + code.bias) / code.tau).sigmoid()
    by_name = dict(zip((u.name for u in found.units), soft.split(sizes(found)), strict=True))
    for u in found.units:
        part = by_name[u.name]
        if u.bypass is None and float(part.max()) < 0.5:
            part[part.argmax()] += 0.5
    found_gates = code.gates(z)
    assert all(torch.allclose(found_gates[n].double(), by_name[n], atol=1e-6) for n in by_name)
    parts = []
    for u in found.units:
        open_ = by_name[u.inside] if u.inside is not None else 1.0
        parts.append(by_name[u.name] * open_ / u.size**0.5)
    wanted = torch.cat(parts) / torch.cat(parts).norm()
    # Float32 against float64 sums of at most some hundred numbers.
    assert torch.allclose(code.vector(z).double(), wanted, atol=1e-6)
    assert torch.equal(code.vector(z), code.similarity_vector(found_gates))


def test_gradients_reach_the_gates_of_a_group_that_would_vanish(unet):
    _, found = unet
    code = SoftCode(found)
    z = (logits(found, 7, 1.0) - 4).requires_grad_()
    weights = torch.rand(found.width, generator=torch.Generator().manual_seed(0))
    (torch.cat([*code.gates(z).values()]) * weights).sum().backward()
    widths = z.grad[len(found.order) :]
    slope = ((z.detach() + code.bias) / code.tau).sigmoid()[len(found.order) :]
    # d sigmoid(x / tau) = s (1 - s) / tau; what is added to the largest is constant.
    wanted = weights[len(found.order) :] * slope * (1 - slope) / code.tau
    assert torch.allclose(widths, wanted, rtol=1e-4, atol=1e-9)


def sizes(found):
    return [u.size for u in found.units]


def _parts(vector, found):
    return zip(found.units, vector.split([u.size for u in found.units]), strict=True)


@given(st.integers(1, 300), st.integers(1, 64))
def test_bundles_cover_all_neurons_once(size, most):
    u = Units("ff.neurons", size, writes=(Cut("up", "out"),), reads=(Cut("down", "in"),))
    b = bundled(u, most)
    assert b.size <= max(1, most)
    assert b.size * b.reads[0].chunk == size
    slots = b.writes[0].slots(torch.arange(b.size))
    assert slots.tolist() == list(range(size))


def test_targets_below_the_smallest_network_are_refused(unet):
    _, found = unet
    with pytest.raises(BudgetError, match="cannot be met"):
        found.prunable_share(1e-3)
    assert 0 < found.prunable_share(0.9) < 1


def test_bundles_are_of_neurons_only(unet):
    _model, found = unet
    sizes = {u.name: u.size for u in found.units}
    assert max(sizes[n] for n in sizes if n.endswith("neurons")) <= 8
    assert kind_of(found.units[-1]) in ("heads", "neurons", "groups")
