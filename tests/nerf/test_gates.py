from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.nerf.gates import skip_gate


def _inputs(seed: int, count: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator), torch.randn(count, 32, generator=generator)


def test_no_gate_is_none():
    assert skip_gate("none", *_inputs(0), 1e4) is None


def test_gate_p_is_p():
    p, v = _inputs(1)
    assert torch.equal(skip_gate("p", p, v, 1e4), p)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.floats(0.01, 1e5))
def test_the_tanh_gate_is_its_equation(seed, alpha):
    p, v = _inputs(seed)
    v = v * 1e-3
    expected = torch.tanh(alpha * v.double().norm(dim=1))
    torch.testing.assert_close(skip_gate("tanh", p, v, alpha).double(), expected, atol=1e-6, rtol=0)


def test_the_tanh_gate_starts_open_at_the_paper_s_alpha():
    generator = torch.Generator().manual_seed(0)
    f = (torch.rand(1000, 32, generator=generator) * 2 - 1) * 1e-4
    gate = skip_gate("tanh", torch.ones(1000), 0.731 * f, 1e4)
    # tanh(1e4 * 0.731 * 1e-4 * sqrt(32 / 3)) = 0.983
    assert gate.mean() == pytest.approx(0.983, abs=0.004)


@pytest.mark.parametrize("alpha", [1.0, 1e4, 1e5])
def test_the_tanh_gate_is_closed_at_zero_with_a_finite_gradient(alpha):
    v = torch.zeros(3, 32, requires_grad=True)
    gate = skip_gate("tanh", torch.zeros(3), v, alpha)
    # sqrt(1e-20) in place of 0.
    assert gate.max() <= alpha * 1.001e-10
    gate.sum().backward()
    assert torch.equal(v.grad, torch.zeros(3, 32))


@pytest.mark.parametrize("scale", [1e-4, 1e-2])
def test_the_gradient_of_the_tanh_gate_is_that_of_finite_differences(scale):
    alpha, step = 0.7 / (scale * math.sqrt(32)), 1e-6 * scale
    p, v = _inputs(5)
    v = (v * scale).double().requires_grad_()
    skip_gate("tanh", p, v, alpha).sum().backward()
    way = _inputs(6)[1].double()
    with torch.no_grad():
        up, down = (skip_gate("tanh", p, v + s * way, alpha).sum() for s in (step, -step))
    assert float((v.grad * way).sum()) == pytest.approx(float((up - down) / (2 * step)), rel=1e-6)
