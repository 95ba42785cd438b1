"""Routing: budgets that are kept, files that come back, embeddings that do not fit."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.diffusion.aptp.codes import skeleton_space
from compress3g.diffusion.aptp.router import Router
from compress3g.errors import BudgetError, ConfigError, FormatError


def made_up(router, seed=0):
    """The router with experts of given costs, and embeddings all over the place."""
    g = torch.Generator().manual_seed(seed)
    keep = tuple(router.keep[0] for _ in range(3))
    shares = torch.tensor([0.3, 0.6, 0.9])
    many = router.mean + router.scale * torch.randn(400, len(router.mean), generator=g)
    logits = torch.randn(router.logits.shape, generator=g)
    return dataclasses.replace(router, keep=keep, shares=shares, logits=logits), many


@settings(max_examples=20, deadline=None)
@given(st.floats(0.31, 0.89), st.integers(0, 1000))
def test_rebalancing_meets_any_budget_between_the_smallest_and_the_largest(router, target, seed):
    made, many = made_up(router, seed)
    cost = made.rebalance(many, target).expected(many)
    # One prompt more or less of 400 is 0.15 % of the dense denoiser at most.
    assert cost <= target + 1e-6
    assert cost >= target - 0.005


def test_a_budget_below_the_smallest_expert_is_refused(router):
    made, many = made_up(router)
    with pytest.raises(BudgetError, match=r"smallest expert costs 0\.300"):
        made.rebalance(many, 0.2)


def test_similarities_are_cosines_of_networks(router):
    code, many = router.code, made_up(router)[1][:5]
    e = router.standard(many).double() @ router.weight.T.double() + router.intercept.double()
    ours = code.similarity_vector(code.gates(e.float())).double()
    theirs = code.similarity_vector(code.gates(router.logits)).double()
    wanted = torch.stack([torch.stack([(a * b).sum() for b in theirs]) for a in ours])
    assert torch.allclose(router.similarities(many).double(), wanted, atol=1e-5)


def test_entropy_is_one_for_even_use_and_zero_for_one_expert(router):
    assert router.entropy(torch.tensor([0, 1, 2] * 4)) == pytest.approx(1)
    assert router.entropy(torch.zeros(5, dtype=torch.long)) == pytest.approx(0, abs=1e-6)


def test_a_router_comes_back_from_its_file(router, pipe, tmp_path):
    router.save(tmp_path / "router.safetensors")
    config = dataclasses.asdict(router.config)
    again = Router.load(tmp_path / "router.safetensors", *skeleton_space(pipe.unet, config))
    many = made_up(router)[1]
    assert torch.equal(again.route(many), router.route(many))
    assert again.config == router.config
    assert again.tilt == router.tilt
    for ours, theirs in zip(again.keep, router.keep, strict=True):
        assert all(torch.equal(ours[n], theirs[n]) for n in theirs)


def test_the_router_of_another_model_is_refused(router, pipe, tmp_path):
    router.save(tmp_path / "router.safetensors")
    other = skeleton_space(pipe.unet, {"bundle": 4, "depth": True})
    with pytest.raises(FormatError, match="another model"):
        Router.load(tmp_path / "router.safetensors", *other)


def test_embeddings_of_another_encoder_are_refused(router):
    with pytest.raises(ConfigError, match="another encoder"):
        router.route(torch.zeros(2, len(router.mean) + 1))
