from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.errors import BackendError, ConfigError
from compress3g.kernels.mlp import mlp, padded
from compress3g.kernels.registry import pick, use

CPU = torch.device("cpu")


def _data(n, widths, seed):
    g = torch.Generator().manual_seed(seed)
    weights = [torch.randn(b, a, generator=g) / a**0.5 for a, b in itertools.pairwise(widths)]
    x = torch.zeros(n, padded(widths[0]))
    x[:, : widths[0]] = torch.randn(n, widths[0], generator=g)
    upstream = torch.randn(n, padded(widths[-1]), generator=g)
    return x, weights, upstream


def _twin(x, weights):
    """Outputs of every layer in double, and a bound on the size of the sums behind them."""
    layers, size = (
        [x[:, : weights[0].shape[1]].double()],
        x[:, : weights[0].shape[1]].double().abs(),
    )
    for i, w in enumerate(weights):
        y = layers[-1] @ w.double().T
        layers.append(y.relu() if i < len(weights) - 1 else y)
        size = size @ w.double().abs().T
    return layers, float(size.max()) if size.numel() else 1.0


def _twin_gradients(layers, weights, upstream, hidden):
    """Gradients in double; the sign of a hidden unit is the kernel's, lest rounding flip it."""
    g, grads = upstream[:, : weights[-1].shape[0]].double(), []
    for i in reversed(range(len(weights))):
        grads.insert(0, g.T @ layers[i])
        g = g @ weights[i].double()
        if i:
            g = g * (hidden[i - 1][:, : g.shape[1]] > 0)
    return g, grads


shapes = st.lists(st.integers(1, 64), min_size=2, max_size=5)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(0, 150), widths=shapes, seed=st.integers(0, 99))
def test_every_body_is_the_definition(running, body, n, widths, seed):
    x, weights, upstream = _data(n, widths, seed)
    layers, size = _twin(x, weights)
    with running("mlp", body):
        backend = pick("mlp", CPU)
        out, hidden = backend.forward(x, weights, keep_hidden=True)
        x_grad, grads = backend.backward(upstream, x, weights, hidden, need_input=True)
    last = widths[-1]
    assert out.shape == (n, padded(last))
    assert not out[:, last:].any()
    torch.testing.assert_close(out[:, :last].double(), layers[-1], atol=1e-6 * size, rtol=0)
    expected_x, expected = _twin_gradients(layers, weights, upstream, hidden)
    assert not x_grad[:, widths[0] :].any()
    pairs = [(x_grad[:, : widths[0]], expected_x), *zip(grads, expected, strict=True)]
    for found, true in pairs:
        scale = max(1.0, float(true.abs().max())) if true.numel() else 1.0
        torch.testing.assert_close(found.double(), true, atol=1e-5 * scale, rtol=0)


@pytest.mark.parametrize("n", [1, 63, 64, 65, 128, 1000])
def test_autograd_equals_torch(running, body, n):
    # The two networks of a hash-grid field: 32-64-16 and 31-64-64-3.
    for widths in ([32, 64, 16], [31, 64, 64, 3]):
        x, weights, upstream = _data(n, widths, 7)
        leaves = [x.clone().requires_grad_(), *(w.clone().requires_grad_() for w in weights)]
        with running("mlp", body):
            out = mlp(leaves[0], leaves[1:])
            found = torch.autograd.grad(out, leaves, upstream)
        twins = [t.detach().double().requires_grad_() for t in leaves]
        y = twins[0][:, : widths[0]]
        for w in twins[1:-1]:
            y = (y @ w.T).relu()
        y = y @ twins[-1].T
        expected = torch.autograd.grad(y, twins, upstream[:, : widths[-1]].double())
        torch.testing.assert_close(out[:, : widths[-1]].double(), y, atol=1e-5, rtol=0)
        for a, b in zip(found, expected, strict=True):
            scale = max(1.0, float(b.abs().max()))
            torch.testing.assert_close(a.double(), b, atol=1e-5 * scale, rtol=0)


def test_reference_passes_gradcheck_in_double():
    x, weights, _ = _data(5, [3, 7, 4], 1)
    leaves = [x.double().requires_grad_(), *(w.double().requires_grad_() for w in weights)]
    with use(mlp="reference"):
        # The padding columns do not take part: their gradient is zero by both.
        assert torch.autograd.gradcheck(lambda x, *w: mlp(x, w), leaves)


def test_no_gradient_is_computed_for_an_input_that_needs_none(running, body):
    x, weights, upstream = _data(40, [8, 16, 4], 0)
    with running("mlp", body):
        backend = pick("mlp", CPU)
        _, hidden = backend.forward(x, weights, keep_hidden=True)
        nothing, grads = backend.backward(upstream, x, weights, hidden, need_input=False)
        _, expected = backend.backward(upstream, x, weights, hidden, need_input=True)
        out, kept = backend.forward(x, weights, keep_hidden=False)
    assert nothing is None
    assert kept == []
    assert out.shape == (40, 16)
    for a, b in zip(grads, expected, strict=True):
        assert torch.equal(a, b)


def test_strided_inputs_weights_and_gradients_are_accepted(running, body):
    x, weights, upstream = _data(70, [20, 30, 5], 2)
    strided = [t.T.contiguous().T for t in (x, *weights, upstream)]
    assert not any(t.is_contiguous() for t in strided)
    results = []
    for x_, *w, g in ([x, *weights, upstream], strided):
        leaves = [t.detach().requires_grad_() for t in (x_, *w)]
        with running("mlp", body):
            out = mlp(leaves[0], leaves[1:])
            results.append((out, *torch.autograd.grad(out, leaves, g)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_nan_passes_through_the_hidden_layers(running, body):
    x, weights, _ = _data(70, [16, 32, 32, 3], 3)
    x[66, 2] = float("nan")
    with running("mlp", body):
        out = mlp(x, weights)[:, :3]
    assert out[66].isnan().all()
    assert torch.isfinite(torch.cat([out[:66], out[67:]])).all()


def test_threads_change_sums_by_rounding_only(running, compiled, two_threads):
    x, weights, upstream = _data(3000, [32, 64, 16], 4)
    results = []
    for threads in (2, 1):
        torch.set_num_threads(threads)
        with running("mlp", compiled):
            backend = pick("mlp", CPU)
            out, hidden = backend.forward(x, weights, keep_hidden=True)
            results.append((out, *backend.backward(upstream, x, weights, hidden, need_input=True)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    for a, b in zip(results[0][2], results[1][2], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * float(b.abs().max()), rtol=0)


@pytest.mark.parametrize("widths", [[16] * 10, [16, 129], [112, 112, 112, 112]])
def test_networks_too_large_for_the_cache_are_refused(running, compiled, widths):
    x, weights, _ = _data(3, widths, 0)
    with running("mlp", compiled), pytest.raises(ConfigError, match="at most"):
        mlp(x, weights)


def test_doubles_are_refused_by_the_compiled_kernel(running, compiled):
    x, weights, _ = _data(3, [16, 16], 0)
    with running("mlp", compiled), pytest.raises(BackendError, match="float64"):
        mlp(x.double(), weights)


def test_shapes_that_do_not_chain_are_refused():
    x, weights, _ = _data(3, [8, 16, 4], 0)
    with pytest.raises(ConfigError, match="need 16 columns"):
        mlp(x[:, :8], weights)
    with pytest.raises(ConfigError, match="do not chain"):
        mlp(x, [weights[0], weights[1][:, :-1]])


@given(st.integers(1, 1000))
def test_padding_is_the_next_multiple_of_16(width):
    assert padded(width) % 16 == 0
    assert 0 <= padded(width) - width < 16
