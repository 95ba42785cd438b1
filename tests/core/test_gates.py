from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress3g.core import GumbelSigmoid, HardConcrete, Scalar, Sigmoid, SoftThreshold

DRAWS = 40_000
LOGITS = torch.tensor([-3.0, -1.0, 0.0, 0.5, 2.0])


def four_sigma(p):
    return 4 * math.sqrt(p * (1 - p) / DRAWS) + 1e-3


@pytest.mark.parametrize(("beta", "eps"), [(2 / 3, 1e-8), (0.83, 0.1), (0.83, 0.5), (0.83, 1.0)])
def test_hard_concrete_is_nonzero_as_often_as_open_says(beta, eps):
    gate = HardConcrete(beta=beta, eps=eps)
    z = LOGITS.expand(DRAWS, -1)
    share = (gate.sample(z, generator=torch.Generator().manual_seed(0)) > 0).double().mean(0)
    for p, seen in zip(gate.open(LOGITS).tolist(), share.tolist(), strict=True):
        assert seen == pytest.approx(p, abs=four_sigma(p))


def test_hard_concrete_samples_follow_the_printed_formula():
    gate = HardConcrete()
    u = torch.rand(5, generator=torch.Generator().manual_seed(3)).numpy().astype(np.float64)
    z = LOGITS.numpy().astype(np.float64)
    s = 1 / (1 + np.exp(-(np.log(u + 1e-8) - np.log(1 - u + 1e-8) + z) / (2 / 3)))
    expected = np.clip(s * 1.2 - 0.1, 0, 1)
    sampled = gate.sample(LOGITS, generator=torch.Generator().manual_seed(3))
    np.testing.assert_allclose(sampled.numpy(), expected, atol=1e-5)  # float32 logarithms
    np.testing.assert_allclose(
        gate.hard(LOGITS).numpy(), np.clip(1.2 / (1 + np.exp(-z)) - 0.1, 0, 1), atol=1e-6
    )


def test_a_wide_eps_bounds_the_noise():
    # EcoDiff's SDXL recipe passes 0.5: ln u lies between ln 0.5 and ln 1.5.
    gate = HardConcrete(beta=0.83, eps=0.5)
    sampled = gate.sample(torch.zeros(DRAWS), generator=torch.Generator().manual_seed(0))
    lowest = 1.2 / (1 + math.exp(math.log(3) / 0.83)) - 0.1
    assert float(sampled.min()) == pytest.approx(lowest, abs=1e-3)


def test_one_gumbel_opens_with_its_own_probability():
    # P(z + G + b > 0) = 1 - exp(-exp(z + b)), which is not sigmoid(z + b).
    gate = GumbelSigmoid()
    sampled = gate.sample(LOGITS.expand(DRAWS, -1), generator=torch.Generator().manual_seed(0))
    assert set(sampled.unique().tolist()) <= {0.0, 1.0}
    for z, seen in zip(LOGITS.tolist(), sampled.double().mean(0).tolist(), strict=True):
        p = 1 - math.exp(-math.exp(z + gate.b))
        assert seen == pytest.approx(p, abs=four_sigma(p))


def test_gumbel_gates_pass_the_soft_gradient_straight_through():
    z = LOGITS.clone().requires_grad_()
    gate = GumbelSigmoid()
    gate.sample(z, generator=torch.Generator().manual_seed(1)).sum().backward()
    u = torch.rand(5, generator=torch.Generator().manual_seed(1))
    soft = torch.sigmoid((LOGITS - torch.log(-torch.log(u)) + 2) / 0.4)
    torch.testing.assert_close(z.grad, soft * (1 - soft) / 0.4)


@pytest.mark.parametrize(
    "gate", [Sigmoid(), HardConcrete(), HardConcrete(eps=0.5), GumbelSigmoid(), Scalar()]
)
@given(keep=st.floats(0.01, 0.99))
def test_gates_start_as_open_as_asked(gate, keep):
    assert float(gate.open(gate.init(3, keep))[1]) == pytest.approx(keep, abs=1e-5)


@pytest.mark.parametrize("gate", [HardConcrete(), GumbelSigmoid()])
def test_the_same_generator_gives_the_same_gates(gate):
    one, two = (gate.sample(LOGITS, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    "gate", [Sigmoid(), HardConcrete(), HardConcrete(eps=0.5), GumbelSigmoid(), Scalar()]
)
def test_gates_compute_in_float32_whatever_the_logits_are(gate):
    assert gate.sample(LOGITS.half()).dtype == torch.float32
    assert gate.open(LOGITS.half()).dtype == torch.float32


@given(
    norms=st.lists(st.floats(0.1, 3.0), min_size=2, max_size=9, unique=True),
    keep=st.floats(0.05, 0.95),
)
def test_soft_threshold_is_the_softmax_of_weight_and_threshold(norms, keep):
    gate = SoftThreshold(keep, temperature=0.5)
    soft = gate.open(torch.tensor(norms)).double().numpy()
    ordered = sorted(norms, reverse=True)
    count = max(1, round(keep * len(norms)))
    if count == len(norms):
        assert (soft == 1).all()
        return
    t = (ordered[count - 1] + ordered[count]) / 2
    w = np.array(norms)
    expected = np.exp(w**2 / 0.5) / (np.exp(w**2 / 0.5) + np.exp(t**2 / 0.5))
    np.testing.assert_allclose(soft, expected, atol=1e-4)  # squares in float32
    if ordered[count - 1] - ordered[count] > 1e-3:
        assert int(gate.hard(torch.tensor(norms)).sum()) == count


def test_soft_threshold_trains_the_weights_it_reads():
    z = torch.tensor([0.5, 1.0, 1.5], requires_grad=True)
    SoftThreshold(0.5, temperature=1.0).sample(z).sum().backward()
    assert bool((z.grad > 0).all())
