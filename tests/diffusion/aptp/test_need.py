"""Who gets a large network: prompts that gain from it, shared out evenly, as far as text tells."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from compress3g.core import gated
from compress3g.diffusion.aptp.need import by_need, errors_of, fitted, leading
from compress3g.diffusion.aptp.trainer import _Training, train_router
from compress3g.engine.checkpoint import load_tensors

from .conftest import CONFIG

GRADED = dataclasses.replace(CONFIG, start="graded", depth=False)


def test_the_regression_is_that_of_the_normal_equations():
    g = torch.Generator().manual_seed(0)
    z, true = torch.randn(200, 6, generator=g), torch.randn(3, 6, generator=g)
    weight, intercept = fitted(z, z @ true.T + 2.0)
    assert torch.allclose(weight, true, atol=1e-3)  # the smallest ridge is 1e-4 of the covariance
    assert torch.allclose(intercept, torch.full((3,), 2.0), atol=1e-3)


def test_what_embeddings_do_not_tell_is_left_out():
    g = torch.Generator().manual_seed(0)
    z, noise = torch.randn(60, 40, generator=g), torch.randn(60, 2, generator=g)
    weight, _ = fitted(z, noise)
    least_squares = torch.linalg.lstsq(z - z.mean(0), noise - noise.mean(0)).solution.T
    assert float(weight.norm()) < 0.3 * float(least_squares.norm())


@pytest.mark.parametrize("seed", range(3))
def test_the_assignment_is_the_cheapest_even_one(seed):
    g = torch.Generator().manual_seed(seed)
    z, true = torch.randn(40, 5, generator=g), torch.randn(4, 5, generator=g)
    errors = z @ true.T
    chosen = by_need(errors, z)
    places = torch.arange(4).repeat_interleave(10)
    rows, columns = linear_sum_assignment(errors[:, places].numpy())
    best = float(errors[rows, places[torch.as_tensor(columns)]].sum())
    found = float(errors[torch.arange(40), chosen].sum())
    # Sinkhorn's plan is a little soft: a prompt may lie between two codes.
    assert torch.bincount(chosen, minlength=4).sub(10).abs().max() <= 2
    assert found == pytest.approx(best, abs=0.03 * float(errors.std()) * 40)


def test_along_one_direction_prompts_of_a_kind_stay_together():
    g = torch.Generator().manual_seed(0)
    kind, detail = torch.arange(3.0).repeat_interleave(20), torch.randn(60, 4, generator=g)
    z = torch.cat([5 * kind[:, None], detail], 1)
    # Larger codes gain with the kind, and as much with a detail of the prompt.
    errors = (kind + 2 * detail[:, 0])[:, None] * torch.tensor([3.0, 2.0, 1.0])
    together = by_need(errors, leading(z, 1))
    assert all(len(together[kind == k].unique()) == 1 for k in range(3))
    assert any(len(by_need(errors, z)[kind == k].unique()) > 1 for k in range(3))
    assert leading(z, None) is z


def test_without_even_use_every_prompt_gets_what_errs_least():
    errors = torch.arange(4.0).flip(0).expand(20, 4) + torch.linspace(0, 1, 20)[:, None]
    z = torch.linspace(0, 1, 20)[:, None]
    assert by_need(errors, z, evenly=False).tolist() == [3] * 20


def test_errors_are_distances_to_the_dense_answer_on_the_same_noise(corpus):
    training = _Training(corpus, GRADED, None, "pipeline")
    units = training.space.units
    gates = {u.name: torch.stack([torch.ones(u.size), torch.zeros(u.size)]) for u in units}
    errors = errors_of(corpus, training.space, gates, torch.Generator().manual_seed(0))
    assert torch.allclose(errors[:, 0], torch.zeros(len(corpus)), atol=1e-9)
    g, wanted = torch.Generator().manual_seed(0), torch.zeros(len(corpus))
    closed = {n: v[1] for n, v in gates.items()}
    with torch.no_grad():
        for step in range(4):  # as many steps as the inference has
            sample = corpus.draw(torch.arange(len(corpus)), g, step=step)
            dense = corpus.denoiser(**sample.arguments, return_dict=False)[0]
            with gated(corpus.denoiser, units, closed):
                ours = corpus.denoiser(**sample.arguments, return_dict=False)[0]
            wanted += (ours - dense).square().flatten(1).mean(1) / 4
    assert torch.allclose(errors[:, 1], wanted, rtol=1e-4)


def test_sizes_are_graded_and_keep_their_prompts(corpus, tmp_path):
    file = tmp_path / "checkpoint"
    trained = train_router(corpus, GRADED, checkpoint=file)
    chosen = load_tensors(file)[0]["chosen"]
    assert torch.equal(trained.shares, trained.shares.sort().values)
    assert float(trained.shares[-1]) > float(trained.shares[0])
    assert len(chosen.unique()) == GRADED.experts
    assert trained.expected(corpus.embeddings) <= GRADED.target + 1e-6


def test_need_is_measured_where_it_is_asked_and_sizes_are_those_of_the_target(corpus):
    runs = []
    for target, need in ((0.55, None), (0.9, None), (0.55, 0.9)):
        config = dataclasses.replace(GRADED, target=target, need=need)
        runs.append(_Training(corpus, config, None, "pipeline"))
        runs[-1]._start_sizes()
    small, large, both = runs
    assert torch.equal(both.codes, small.codes)
    assert not torch.equal(both.codes, large.codes)
    assert torch.equal(both._chosen, large._chosen)
    assert not torch.equal(small._chosen, large._chosen)  # or this would show nothing


def test_a_resumed_run_is_the_same_run(corpus, tmp_path):
    file = tmp_path / "checkpoint"
    train_router(corpus, GRADED, checkpoint=file, after_step=lambda n, _: n < 3)
    again, whole = train_router(corpus, GRADED, checkpoint=file), train_router(corpus, GRADED)
    assert torch.equal(again.logits, whole.logits)
    assert torch.equal(again.weight, whole.weight)
