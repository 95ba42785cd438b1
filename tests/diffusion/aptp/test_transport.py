"""Optimal transport of prompts to codes, against linear programming and its marginals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from compress3g.diffusion.aptp.transport import Recent, transport

seeds = st.integers(0, 2**20)


def random_similarities(seed, count, codes):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(count, codes, generator=g)


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 40), st.integers(1, 9))
def test_marginals_are_those_of_the_polytope(seed, count, codes):
    plan, _ = transport(random_similarities(seed, count, codes), iterations=500)
    assert torch.allclose(plan.sum(1), torch.full((count,), 1 / count), atol=1e-6)
    assert torch.allclose(plan.sum(0), torch.full((codes,), 1 / codes), atol=1e-3)


def test_little_entropy_comes_to_the_best_assignment():
    similarity = random_similarities(3, 12, 3)
    plan, _ = transport(similarity, epsilon=0.005, iterations=3000)
    # Every code takes four prompts: an assignment to twelve places.
    rows, places = linear_sum_assignment(-np.repeat(similarity.numpy(), 4, axis=1))
    assert (plan.argmax(1).numpy()[rows] == places // 4).all()


def test_the_plan_is_that_of_sinkhorn_with_plain_products():
    similarity = random_similarities(1, 10, 4).double()
    q = (similarity / 0.05).exp()
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(0, keepdim=True) * 4
        q /= q.sum(1, keepdim=True) * 10
    plan, _ = transport(similarity.float(), epsilon=0.05, iterations=3)
    assert torch.allclose(plan.double(), q, atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_prices_make_the_same_choice(seed):
    similarity = random_similarities(seed, 30, 5)
    plan, prices = transport(similarity, iterations=100)
    assert (plan.argmax(1) == (similarity + prices).argmax(1)).all()
    assert float(prices.sum()) == pytest.approx(0, abs=1e-5)


def test_similarities_that_overflow_an_exponential_are_no_problem():
    plan, prices = transport(torch.tensor([[90.0, 0.0], [90.0, 1.0]]), epsilon=0.01, iterations=50)
    assert plan.isfinite().all()
    assert prices.isfinite().all()
    assert plan.argmax(1).tolist() == [0, 1]


def test_recent_rows_come_after_the_new_ones_and_are_few():
    recent = Recent(3)
    first, second = torch.ones(2, 4), torch.zeros(2, 4)
    assert torch.equal(recent.with_new(first), first)
    both = recent.with_new(second)
    assert torch.equal(both, torch.cat([second, first]))
    assert len(recent.rows) == 3
