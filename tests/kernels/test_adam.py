from __future__ import annotations

import math

import pytest
import torch

from compress3g.errors import BackendError
from compress3g.kernels.adam import SparseAdam


@pytest.mark.parametrize("n", [1, 16, 37, 70000])
def test_without_zero_gradients_it_is_adam_in_double(running, body, n):
    start = torch.randn(n, generator=torch.Generator().manual_seed(n))
    p, twin = start.clone().requires_grad_(), start.double().requires_grad_()
    settings = {"lr": 0.03, "betas": (0.9, 0.99), "eps": 1e-10}
    ours, theirs = SparseAdam([p], **settings), torch.optim.Adam([twin], **settings)
    for step in range(8):
        grad = torch.randn(n, generator=torch.Generator().manual_seed(step))
        grad[grad == 0] = 1.0
        p.grad, twin.grad = grad.clone(), grad.double()
        with running("adam", body):
            ours.step()
        theirs.step()
        assert not p.grad.any()
    # Eight steps of 0.03, each rounded in float32 at values up to 5.
    torch.testing.assert_close(p.double(), twin, atol=1e-5, rtol=0)


def test_a_zero_gradient_leaves_value_and_moments_untouched(running, body):
    n = 16 * 5 + 7
    p = torch.randn(n, requires_grad=True)
    optimiser = SparseAdam([p], lr=0.1)
    with running("adam", body):
        p.grad = torch.randn(n)
        optimiser.step()
        state = optimiser.state[p]
        before = [t.detach().clone() for t in (p, state["first"], state["second"])]
        still = torch.rand(n) < 0.5
        still[16:48] = True
        p.grad = torch.randn(n).masked_fill(still, 0.0)
        p.grad[20] = -0.0
        optimiser.step()
    assert state["step"] == 2
    for old, new in zip(before, (p, state["first"], state["second"]), strict=True):
        assert torch.equal(old[still], new[still])
        assert (old[~still] != new[~still]).all()


def test_state_survives_a_round_trip(running, body):
    runs = []
    for reload in (False, True):
        p = torch.ones(40, requires_grad=True)
        optimiser = SparseAdam([p])
        for step in range(4):
            if reload and step == 2:
                state = optimiser.state_dict()
                optimiser = SparseAdam([p])
                optimiser.load_state_dict(state)
            p.grad = torch.linspace(-1, 1, 40) * (step + 1)
            with running("adam", body):
                optimiser.step()
        runs.append(p.detach().clone())
    assert torch.equal(*runs)


def test_doubles_are_refused_by_the_compiled_kernel(running, compiled):
    p = torch.ones(3, dtype=torch.double, requires_grad=True)
    p.grad = torch.ones_like(p)
    with running("adam", compiled), pytest.raises(BackendError, match="float64"):
        SparseAdam([p]).step()


def test_a_nan_gradient_is_not_hidden(running, body):
    p = torch.ones(40, requires_grad=True)
    p.grad = torch.zeros(40)
    p.grad[17] = p.grad[39] = math.nan
    with running("adam", body):
        SparseAdam([p]).step()
    assert p.isnan().nonzero().flatten().tolist() == [17, 39]


def test_gradients_too_small_for_their_square_still_move(running, body):
    # g^2 underflows at 1e-25: the first moment over epsilon alone decides.
    p = torch.zeros(20, requires_grad=True)
    p.grad = torch.full((20,), 1e-25)
    with running("adam", body):
        SparseAdam([p], lr=1e-2, eps=1e-15).step()
    torch.testing.assert_close(p.detach(), torch.full((20,), -1e-12), atol=0, rtol=1e-4)


def test_parameters_without_gradient_are_skipped_and_the_closure_is_called():
    p, q = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    optimiser = SparseAdam([p, q])

    def closure():
        loss = (p * p).sum()
        loss.backward()
        return float(loss.detach())

    assert optimiser.step(closure) == 3.0
    assert (p < 1).all()
    assert torch.equal(q.detach(), torch.ones(3))
    assert q not in optimiser.state


def test_threads_do_not_change_a_bit(running, compiled, two_threads):
    n = (1 << 17) + 5
    g = torch.Generator().manual_seed(3)
    grad = torch.randn(n, generator=g) * (torch.rand(n, generator=g) < 0.1)
    results = []
    for threads in (2, 1):
        torch.set_num_threads(threads)
        p = torch.ones(n, requires_grad=True)
        p.grad = grad.clone()
        with running("adam", compiled):
            SparseAdam([p]).step()
        results.append(p.detach())
    assert torch.equal(*results)
