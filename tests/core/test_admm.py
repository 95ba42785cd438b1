from __future__ import annotations

import io
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress3g.core import (
    ADMM,
    AugmentedLagrangianBudget,
    Budget,
    Schedule,
    Units,
    l1_projection,
    top_projection,
)
from compress3g.errors import BudgetError

numbers = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=8)


@given(a=numbers, b=numbers, radius=st.floats(0.01, 20))
def test_l1_projection_is_the_soft_threshold_found_by_bisection(a, b, radius):
    m = {"a": torch.tensor(a), "b": torch.tensor(b)}
    v = torch.cat([m["a"], m["b"]]).double()
    low, high = 0.0, 6.0
    for _ in range(60):
        theta = (low + high) / 2
        over = float((v.abs() - theta).clamp(min=0).sum()) > radius
        low, high = (theta, high) if over else (low, theta)
    expected = v.sign() * (v.abs() - (high if float(v.abs().sum()) > radius else 0)).clamp(min=0)
    found = l1_projection(radius)(m)
    torch.testing.assert_close(
        torch.cat([found["a"], found["b"]]).double(), expected, atol=1e-5, rtol=0
    )


@given(values=st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=7), count=st.integers(1, 7))
def test_top_projection_is_the_nearest_point_with_so_many_numbers(values, count):
    n = len(values)
    count = min(count, n)
    m = {"a": torch.tensor(values)}
    found = top_projection([Units("a", n)], Budget(count / n, "units", floor=0))(m)["a"]
    assert int((found != 0).sum()) <= count
    assert torch.equal(found[found != 0], m["a"][found != 0])
    squares = m["a"].double().square()
    nearest = min(
        float(squares.sum() - squares[list(kept)].sum())
        for kept in itertools.combinations(range(n), count)
    )
    distance = float((m["a"] - found).double().square().sum())
    assert distance == pytest.approx(nearest, abs=1e-9)


@pytest.mark.parametrize("violation", ["linear", "log"])
@pytest.mark.parametrize("target", [0.04, 0.3])
def test_openness_meets_the_budget_within_5_percent(violation, target):
    z = torch.full((64,), 2.0, requires_grad=True)
    worth = torch.linspace(0.5, 1.5, 64)
    rate = 0.02 if violation == "linear" else 0.05
    budget = AugmentedLagrangianBudget(target, rho=2.0, dual_rate=rate, violation=violation)
    optimiser = torch.optim.Adam([z], lr=0.03)
    for _ in range(2000):
        p = z.sigmoid()
        loss = (worth * (1 - p).square()).mean() + budget.penalty(p.mean())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        budget.update(float(z.detach().sigmoid().mean()))
        assert budget.gamma >= 0
    assert float(z.detach().sigmoid().mean()) == pytest.approx(target, rel=0.05)
    assert budget.gamma > 0


def test_the_multiplier_follows_its_equations():
    b = AugmentedLagrangianBudget(0.5, rho=4.0, dual_rate=2.0, gamma_max=1.0, reset_below=True)
    s = torch.tensor(0.75, requires_grad=True)
    assert not b.update(0.75)
    assert b.gamma == 0.5
    value = b.penalty(s)
    assert float(value.detach()) == 4 / 2 * 0.25**2 + 0.5 * 0.25
    assert float(torch.autograd.grad(value, s)[0]) == 4 * 0.25 + 0.5
    other = AugmentedLagrangianBudget(0.5, rho=4.0)
    other.load_state_dict(b.state_dict())
    assert other.gamma == b.gamma
    assert not b.update(1.0)
    assert b.gamma == 1.0
    assert b.update(0.4)
    assert b.gamma == 0.0
    for wrong in (0.0, 1.0):
        with pytest.raises(BudgetError):
            AugmentedLagrangianBudget(wrong, rho=1.0)


@pytest.mark.parametrize("rho", [2, 0.5, Schedule(1.0, 3.0, begin=0, finish=9, shape="linear")])
def test_admm_goes_on_from_its_state_bit_for_bit(rho):
    g = torch.Generator().manual_seed(0)
    steps = [{"a": torch.randn(5, generator=g), "b": torch.randn(3, generator=g)} for _ in range(6)]
    one = ADMM(l1_projection(1.5), rho)
    assert float(one.penalty(steps[0])) == 0
    for m in steps[:3]:
        one.update(m)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    two = ADMM(l1_projection(1.5), rho)
    two.load_state_dict(torch.load(file, weights_only=True))
    for m in steps[3:]:
        assert torch.equal(one.penalty(m), two.penalty(m))
        assert one.update(m) == two.update(m)
        assert one.rho == two.rho


def test_admm_brings_a_free_variable_to_the_nearest_point_of_the_set():
    # min ||m - t||^2 / 2 over the l1 ball has the projection of t as its solution.
    t = {"a": torch.tensor([2.0, -1.0, 0.3, 0.0])}
    project, rho = l1_projection(1.0), 1.0
    admm, m = ADMM(project, rho), {"a": t["a"].clone()}
    for _ in range(200):
        residual = admm.update(m)
        state = admm.state_dict()
        m = {"a": (t["a"] + rho * (state["a"]["a"] - state["u"]["a"])) / (1 + rho)}
    assert residual.primal < 1e-4
    assert residual.dual < 1e-4
    torch.testing.assert_close(m["a"], project(t)["a"], atol=1e-4, rtol=0)
