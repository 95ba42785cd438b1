"""Gates that start at the budget are those of a network that magnitude pruning would leave."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from compress3g.criteria.magnitude import magnitude
from compress3g.diffusion.aptp.codes import SoftCode, as_gates, space_of
from compress3g.diffusion.aptp.start import by_magnitude, graded
from compress3g.diffusion.aptp.trainer import _Training

from ..tiny import ARCHITECTURES, FAMILIES, dense_copy
from .conftest import CONFIG, deep


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("depth", [True, False])
@pytest.mark.parametrize("staggered", [True, False])
def test_the_budget_is_met_by_the_largest_weights_of_every_group(name, depth, staggered):
    model = dense_copy(name)
    found = space_of(model, lambda m: ARCHITECTURES[name].run(m, 1), depth=depth, bundle=8)
    least = float(found.share(found._least()))
    target = (1 + least) / 2
    code = SoftCode(found)
    keep = code.hard(code.inverse(by_magnitude(model, found, target, staggered=staggered)))
    widths = [u for u in found.units if u.bypass is None]
    share = float(found.share(as_gates(keep, found)))
    # Groups of the same size lose a unit at once, at the same rank.
    together = max(
        sum(u.cost["flops"] for u in widths if u.size == size) for size in {u.size for u in widths}
    )
    assert target - 1e-6 <= share <= target + together / found.total + 1e-6
    for u in widths:
        scores = magnitude(model, [u])[u.name]
        kept = torch.zeros(u.size, dtype=torch.bool).index_fill(0, keep[u.name], True)
        if kept.any() and not kept.all():
            assert float(scores[kept].min()) >= float(scores[~kept].max())


def test_of_many_blocks_all_stay_and_the_budget_is_met():
    model, found = deep(32)
    target, code = 0.6, SoftCode(found)
    keep = code.hard(code.inverse(by_magnitude(model, found, target)))
    assert all(len(keep[f"b{i}"]) == 1 for i in range(32))
    together = 32 * 2.0 / found.total  # groups of a size lose a unit at once
    assert target - 1e-6 <= float(found.share(as_gates(keep, found))) <= target + together + 1e-6


@pytest.mark.parametrize("ratio", [2.0, 1000.0])  # 1000: the largest would be more than all
def test_graded_codes_cost_the_target_on_average_and_each_holds_the_one_before(ratio):
    model = dense_copy(FAMILIES[0])
    found = space_of(model, lambda m: ARCHITECTURES[FAMILIES[0]].run(m, 1), depth=False, bundle=8)
    target, code = (1 + found.least) / 2, SoftCode(found)
    keep = [code.hard(code.inverse(x)) for x in graded(model, found, target, 3, ratio)]
    shares = [float(found.share(as_gates(k, found))) for k in keep]
    unit = max(u.cost["flops"] for u in found.units) / found.total
    assert sum(shares) / 3 == pytest.approx(target, abs=unit)
    assert shares[0] + unit < shares[1] < shares[2] - unit
    for small, large in itertools.pairwise(keep):
        assert all(set(small[n].tolist()) <= set(large[n].tolist()) for n in small)


def test_training_starts_there(corpus):
    config = dataclasses.replace(CONFIG, start="magnitude", depth=False)
    training = _Training(corpus, config, None, "pipeline")
    nothing = torch.zeros(1, training.z.shape[1])
    keep = training.code.hard(training.predictor(nothing)[0])
    share = float(training.space.share(as_gates(keep, training.space)))
    assert share == pytest.approx(config.target, abs=0.1)  # tiny groups: a unit is much
