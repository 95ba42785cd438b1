"""Every loss of a router against the formula written out in float64."""

from __future__ import annotations

import diffusers
import pytest
import torch
import torch.nn.functional as F

from compress3g.diffusion.aptp import losses


def test_the_budget_is_a_ratio_in_logarithms():
    shares = torch.tensor([0.2, 0.4])
    assert float(losses.resource_loss(shares, 0.3)) == pytest.approx(0, abs=1e-6)
    assert float(losses.resource_loss(shares, 0.6)) == pytest.approx(0.6931, abs=1e-4)
    assert float(losses.resource_loss(shares, 0.15)) == pytest.approx(0.6931, abs=1e-4)


def test_contrast_is_the_entropy_between_two_softmaxes():
    g = torch.Generator().manual_seed(0)
    z, v = torch.randn(5, 3, generator=g), F.normalize(torch.randn(5, 7, generator=g), dim=1)
    n = z.double() / z.double().norm(dim=1, keepdim=True)
    wanted = (n @ n.T / 0.5).softmax(1)
    found = (v.double() @ v.double().T / 0.5).softmax(1)
    each = -(wanted * found.log() + (1 - wanted) * (1 - found).log())
    assert float(losses.contrastive_loss(z, v, 0.5)) == pytest.approx(float(each.mean()), rel=1e-5)


def test_contrast_is_least_where_networks_are_alike_as_prompts_are():
    z = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), dim=1)
    other = z[[2, 0, 1]]
    least = losses.contrastive_loss(z, z, 0.1)
    assert float(least) < float(losses.contrastive_loss(z, other, 0.1))


def test_contrast_teaches_codes_and_not_prompts():
    z = torch.randn(4, 3, requires_grad=True)
    v = F.normalize(torch.randn(4, 6), dim=1).requires_grad_()
    losses.contrastive_loss(z, v, 0.1).backward()
    assert z.grad is None
    assert bool(v.grad.abs().sum() > 0)


@pytest.mark.parametrize(("kind", "wanted"), [("epsilon", 1.0), ("v_prediction", 0.5)])
def test_weights_are_those_of_small_ratios_until_the_limit(kind, wanted):
    scheduler = diffusers.DDPMScheduler(prediction_type=kind)
    alpha = scheduler.alphas_cumprod.double()
    snr = alpha / (1 - alpha)
    t = int((snr - 1).abs().argmin())  # where signal and noise are alike
    weight = losses.min_snr_weight(scheduler, torch.tensor([float(t)]), 5.0)
    assert float(weight) == pytest.approx(wanted, abs=0.02)
    first = losses.min_snr_weight(scheduler, torch.tensor([0.0]), 5.0)
    over = snr[0] + (kind == "v_prediction")
    assert float(first) == pytest.approx(float(5 / over), rel=1e-4)


def test_flows_are_not_weighted():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    assert losses.min_snr_weight(scheduler, torch.tensor([500.0]), 5.0).tolist() == [1.0]


def test_a_predicted_variance_is_no_part_of_the_denoising_loss():
    out, target = torch.randn(2, 8, 3, 3), torch.randn(2, 4, 3, 3)
    found = losses.denoising_loss(out, target, torch.tensor([1.0, 3.0]))
    each = (out[:, :4] - target).double().square().mean((1, 2, 3))
    assert float(found) == pytest.approx(float((each[0] + 3 * each[1]) / 2), rel=1e-5)


def test_capacities_that_differ_and_a_large_one_cost_less():
    alike, apart = torch.tensor([0.5, 0.5]), torch.tensor([0.2, 0.8])
    assert float(losses.spread_loss(apart)) < float(losses.spread_loss(alike))
    assert float(losses.peak_loss(apart)) < float(losses.peak_loss(alike))


def test_distances_to_the_dense_network_are_mean_squares():
    a, b = torch.ones(2, 3), torch.zeros(2, 3)
    assert float(losses.distillation_loss(a, b)) == 1
    assert float(losses.block_loss([a, b], [b, b])) == 0.5
