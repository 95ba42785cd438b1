from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from compress3g.kernels import registry
from compress3g.kernels.selective_scan import chunked, mamba_ssm, reference
from compress3g.kernels.selective_scan._inputs import Inputs

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
INTERFACE = "mamba_ssm.ops.selective_scan_interface"


def _selective_scan_fn(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,
    return_last_state=False,
):  # fmt: skip
    """What mamba_ssm documents: (b, e, l) float32, B and C (b, g, n, l), no holes, h_0 = 0."""
    assert D is None
    assert z is None
    assert delta_bias is None
    assert not delta_softplus
    assert not return_last_state
    assert all(t.dtype == torch.float32 and t.is_contiguous() for t in (u, delta, A, B, C))
    share = u.shape[1] // B.shape[1]
    B, C = (t.repeat_interleave(share, 1) for t in (B, C))
    h, rows = 0, []
    for k in range(u.shape[2]):
        size = delta[:, :, k, None]
        h = torch.exp(size * A) * h + size * B[:, :, :, k] * u[:, :, k, None]
        rows.append((h * C[:, :, :, k]).sum(-1))
    return torch.stack(rows, 2)


@pytest.fixture
def stand_in(monkeypatch):
    """A module of mamba_ssm's name whose function is that of its documentation."""
    module = ModuleType(INTERFACE)
    calls = []
    module.selective_scan_fn = lambda *given: calls.append(given) or _selective_scan_fn(*given)
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, INTERFACE, module)
    mamba_ssm._library.cache_clear()
    yield calls
    mamba_ssm._library.cache_clear()


def _leaves(dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    b, length, e, n = 2, 21, 12, 4
    row, few = (b, length, e), (b, 2, length, n)
    shapes = (row, row, (e, n), few, few, (e,), row, (e,))
    leaves = {k: torch.randn(s, generator=g).to(dtype) for k, s in zip(NAMES, shapes, strict=True)}
    leaves["A"] = -leaves["A"].abs()
    return {k: v.requires_grad_() for k, v in leaves.items()}


def _options(gap_mode="current", reverse=False, **more):
    gap = torch.randint(0, 5, (2, 21), generator=torch.Generator().manual_seed(3))
    return {
        "gap": gap,
        "gap_mode": gap_mode,
        "reverse": reverse,
        "delta_softplus": True,
        "initial_state": None,
        **more,
    }


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("gap_mode", ["hold", "current", "previous", "mean", "bias"])
def test_the_rewrite_is_exact_in_outputs_and_gradients(stand_in, gap_mode, reverse):
    results = []
    for module, dtype in ((mamba_ssm, torch.float32), (reference, torch.float64)):
        leaves = _leaves(dtype)
        x = Inputs(**leaves, **_options(gap_mode, reverse))
        found = module.scan(x, ungated=True, last_state=False)
        loss = found.out.square().sum() + found.ungated.sum()
        results.append((found.out, found.ungated, *torch.autograd.grad(loss, leaves.values())))
    assert len(stand_in) == 1
    for found, expected in zip(*results, strict=True):
        scale = float(expected.detach().abs().max())
        torch.testing.assert_close(found.double(), expected, atol=1e-5 * scale, rtol=0)


def test_steps_of_size_zero_change_nothing_and_divide_by_nothing(stand_in):
    leaves = _leaves()
    with torch.no_grad():
        leaves["delta"][:, 5:9] = -200.0  # softplus underflows to 0
    x = Inputs(**leaves, **_options())
    found = mamba_ssm.scan(x, ungated=False, last_state=False).out
    expected = reference.scan(x, ungated=False, last_state=False).out
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for grad in torch.autograd.grad(found.sum(), leaves.values()):
        assert torch.isfinite(grad).all()


def test_states_go_to_a_backend_that_has_them(stand_in):
    leaves = _leaves()
    state = torch.randn(2, 12, 4)
    for options, wanted in ((_options(initial_state=state), False), (_options(), True)):
        x = Inputs(**leaves, **options)
        found = mamba_ssm.scan(x, ungated=False, last_state=wanted)
        expected = chunked.scan(x, ungated=False, last_state=wanted)
        torch.testing.assert_close(found.out, expected.out, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.last_state, expected.last_state, atol=1e-5, rtol=0)
    assert not stand_in


@pytest.mark.parametrize("error", [ImportError, OSError, RuntimeError, AttributeError])
def test_a_broken_package_is_a_reason_and_the_next_backend_serves(monkeypatch, error):
    class Broken:
        def find_spec(self, name, *_):
            if name.split(".")[0] == "mamba_ssm":
                raise error("undefined symbol:\n _ZN3c10")

    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    mamba_ssm._library.cache_clear()
    try:
        reasons = {c.name: c.reason for c in registry.candidates("selective_scan", "cuda")}
    finally:
        mamba_ssm._library.cache_clear()
    assert reasons["mamba_ssm"] == "undefined symbol: _ZN3c10"
    assert reasons["chunked"] is None


def test_a_package_without_its_compiled_scan_says_how_to_get_it(stand_in):
    sys.modules[INTERFACE].selective_scan_cuda = None
    assert "MAMBA_KEEP_CUDA_BUILD=TRUE" in str(mamba_ssm.usable())
    reasons = {c.name: c.reason for c in registry.candidates("selective_scan", "cuda")}
    assert reasons["mamba_ssm"] == mamba_ssm.usable()


@pytest.mark.gpu
@pytest.mark.skipif(mamba_ssm.usable() is not None, reason="needs mamba_ssm")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("gap_mode", ["hold", "current", "previous", "mean", "bias"])
def test_the_library_equals_the_reference_on_a_gpu(gap_mode, reverse):
    results = []
    options = _options(gap_mode, reverse)
    options["gap"] = options["gap"].cuda()
    for module, dtype in ((mamba_ssm, torch.float32), (reference, torch.float64)):
        leaves = {k: v.detach().cuda().requires_grad_() for k, v in _leaves(dtype).items()}
        x = Inputs(**leaves, **options)
        found = module.scan(x, ungated=True, last_state=False)
        loss = found.out.square().sum() + found.ungated.sum()
        results.append((found.out, found.ungated, *torch.autograd.grad(loss, leaves.values())))
    for found, expected in zip(*results, strict=True):
        scale = float(expected.detach().abs().max())
        # The library's exponentials are fast ones.
        torch.testing.assert_close(found.double(), expected, atol=1e-4 * scale, rtol=0)
