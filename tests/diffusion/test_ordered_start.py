from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.core import HardConcrete, Units, open_ratio
from compress3g.diffusion.ordered_start import ordered_logits
from compress3g.errors import ScoreError

GATE = HardConcrete(beta=0.83)
HOW = {"cost": "params", "slope": 4.0, "opened": GATE.open}


def some(sizes, seed):
    g = torch.Generator().manual_seed(seed)
    units = [Units(f"g{i}", n, cost={"params": 3.0 * i + 1}) for i, n in enumerate(sizes)]
    return units, {u.name: torch.rand(u.size, generator=g) for u in units}


@settings(deadline=None)  # the machine may be busy
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 999),
)
def test_the_order_is_that_of_scores_over_costs_and_the_expected_cost_is_met(sizes, share, seed):
    units, scores = some(sizes, seed)
    found = ordered_logits(scores, units, share=share, **HOW)
    logits = torch.cat([found[u.name] for u in units])
    worth = torch.cat([scores[u.name].double() / u.cost["params"] for u in units])
    assert torch.equal(logits.argsort(stable=True), worth.argsort(stable=True))
    opened = {name: GATE.open(z) for name, z in found.items()}
    # Logits are float32: at 60 the last digit is 4e-6, and a gate's slope at most a quarter.
    assert float(open_ratio(opened, units)) == pytest.approx(share, abs=1e-5)


def test_the_scale_of_the_scores_does_not_matter():
    units, scores = some([9, 30], 0)
    found = ordered_logits(scores, units, share=0.6, **HOW)
    small = ordered_logits({n: s * 1e-20 for n, s in scores.items()}, units, share=0.6, **HOW)
    assert all(torch.equal(found[n], small[n]) for n in found)


def test_a_steeper_slope_decides_more():
    units, scores = some([200], 0)
    spread = {
        slope: float(ordered_logits(scores, units, share=0.6, **HOW | {"slope": slope})["g0"].std())
        for slope in (1.0, 4.0)
    }
    assert spread[4.0] == pytest.approx(4 * spread[1.0], rel=1e-5)


@pytest.mark.parametrize(
    "broken",
    [None, torch.zeros(8), torch.full((9,), float("nan"))],
    ids=["missing", "another size", "NaN"],
)
def test_scores_that_give_no_order_are_refused(broken):
    units, scores = some([9, 30], 0)
    scores.pop("g0")
    if broken is not None:
        scores["g0"] = broken
    with pytest.raises(ScoreError, match="9 finite scores for 'g0'"):
        ordered_logits(scores, units, share=0.6, **HOW)
