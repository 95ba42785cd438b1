"""What every criterion of the table must satisfy (on a tiny grouped-query decoder)."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from compress3g.core import gated, materialize
from compress3g.criteria import CRITERIA, observe

from .models import decoder, joined, loss, priced, run, samples, scores_of, valid

DATA_DRIVEN = [n for n, c in CRITERIA.items() if c.needs != "nothing"]
ONE_PASS = [n for n in DATA_DRIVEN if CRITERIA[n].needs != "steps"]
every = pytest.mark.parametrize("name", CRITERIA)
data_driven = pytest.mark.parametrize("name", DATA_DRIVEN)
one_pass = pytest.mark.parametrize("name", ONE_PASS)
seeds = pytest.mark.parametrize("seed", range(3))


def columns(model, u):
    (cut,) = u.reads
    return model.get_parameter(f"{cut.module}.weight"), cut


@torch.no_grad()
def plant(model, units, seed, side):
    """Kills 30% of the neurons and 25% of the heads; says which.

    side: "reads" zeroes the columns that read them, "writes" the rows of up or value projections.
    """
    g, dead = torch.Generator().manual_seed(seed + 7), {}
    for u in units:
        weight, cut = columns(model, u)
        share = 0.25 if cut.chunk > 1 else 0.3
        dead[u.name] = torch.randperm(u.size, generator=g)[: round(share * u.size)]
        if side == "reads":
            weight[:, cut.slots(dead[u.name])] = 0
        else:
            writer = u.writes[-1]
            model.get_parameter(f"{writer.module}.weight")[writer.slots(dead[u.name])] = 0
    return dead


# AMP's score of a neuron is E|x_j|, blind to who reads it; scores of readers' weights alone (and
# the gates that HESSO and PDP start from) are blind to who writes.
SIDES = [
    (name, side)
    for name in DATA_DRIVEN
    for side in ("reads", "writes")
    if (name, side) not in {("amp", "reads"), ("hesso", "writes"), ("pdp", "writes")}
]


@seeds
@pytest.mark.parametrize(("name", "side"), SIDES)
def test_dead_units_are_ranked_last(name, side, seed):
    model = decoder(seed)
    units = priced(model)
    dead = plant(model, units, seed, side)
    scores = scores_of(name, model, joined(samples(16, seed=seed), 8))
    for u in units:
        lowest = scores[u.name].argsort()[: len(dead[u.name])]
        assert set(lowest.tolist()) == set(dead[u.name].tolist()), u.name


@seeds
def test_flap_ranks_constant_channels_last_and_its_bias_replaces_them(seed):
    """Neurons whose input does not vary: dead up-projections with a bias, and an open gate."""
    model = decoder(seed)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.model.layers:
            mlp = layer.mlp
            for projection in (mlp.gate_proj, mlp.up_proj):
                projection.bias = torch.nn.Parameter(torch.zeros(projection.out_features))
                projection.weight[:6] = 0
                projection.bias[:6] = torch.randn(6, generator=g) + 2
    units, batches = priced(model), joined(samples(16, seed=seed), 8)
    stats = observe(model, units, batches, run=run, valid=valid)
    scores = scores_of("flap", model, batches)
    keep = {u.name: torch.arange(u.size) for u in units}
    for u in units:
        if u.name.endswith("neurons"):
            assert set(scores[u.name].argsort()[:6].tolist()) == set(range(6))
            keep[u.name] = torch.arange(6, u.size)
    small = materialize(copy.deepcopy(model), units, keep, means=stats.mean)
    bare = materialize(copy.deepcopy(model), units, keep)
    with torch.no_grad():
        dense, folded, lost = (run(m, batches[0]).logits for m in (model, small, bare))
    # float32 sums in another order
    assert float((dense - folded).abs().max()) < 1e-5 * float(dense.abs().max())
    assert float((dense - lost).abs().max()) > 1e-2 * float(dense.abs().max())


@torch.no_grad()
def permute(model, units, seed):
    """Reorders the units of every group; the model computes the same."""
    g, orders = torch.Generator().manual_seed(seed), {}
    for u in units:
        order = orders[u.name] = torch.randperm(u.size, generator=g)
        weight, cut = columns(model, u)
        weight.copy_(weight[:, cut.slots(order)])
        for writer in u.writes:
            rows = model.get_parameter(f"{writer.module}.weight")
            rows.copy_(rows[writer.slots(order)])
    return orders


@pytest.mark.parametrize("name", [n for n in CRITERIA if n not in ("random", "vib")])
def test_permuting_units_permutes_scores(name):
    """Not the noise of `random` and `vib`, which belongs to places."""
    model, batches = decoder(1), joined(samples(12), 6)
    units = priced(model)
    before = scores_of(name, model, batches, steps=5)
    orders = permute(model, units, 3)
    after = scores_of(name, model, batches, steps=5)
    for u in units:
        # gradients of reordered float32 sums; relative to the group's largest
        close = 1e-3 * float(before[u.name].abs().max())
        torch.testing.assert_close(
            after[u.name], before[u.name][orders[u.name]], rtol=0, atol=close
        )


@torch.no_grad()
def rescale(model, units, factor):
    """Linear writers (values, up-projections) times `factor`, their readers divided by it."""
    for u in units:
        weight, cut = columns(model, u)
        weight[:, cut.slots(torch.arange(0, u.size, 2))] /= factor
        writer = u.writes[-1]
        rows = model.get_parameter(f"{writer.module}.weight")
        rows[writer.slots(torch.arange(0, u.size, 2))] *= factor


@pytest.mark.parametrize("name", ["taylor", "taylor_signed", "fisher", "flap", "wanda", "amp"])
def test_moving_scale_from_reader_to_writer_changes_no_score(name):
    model, batches = decoder(2), joined(samples(12), 6)
    units = priced(model)
    before = scores_of(name, model, batches)
    rescale(model, units, 4.0)
    after = scores_of(name, model, batches)
    for u in units:
        if name == "amp" and u.name.endswith("neurons"):  # E|x_j| knows no reader
            assert not torch.allclose(after[u.name], before[u.name])
            continue
        close = 1e-4 * float(before[u.name].abs().max())
        torch.testing.assert_close(after[u.name], before[u.name], rtol=1e-4, atol=close)


def test_magnitude_sees_scale_and_its_two_sided_form_sees_less():
    model = decoder(2)
    units = priced(model)
    before = {n: scores_of(n, model, []) for n in ("magnitude", "magnitude_both")}
    rescale(model, units, 4.0)
    name = units[0].name
    changed = scores_of("magnitude", model, [])[name] / before["magnitude"][name]
    torch.testing.assert_close(changed[::2], torch.full_like(changed[::2], 0.25))
    both = scores_of("magnitude_both", model, [])[name] / before["magnitude_both"][name]
    assert bool(((both[::2] - 1).abs() < (changed[::2] - 1).abs()).all())


@one_pass
def test_padding_changes_no_score(name):
    model = decoder(3)
    short = scores_of(name, model, joined(samples(12), 6))
    long = scores_of(name, model, joined(samples(12, padding=5), 6))
    # the same tokens in longer rows: other float32 sums inside attention
    for unit, s in short.items():
        torch.testing.assert_close(long[unit], s, rtol=1e-4, atol=1e-5 * float(s.abs().max()))


@pytest.mark.parametrize("name", ["taylor_signed", "flap", "wanda", "amp", "fisher"])
@pytest.mark.parametrize("size", [8, 5])
def test_batching_changes_no_score(name, size):
    """One batch of 32, four of 8, or six of 5 and one of 2; `taylor` is defined by batches."""
    model, each = decoder(4), samples(32)
    whole = scores_of(name, model, joined(each, 32))
    parts = scores_of(name, model, joined(each, size))
    for unit, s in whole.items():
        torch.testing.assert_close(parts[unit], s, rtol=1e-4, atol=1e-5 * float(s.abs().max()))


def test_taylor_keeps_what_cancels_between_batches():
    model, each = decoder(4), samples(8)
    signed = scores_of("taylor_signed", model, each)
    absolute = scores_of("taylor", model, each)
    for unit, s in absolute.items():
        assert bool((s >= signed[unit] - 1e-7).all())
        assert float(s.sum()) > 1.05 * float(signed[unit].sum())


@every
def test_the_same_seed_gives_the_same_scores(name):
    model, batches = decoder(5), joined(samples(8), 4)
    first, second = (scores_of(name, model, batches, steps=10) for _ in range(2))
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_scores_match_their_formulas_in_float64():
    """Wanda, FLAP and AMP from the tokens themselves, one unit at a time."""
    model, batches = decoder(6), joined(samples(9), 3)
    units = priced(model)
    seen = {}
    observe(
        model,
        units,
        batches,
        run=run,
        valid=valid,
        also=lambda n, rows: seen.setdefault(n, []).append(rows.double()),
    )
    found = {n: scores_of(n, model, batches) for n in ("wanda", "flap", "amp")}
    for u in units:
        weight, cut = columns(model, u)
        x, w = torch.cat(seen[cut.module]), weight.detach().double()
        for i in range(u.size):
            slots = cut.slots(torch.tensor([i]))
            xs, ws = x[:, slots], w[:, slots]
            wanda = sum(
                ws[:, j].abs().sum() * xs[:, j].square().mean().sqrt() for j in range(len(slots))
            )
            flap = sum(
                xs[:, j].var(correction=0) * ws[:, j].square().sum() for j in range(len(slots))
            )
            amp = (xs @ ws.T).abs().sum(1).mean() if len(slots) > 1 else xs.abs().mean()
            for name, expected in (("wanda", wanda), ("flap", flap), ("amp", amp)):
                assert float(found[name][u.name][i]) == pytest.approx(float(expected), rel=1e-4)


def test_magnitude_is_the_norm_of_each_unit():
    model = decoder(6)
    plain, both = (scores_of(n, model, []) for n in ("magnitude", "magnitude_both"))
    for u in priced(model):
        weight, cut = columns(model, u)
        for i in range(u.size):
            read = weight[:, cut.slots(torch.tensor([i]))].double().norm()
            written = torch.cat(
                [
                    model.get_parameter(f"{w.module}.weight")[w.slots(torch.tensor([i]))].flatten()
                    for w in u.writes
                ]
            ).norm()
            assert float(plain[u.name][i]) == pytest.approx(float(read), rel=1e-5)
            expected = float((read * written).sqrt())
            assert float(both[u.name][i]) == pytest.approx(expected, rel=1e-5)


def test_first_order_scores_predict_a_small_change_of_the_gate():
    model, (batch,) = decoder(7), joined(samples(8), 8)
    units = priced(model)
    stats = observe(model, units, [batch], loss, valid=valid)
    step = 1e-2
    for u in units:
        for i in range(0, u.size, 3):
            gates = {v.name: torch.ones(v.size) for v in units}
            change = []
            for sign in (1, -1):
                gates[u.name] = torch.ones(u.size).index_fill(0, torch.tensor([i]), 1 + sign * step)
                with torch.no_grad(), gated(model.double(), units, gates):
                    change.append(float(loss(model, batch)))
            slope = (change[0] - change[1]) / (2 * step)
            assert slope == pytest.approx(float(stats.gradient[u.name][i]), rel=2e-2, abs=1e-5)


def test_the_documentation_lists_every_criterion_with_what_it_needs():
    page = Path(__file__).parents[2] / "docs" / "criteria.md"
    rows = [[c.strip() for c in r.split("|")[1:4]] for r in page.read_text().splitlines()]
    needs: dict[str, tuple[str, str]] = {}
    for name, paper, need in (r for r in rows if len(r) == 3):
        needs.setdefault(name.strip("`"), (paper, need.removeprefix("a ")))  # figures come later
    for name, criterion in CRITERIA.items():
        assert needs[name] == (criterion.paper.strip("-"), criterion.needs)
