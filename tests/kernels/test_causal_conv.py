from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.errors import BackendError, ConfigError
from compress3g.kernels.causal_conv import causal_conv1d
from compress3g.kernels.registry import use

MODES = ("none", "zero", "hold")


def _data(b, length, e, taps, *, full, seed=0):
    g = torch.Generator().manual_seed(seed)
    keys = torch.rand(b, full, generator=g).argsort(1)
    return {
        "x": torch.randn(b, length, e, generator=g),
        "weight": torch.randn(e, taps, generator=g),
        "bias": torch.randn(e, generator=g),
        "positions": keys[:, :length].sort(1).values,
    }


def _formula(data, *, mode, reverse, full):
    """Scatter to the full length, fill the holes, convolve by torch's own operator, gather."""
    x, weight, bias = (data[k].double() for k in ("x", "weight", "bias"))
    places, taps = data["positions"], data["weight"].shape[1]
    if mode == "none":
        places = torch.arange(x.shape[1]).expand(len(x), -1)
    rows = torch.zeros(len(x), full, x.shape[2], dtype=torch.float64)
    for i in range(len(x)):
        rows[i, places[i]] = x[i]
        if mode == "hold":
            kept, last = set(places[i].tolist()), None
            for p in reversed(range(full)) if reverse else range(full):
                last = p if p in kept else last
                rows[i, p] = rows[i, last] if last is not None else 0
    if reverse:
        rows = rows.flip(1)
    rows = F.pad(rows.transpose(1, 2), (taps - 1, 0))
    out = F.conv1d(rows, weight[:, None], bias, groups=len(weight)).transpose(1, 2)
    if reverse:
        out = out.flip(1)
    return torch.stack([out[i, places[i]] for i in range(len(x))])


@settings(max_examples=25, deadline=None)
@given(
    b=st.integers(1, 3),
    length=st.integers(1, 30),
    e=st.sampled_from([1, 7, 16, 20, 33, 64]),
    taps=st.integers(1, 6),
    holes=st.integers(0, 20),
    reverse=st.booleans(),
    silu=st.booleans(),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("mode", MODES)
def test_every_body_is_the_convolution_of_the_full_sequence(
    running, body, mode, b, length, e, taps, holes, reverse, silu, seed
):
    full = length + holes
    data = _data(b, length, e, taps, full=full, seed=seed)
    expected = _formula(data, mode=mode, reverse=reverse, full=full)
    options = {"mode": mode, "reverse": reverse, "activation": "silu" if silu else None}
    with running("causal_conv", body):
        out = causal_conv1d(**data, length=full, **options)
        plain = causal_conv1d(**{**data, "bias": None}, length=full, **options)
    # Six products of numbers up to 5 in float32.
    act = F.silu if silu else torch.nn.Identity()
    torch.testing.assert_close(out.double(), act(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        plain.double(), act(expected - data["bias"].double()), atol=1e-5, rtol=0
    )


def _gradients(data, **options):
    names = [k for k in ("x", "weight", "bias") if data[k] is not None]
    leaves = {k: data[k].clone().requires_grad_() for k in names}
    out = causal_conv1d(**{**data, **leaves}, **options)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return dict(
        zip(names, torch.autograd.grad(out, leaves.values(), upstream.to(out.dtype)), strict=True)
    )


@settings(max_examples=25, deadline=None)
@given(
    b=st.integers(1, 3),
    length=st.sampled_from([1, 2, 9, 40]),
    e=st.sampled_from([1, 16, 20, 33]),
    taps=st.integers(1, 6),
    mode=st.sampled_from(MODES),
    reverse=st.booleans(),
    silu=st.booleans(),
    has_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_gradients_are_those_in_double_precision(
    running, body, b, length, e, taps, mode, reverse, silu, has_bias, seed
):
    data = _data(b, length, e, taps, full=length + 7, seed=seed)
    data["bias"] = data["bias"] if has_bias else None
    options = {"mode": mode, "reverse": reverse, "activation": "silu" if silu else None}
    with running("causal_conv", body):
        found = _gradients(data, **options)
    wide = {k: v.double() if k != "positions" and v is not None else v for k, v in data.items()}
    with use(causal_conv="reference"):
        expected = _gradients(wide, **options)
    for name, truth in expected.items():
        # Sums of up to 120 products of numbers around 1 in float32.
        torch.testing.assert_close(found[name].double(), truth, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_reference_gradients_are_finite_differences(mode, reverse):
    data = _data(2, 5, 3, 4, full=9)
    leaves = [data[k].double().requires_grad_() for k in ("x", "weight", "bias")]
    with use(causal_conv="reference"):
        assert torch.autograd.gradcheck(
            lambda x, w, c: causal_conv1d(
                x, w, c, positions=data["positions"], mode=mode, reverse=reverse, activation="silu"
            ),
            leaves,
        )


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_full_sequence_is_convolved_the_same_in_every_mode(running, body, mode, reverse):
    data = _data(2, 19, 24, 4, full=19)
    with running("causal_conv", body):
        dense = causal_conv1d(data["x"], data["weight"], data["bias"], reverse=reverse)
        found = causal_conv1d(**data, mode=mode, reverse=reverse)
    torch.testing.assert_close(found, dense, atol=2e-6, rtol=0)


def test_strided_and_half_precision_inputs_and_nothing_at_all(running, body):
    data = _data(2, 12, 20, 4, full=30)
    wide = torch.randn(2, 12, 47)
    wide[..., 3:23] = data["x"]
    with running("causal_conv", body):
        expected = causal_conv1d(**data, mode="zero", activation="silu")
        found = causal_conv1d(**{**data, "x": wide[..., 3:23]}, mode="zero", activation="silu")
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        half = causal_conv1d(**{**data, "x": data["x"].bfloat16()}, mode="zero")
        full = causal_conv1d(**{**data, "x": data["x"].bfloat16().float()}, mode="zero")
        assert half.dtype == torch.bfloat16
        assert torch.equal(half, full.bfloat16())
        for b, length in ((0, 3), (2, 0)):
            none = {
                **data,
                "x": data["x"][:b, :length],
                "positions": data["positions"][:b, :length],
            }
            assert causal_conv1d(**none, mode="hold").shape == (b, length, 20)


def test_what_does_not_fit_is_refused_in_one_line():
    data = _data(2, 5, 4, 3, full=9)
    bad = {
        "weight \\(e, taps\\)": {"weight": data["weight"][:3]},
        "bias \\(3,\\) for 4": {"bias": data["bias"][:3]},
        "no activation 'relu'": {"activation": "relu"},
        "no mode 'mirror'": {"mode": "mirror"},
        "needs positions of shape": {"positions": None, "mode": "zero"},
        "5 tokens in a sequence of 4": {"length": 4, "mode": "hold"},
    }
    unchecked = inspect.unwrap(causal_conv1d)  # while tests run, types are checked before
    for message, change in bad.items():
        with pytest.raises(ConfigError, match=message) as refused:
            unchecked(**{**data, **change})
        assert "\n" not in str(refused.value)
    with pytest.raises(BackendError, match="no backend 'abacus'"):
        causal_conv1d(**data, backend="abacus")


def test_threads_do_not_change_a_bit(running, compiled, two_threads):
    data = _data(3, 90, 100, 4, full=200)
    results = []
    for threads in (2, 1):
        torch.set_num_threads(threads)
        with running("causal_conv", compiled):
            out = causal_conv1d(**data, mode="hold", activation="silu")
            grads = _gradients(data, mode="hold", activation="silu")
            results.append((out, *grads.values()))
    for many, one in zip(*results, strict=True):
        assert torch.equal(many, one)


def test_more_taps_than_the_compiled_convolution_has_are_refused(running, compiled):
    with running("causal_conv", compiled), pytest.raises(BackendError, match="17 in"):
        causal_conv1d(**_data(1, 2, 2, 17, full=2))
