from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.errors import BackendError
from compress3g.kernels.composite import composite, weights
from compress3g.kernels.registry import use


def _data(counts, seed, scale=20.0):
    g = torch.Generator().manual_seed(seed)
    n, r = sum(counts), len(counts)
    sigma = torch.rand(n, generator=g) ** 3 * scale
    colour, background = torch.rand(n, 3, generator=g), torch.rand(r, 3, generator=g)
    length = torch.rand(r, generator=g) * 0.2 + 0.01
    offset = torch.tensor([0, *counts]).cumsum(0)
    return sigma, colour, background, length, offset


def _formula(sigma, colour, background, length, offset):
    """Equation 3 of NeRF, ray by ray."""
    rows, every, left = [], [], []
    for r in range(len(length)):
        own = slice(int(offset[r]), int(offset[r + 1]))
        alpha = 1 - torch.exp(-sigma[own] * length[r])
        passed = torch.cat([sigma.new_ones(1), (1 - alpha).cumprod(0)])
        w = passed[:-1] * alpha
        rows.append((w[:, None] * colour[own]).sum(0) + passed[-1] * background[r])
        every.append(w)
        left.append(passed[-1])
    return torch.stack(rows), torch.cat(every), torch.stack(left)


@settings(max_examples=15, deadline=None)
@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_every_body_and_its_gradients_are_the_formula(running, body, counts, seed):
    sigma, colour, background, length, offset = _data(counts, seed)
    upstream = torch.randn(len(counts), 3, generator=torch.Generator().manual_seed(seed))
    leaves = [sigma.clone().requires_grad_(), colour.clone().requires_grad_()]
    twins = [sigma.double().requires_grad_(), colour.double().requires_grad_()]
    expected, w, left = _formula(*twins, background.double(), length.double(), offset)
    with running("composite", body):
        out = composite(*leaves, background, length, offset)
        found = torch.autograd.grad(out, leaves, upstream)
        weight, rest = weights(sigma, length, offset)
    # 40 float32 products of numbers up to 1 are off by 40 * 6e-8.
    torch.testing.assert_close(out.double(), expected, atol=5e-6, rtol=0)
    torch.testing.assert_close(weight.double(), w, atol=5e-6, rtol=0)
    torch.testing.assert_close(rest.double(), left, atol=5e-6, rtol=0)
    for a, b in zip(found, torch.autograd.grad(expected, twins, upstream.double()), strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-5, rtol=0)


def test_reference_gradients_are_finite_differences():
    sigma, colour, background, length, offset = (
        t.double() if t.is_floating_point() else t for t in _data([3, 0, 5], 3)
    )
    leaves = (sigma.requires_grad_(), colour.requires_grad_())
    with use(composite="reference"):
        assert torch.autograd.gradcheck(
            lambda s, c: composite(s, c, background, length, offset), leaves
        )


def test_weights_and_the_rest_are_one_and_an_opaque_sample_hides_what_is_behind(running, body):
    sigma, colour, background, length, offset = _data([30] * 300, 1)
    sigma[15::30] = 1e8
    with running("composite", body):
        weight, left = weights(sigma, length, offset)
        out = composite(sigma, colour, background, length, offset)
        changed = colour.clone()
        changed.view(300, 30, 3)[:, 16:] = 7.0
        assert torch.equal(composite(sigma, changed, background + 5, length, offset), out)
    torch.testing.assert_close(weight.view(300, 30).sum(1) + left, torch.ones(300))
    assert not left.any()


def test_strided_input_and_no_rays_are_accepted(running, body):
    sigma, colour, background, length, offset = _data([4, 9], 2)
    with running("composite", body):
        expected = composite(sigma, colour, background, length, offset)
        strided = [torch.stack([t, t], -1)[..., 0] for t in (sigma, colour, background, length)]
        assert torch.equal(composite(*strided, offset), expected)
        nothing = [t[:0] for t in (sigma, colour, background, length)]
        assert composite(*nothing, torch.zeros(1, dtype=torch.long)).shape == (0, 3)


def test_gradients_are_finite_differences_of_the_integral(running, body):
    sigma, colour, background, length, offset = _data([6, 0, 9, 1], 4)
    upstream = torch.randn(4, 3, generator=torch.Generator().manual_seed(4))
    leaves = [sigma.clone().requires_grad_(), colour.clone().requires_grad_()]
    with running("composite", body):
        out = composite(*leaves, background, length, offset)
        grads = torch.autograd.grad(out, leaves, upstream)
    values = [sigma.double(), colour.double()]
    for which, grad in enumerate(grads):
        for i in range(grad.numel()):
            ends = []
            for sign in (1, -1):
                moved = [v.clone() for v in values]
                moved[which].view(-1)[i] += sign * 1e-4
                image, *_ = _formula(*moved, background.double(), length.double(), offset)
                ends.append(float((image * upstream.double()).sum()))
            # Central differences in double: their error d^3 h^2 / 6 is below 1e-10 here.
            expected = (ends[0] - ends[1]) / 2e-4
            assert float(grad.reshape(-1)[i]) == pytest.approx(expected, abs=1e-6, rel=1e-5)


def test_nan_densities_stay_in_their_ray(running, compiled):
    sigma, colour, background, length, offset = _data([4, 4, 4], 5)
    sigma[5] = math.nan
    leaf = sigma.requires_grad_()
    with running("composite", compiled):
        out = composite(leaf, colour, background, length, offset)
        (grad,) = torch.autograd.grad(out.sum(), leaf)
    assert out.isnan().all(-1).tolist() == [False, True, False]
    assert torch.isfinite(grad[:4]).all()
    assert torch.isfinite(grad[8:]).all()


def test_strided_offsets_and_gradients_are_accepted(running, body):
    sigma, colour, background, length, offset = _data([7, 0, 30], 6)
    upstream = torch.randn(3, 3)
    results = []
    for ends, g in (
        (offset, upstream),
        (torch.stack([offset] * 2, -1)[:, 0], upstream.T.clone().T),
    ):
        leaf = sigma.clone().requires_grad_()
        with running("composite", body):
            out = composite(leaf, colour, background, length, ends)
            results.append((out, *torch.autograd.grad(out, leaf, g)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_threads_do_not_change_a_bit(running, compiled, two_threads):
    sigma, colour, background, length, offset = _data([11, 0, 3] * 300, 7)
    results = []
    for threads in (2, 1):
        torch.set_num_threads(threads)
        leaf = sigma.clone().requires_grad_()
        with running("composite", compiled):
            out = composite(leaf, colour, background, length, offset)
            results.append((out, *torch.autograd.grad(out.sum(), leaf)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_other_types_are_refused_by_the_compiled_kernel(running, compiled):
    sigma, colour, background, length, offset = _data([2, 3], 0)
    with running("composite", compiled):
        with pytest.raises(BackendError, match="float64"):
            composite(sigma.double(), colour, background, length, offset)
        with pytest.raises(BackendError, match="int32"):
            composite(sigma, colour, background, length, offset.int())
