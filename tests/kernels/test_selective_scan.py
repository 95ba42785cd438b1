from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.errors import BackendError, ConfigError
from compress3g.kernels.registry import use
from compress3g.kernels.selective_scan import selective_scan

MODES = ("hold", "current", "previous", "mean", "bias")
FLOATS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


def _data(b, length, e, n, *, groups=1, seed=0, farthest=4):
    """Arguments of a scan as a model has them: decays from nearly 0 to nearly 1 per step."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    few = (b, groups, length, n)
    return {
        "u": normal(b, length, e),
        "delta": normal(b, length, e),
        "A": -torch.rand(e, n, generator=g) * 4 - 0.01,
        "B": normal(*few),
        "C": normal(*few),
        "D": normal(e),
        "z": normal(b, length, e),
        "delta_bias": normal(e) - 1,
        "initial_state": normal(b, e, n),
        "gap": torch.randint(0, farthest, (b, length), generator=g),
    }


def _double(data):
    return {k: v.double() if v.is_floating_point() else v for k, v in data.items()}


def _formula(data, *, gap_mode="current", reverse=False):
    """Output before the gate, position by position: the state passes each hole without an input."""
    data = _double(data)
    b, length, e = data["u"].shape
    delta = F.softplus(data["delta"] + data["delta_bias"])
    share = e // data["B"].shape[1]
    rows = torch.zeros(b, length, e, dtype=torch.float64)
    for i in range(b):
        mean = delta[i].mean(0)
        for c in range(e):
            h, before = data["initial_state"][i, c], torch.zeros((), dtype=torch.float64)
            for k in reversed(range(length)) if reverse else range(length):
                now = delta[i, k, c]
                unknown = {
                    "hold": torch.zeros_like(now),
                    "current": now,
                    "previous": before,
                    "mean": mean[c],
                    "bias": F.softplus(data["delta_bias"][c]),
                }[gap_mode]
                for _ in range(int(data["gap"][i, k])):
                    h = torch.exp(unknown * data["A"][c]) * h
                drive = now * data["u"][i, k, c] * data["B"][i, c // share, k]
                h = torch.exp(now * data["A"][c]) * h + drive
                rows[i, k, c] = data["C"][i, c // share, k] @ h + data["D"][c] * data["u"][i, k, c]
                before = now
    return rows


def _scan(data, **options):
    return selective_scan(**data, delta_softplus=True, **options)


def _near(found, expected, tolerance):
    """Largest difference in terms of the largest number."""
    scale = max(1e-6, float(expected.detach().abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(found.double(), expected.double(), atol=tolerance * scale, rtol=0)


@settings(max_examples=12, deadline=None)
@given(
    b=st.integers(1, 2),
    length=st.integers(1, 9),
    e=st.sampled_from([2, 6, 18]),
    n=st.sampled_from([1, 3]),
    groups=st.sampled_from([1, 2]),
    reverse=st.booleans(),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("gap_mode", MODES)
def test_the_state_passes_every_hole_without_input(
    scanning, scan_body, gap_mode, b, length, e, n, groups, reverse, seed
):
    data = _data(b, length, e, n, groups=groups, seed=seed)
    expected = _formula(data, gap_mode=gap_mode, reverse=reverse)
    with scanning(scan_body):
        out, ungated = _scan(data, gap_mode=gap_mode, reverse=reverse, return_ungated=True)
    # Float32 sums of n products, and decays whose exponents have rounding errors of 1e-7 each.
    _near(ungated, expected, 1e-5)
    _near(out, expected * F.silu(data["z"].double()), 1e-5)


def _gradients(data, *, upstream, **options):
    leaves = {k: data[k].clone().requires_grad_() for k in FLOATS if k in data}
    if "gap" in data and data["gap"].is_floating_point():
        leaves["gap"] = data["gap"].clone().requires_grad_()
    found = _scan({**data, **leaves}, return_ungated=True, return_last_state=True, **options)
    found = dict(zip(("out", "ungated", "state"), found, strict=True))
    loss = sum((found[k] * upstream[k].to(found[k].dtype)).sum() for k in found)
    # Without a single step A, B and C do not matter: their gradient is zero.
    grads = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return found, dict(zip(leaves, grads, strict=True))


def _upstream(data, seed=1):
    g = torch.Generator().manual_seed(seed)
    b, length, e = data["u"].shape
    return {
        "out": torch.randn(b, length, e, generator=g),
        "ungated": torch.randn(b, length, e, generator=g),
        "state": torch.randn(b, e, data["A"].shape[1], generator=g),
    }


@settings(max_examples=10, deadline=None)
@given(
    b=st.integers(1, 3),
    length=st.sampled_from([1, 2, 15, 16, 17, 40, 300]),
    e=st.sampled_from([1, 8, 16, 20, 34, 48]),
    n=st.sampled_from([1, 2, 5, 8, 16, 17, 32]),
    groups=st.sampled_from([1, 2]),
    reverse=st.booleans(),
    gap_mode=st.sampled_from([*MODES, "float", "none"]),
    seed=st.integers(0, 99),
)
def test_outputs_and_gradients_are_those_in_double_precision(
    scanning, scan_body, b, length, e, n, groups, reverse, gap_mode, seed
):
    groups = groups if e % groups == 0 else 1
    data = _data(b, length, e, n, groups=groups, seed=seed)
    if gap_mode == "none":
        del data["gap"]
    if gap_mode == "float":
        data["gap"] = data["delta"].abs()
    options = {"reverse": reverse, "upstream": _upstream(data)}
    options["gap_mode"] = gap_mode if gap_mode in MODES else "current"
    with scanning(scan_body):
        found, grads = _gradients(data, **options)
    with use(selective_scan="reference"):
        expected, truth = _gradients(_double(data), **options)
    for name in expected:
        _near(found[name], expected[name], 1e-5)
    # A gradient adds up to b l n float32 products of random signs.
    for name in truth:
        _near(grads[name], truth[name], 1e-4)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("gap_mode", MODES)
def test_reference_gradients_are_finite_differences(gap_mode, reverse):
    data = _double(_data(2, 4, 4, 2, groups=2))
    names = [k for k in FLOATS if k in data]

    def function(*leaves):
        return _scan(
            {**data, **dict(zip(names, leaves, strict=True))},
            gap_mode=gap_mode,
            reverse=reverse,
            return_ungated=True,
            return_last_state=True,
        )

    with use(selective_scan="reference"):
        assert torch.autograd.gradcheck(function, [data[k].requires_grad_() for k in names])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("gap_mode", MODES)
def test_no_holes_are_the_dense_scan_and_the_first_hole_does_not_matter(
    scanning, scan_body, gap_mode, reverse
):
    data = _data(2, 19, 24, 16)
    del data["initial_state"]
    gap = data.pop("gap")
    with scanning(scan_body):
        dense = _scan(data, reverse=reverse)
        none = _scan({**data, "gap": gap * 0}, gap_mode=gap_mode, reverse=reverse)
        assert torch.equal(none, dense)
        own = _scan({**data, "gap": gap}, gap_mode=gap_mode, reverse=reverse)
        gap[:, -1 if reverse else 0] += 1000
        assert torch.equal(_scan({**data, "gap": gap}, gap_mode=gap_mode, reverse=reverse), own)


def test_a_float_gap_is_the_hole_itself(scanning, scan_body):
    data = _data(2, 21, 10, 4)
    delta = F.softplus(data["delta"] + data["delta_bias"])
    with scanning(scan_body):
        expected = _scan(data)
        found = _scan({**data, "gap": data["gap"][:, :, None] * delta})
    _near(found, expected, 1e-5)


def test_scanning_on_from_the_last_state_is_scanning_the_whole(scanning, scan_body):
    data = _data(2, 30, 20, 16, groups=2)
    rows = {"u": 1, "delta": 1, "z": 1, "B": 2, "C": 2, "gap": 1}
    parts = [
        {k: v.narrow(rows[k], at, size) if k in rows else v for k, v in data.items()}
        for at, size in ((0, 13), (13, 17))
    ]
    with scanning(scan_body):
        whole, last = _scan(data, return_last_state=True)
        first, state = _scan(parts[0], return_last_state=True)
        second, end = _scan({**parts[1], "initial_state": state}, return_last_state=True)
    _near(torch.cat([first, second], 1), whole, 1e-6)
    _near(end, last, 1e-6)


def test_strided_inputs_give_what_contiguous_ones_give(scanning, scan_body):
    data = _data(2, 12, 20, 8, groups=2)
    strided = {}
    for name, value in data.items():
        axes = list(range(value.dim()))[::-1]
        strided[name] = value.permute(*axes).contiguous().permute(*axes)
    wide = torch.randn(2, 12, 47)
    wide[..., 3:23], wide[..., 25:45] = data["u"], data["z"]
    with scanning(scan_body):
        expected = _scan(data)
        _near(_scan(strided), expected, 1e-6)  # torch sums along other axes in another order
        sliced = {**data, "u": wide[..., 3:23], "z": wide[..., 25:45]}
        _near(_scan(sliced), expected, 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_the_float32_scan_rounded(scanning, scan_body, dtype):
    data = {k: v.to(dtype) if k in "udeltazBC" else v for k, v in _data(2, 20, 18, 16).items()}
    with scanning(scan_body):
        out, state = _scan(data, return_last_state=True)
        wide = {k: v.float() if v.is_floating_point() else v for k, v in data.items()}
        expected, wide_state = _scan(wide, return_last_state=True)
    assert out.dtype == dtype
    assert state.dtype == torch.float32
    assert torch.equal(out, expected.to(dtype))
    assert torch.equal(state, wide_state)


@pytest.mark.parametrize(("b", "length"), [(0, 5), (2, 0)])
def test_nothing_to_scan_is_an_empty_result_with_gradients(scanning, scan_body, b, length):
    data = _data(b, length, 20, 4)
    with scanning(scan_body):
        found, grads = _gradients(data, upstream=_upstream(data))
    assert found["out"].shape == (b, length, 20)
    assert torch.equal(found["state"], data["initial_state"])
    assert not grads["A"].any()


def test_large_steps_forget_and_never_overflow(scanning, scan_body):
    data = _data(1, 40, 17, 16)
    data["delta"] = data["delta"] * 40
    data["gap"] = data["gap"] * 10**6
    with scanning(scan_body):
        found, grads = _gradients(data, upstream=_upstream(data))
    with use(selective_scan="reference"):
        expected, truth = _gradients(_double(data), upstream=_upstream(data))
    _near(found["out"], expected["out"], 1e-5)
    for name in truth:
        assert torch.isfinite(grads[name]).all(), name
        _near(grads[name], truth[name], 1e-4)


def test_a_channel_out_of_range_changes_no_bit_of_its_neighbours(scanning, scan_body):
    data = _data(1, 40, 17, 16)
    with scanning(scan_body):
        alone = _scan(data)
        for size in (1e6, float("nan")):
            data["delta"][:, 3::9, 5] = size
            found = _scan(data)
            others = torch.arange(17) != 5
            assert torch.equal(found[..., others], alone[..., others])
            assert found[:, :3, 5].equal(alone[:, :3, 5])
            assert torch.isfinite(found).all() == (size == 1e6)


def test_shapes_and_options_that_do_not_fit_are_refused_in_one_line():
    data = _data(2, 5, 4, 3)
    bad = {
        "delta must be real": {"delta": data["delta"][:, :4]},
        "C must be real": {"C": data["C"][..., :2]},
        "D must be real": {"D": data["D"].long()},
        "gap must be integers": {"gap": data["gap"][:1]},
        "a float gap must be": {"gap": data["gap"][:, :3].float()},
        "3 groups": {"B": data["B"].expand(2, 3, 5, 3)},
        "delta_bias: pass it": {"delta_bias": None, "gap_mode": "bias"},
    }
    unchecked = inspect.unwrap(selective_scan)  # while tests run, types are checked before
    for message, change in bad.items():
        with pytest.raises(ConfigError, match=message) as refused:
            unchecked(**{**data, **change})
        assert "\n" not in str(refused.value)
    with pytest.raises(BackendError, match="no backend 'abacus'"):
        _scan(data, backend="abacus")


def test_threads_do_not_change_a_bit(scanning, compiled, two_threads):
    data = _data(3, 40, 100, 16, groups=2)
    results = []
    for threads in (2, 1, 2):
        torch.set_num_threads(threads)
        with scanning(compiled):
            found, grads = _gradients(data, upstream=_upstream(data))
            results.append((*found.values(), *grads.values()))
    for many, one, again in zip(*results, strict=True):
        assert torch.equal(many, one)
        assert torch.equal(many, again)


def test_a_batch_with_different_holes_is_its_images_one_by_one(scanning, scan_body):
    data = _data(3, 25, 20, 16)
    alone = ("A", "D", "delta_bias")
    with scanning(scan_body):
        whole = _scan(data)
        for i in range(3):
            single = {k: v if k in alone else v[i : i + 1] for k, v in data.items()}
            _near(_scan(single)[0], whole[i], 1e-6)


def test_steps_of_size_zero_change_no_state(scanning, scan_body):
    data = _data(2, 20, 18, 16)
    for name in ("delta", "u", "gap"):
        data[name][:, 12:] = 0
    options = {"return_last_state": True}
    del data["delta_bias"]
    data["delta"] = data["delta"].abs()
    rows = {"u": 1, "delta": 1, "z": 1, "B": 2, "C": 2, "gap": 1}
    short = {k: v.narrow(rows[k], 0, 12) if k in rows else v for k, v in data.items()}
    with scanning(scan_body):
        padded = selective_scan(**data, **options)[1]
        assert torch.equal(padded, selective_scan(**short, **options)[1])


def test_more_states_than_the_compiled_scan_has_are_refused(scanning, compiled):
    with scanning(compiled), pytest.raises(BackendError, match="got 257 in"):
        _scan(_data(1, 2, 2, 257))
    with scanning(compiled), pytest.raises(BackendError, match="float64"):
        _scan(_double(_data(1, 2, 2, 4)))
