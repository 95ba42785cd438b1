from __future__ import annotations

import importlib
import importlib.util
import itertools

import pytest
import torch

from compress3g.errors import BackendError
from compress3g.kernels import registry
from compress3g.kernels.mlp import mlp, padded
from compress3g.kernels.registry import use

NAME = "compress3g.kernels.mlp.triton"
# The interpreter multiplies in float32, so only the order of sums differs.
INTERPRETED = """
import itertools
import torch
from compress3g.errors import BackendError
from compress3g.kernels.mlp import mlp, padded, reference, triton
from compress3g.kernels.mlp import _mlp

assert triton.usable() is None, triton.usable()
torch.manual_seed(0)


def problem(widths, n):
    weights = [torch.randn(b, a) / a**0.5 for a, b in itertools.pairwise(widths)]
    x = torch.zeros(n, padded(widths[0]))
    x[:, : widths[0]] = torch.randn(n, widths[0])
    # Padding columns of the gradient hold anything: they are no outputs.
    return x, weights, torch.randn(n, padded(widths[-1]))


# One hidden layer, two, none, three, one too wide: the last three run in the reference.
cases = ([32, 64, 16], [1, 5, 2], [31, 64, 64, 3], [48, 20, 33, 17], [16, 7], [9] * 5, [8, 65, 3])
for widths in cases:
    for n in (0, 1, 31, 32, 33, 64, 65, 300):
        x, weights, upstream = problem(widths, n)
        out, hidden = triton.forward(x, weights, keep_hidden=True)
        expected, kept = reference.forward(x, weights, keep_hidden=True)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
        assert not out[:, widths[-1] :].any()
        for need in (True, False):
            found = triton.backward(upstream, x, weights, hidden, need_input=need)
            true = reference.backward(upstream, x, weights, kept, need_input=need)
            assert (found[0] is None) is not need
            pairs = [(found[0], true[0])] if need else []
            for a, b in [*pairs, *zip(found[1], true[1], strict=True)]:
                scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
                torch.testing.assert_close(a, b, atol=1e-5 * scale, rtol=0)

# More blocks than programs: every program sums over several.
triton._PROGRAMS = 3
x, weights, upstream = problem([31, 64, 64, 3], 1000)
_, found = triton.backward(upstream, x, weights, [], need_input=False)
_, kept = reference.forward(x, weights, keep_hidden=True)
_, true = reference.backward(upstream, x, weights, kept, need_input=False)
for a, b in zip(found, true, strict=True):
    torch.testing.assert_close(a, b, atol=1e-5 * float(b.abs().max()), rtol=0)

# Through autograd, with strided weights and input.
_mlp.pick = lambda op, device: triton
leaves = [t.T.contiguous().T.requires_grad_() for t in (x, *weights)]
grads = torch.autograd.grad(mlp(leaves[0], leaves[1:]), leaves, upstream)
for a, b in zip(grads[1:], true, strict=True):
    torch.testing.assert_close(a, b, atol=1e-5 * float(b.abs().max()), rtol=0)

x[66, 2] = float("nan")
out, _ = triton.forward(x, weights, keep_hidden=False)
assert out[66, :3].isnan().all()
assert torch.isfinite(torch.cat([out[:66], out[67:]])).all()
assert not out[66, 3:].any()
try:
    triton.forward(x.double(), weights, keep_hidden=False)
except BackendError as error:
    assert "float64" in str(error)
else:
    raise AssertionError("doubles were accepted")
print("equal")
"""

COMPILED = """
import warnings
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from compress3g.kernels.mlp import triton as kernels

warnings.simplefilter("ignore")
for widths in ([32, 64, 16], [31, 64, 64, 3]):
    weights = [torch.zeros(b, a) for a, b in zip(widths, widths[1:])]
    shared = kernels._settings(weights)
    for function, values, options in (
        (kernels._forward, {"BLOCK": kernels._FORWARD_BLOCK}, {}),
        (kernels._backward, {"BLOCK": kernels._BACKWARD_BLOCK, "NEED": True}, {"num_stages": 1}),
    ):
        values = {**shared, **values}
        names = function.arg_names
        signature = {n: "i32" if n in ("n", "programs") else "*fp32" for n in names}
        signature |= dict.fromkeys(values, "constexpr")
        constants = {(names.index(name),): value for name, value in values.items()}
        source = ASTSource(function, signature, constants)
        for capability in (80, 90):
            target = GPUTarget("cuda", capability, 32)
            compiled = triton.compile(source, target=target, options=options)
            assert len(compiled.asm["cubin"]) > 0
            assert "tf32" in compiled.asm["ptx"]
            # What the smallest of the GPUs with TF32 has for one program (8.6, 8.9, 12.0).
            assert compiled.metadata.shared <= 99 * 1024, compiled.metadata.shared
print("compiled")
"""


def test_interpreted_kernels_equal_the_reference(triton_script):
    triton_script(INTERPRETED, interpret=True, says="equal")


@pytest.mark.slow
def test_kernels_compile_for_gpus_that_are_not_there_and_fit_their_memory(triton_script):
    triton_script(COMPILED, interpret=False, says="compiled")


@pytest.mark.usefixtures("installed_triton")
def test_gpus_without_tf32_are_refused_by_name(monkeypatch):
    triton = importlib.import_module(NAME)
    monkeypatch.setattr(triton._triton, "usable", lambda: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.version.hip", None)
    for capability, reason in (((7, 5), "8.0, this GPU has 7.5"), ((8, 0), None), ((12, 0), None)):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda c=capability: c)
        found = triton.usable()
        assert found is None if reason is None else reason in found
    monkeypatch.setattr("torch.version.hip", "6.0")
    assert triton.usable() == "written for NVIDIA GPUs"


@pytest.mark.usefixtures("installed_triton")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.filterwarnings("ignore")
def test_cpu_tensors_are_refused_without_the_interpreter():
    triton = importlib.import_module(NAME)
    reasons = {c.name: c.reason for c in registry.candidates("mlp", "cuda")}
    if reasons["triton"] is None:
        pytest.skip("triton is interpreted")
    assert list(reasons) == ["triton", "reference"]
    with pytest.raises(BackendError, match="CUDA tensors"):
        triton.forward(
            torch.zeros(4, 16), [torch.zeros(8, 16), torch.zeros(3, 8)], keep_hidden=True
        )


@pytest.mark.gpu
@pytest.mark.usefixtures("installed_triton")
@pytest.mark.parametrize("widths", [[32, 64, 16], [31, 64, 64, 3]])
def test_gpu_kernels_equal_the_reference_to_tf32(widths):
    g = torch.Generator("cuda").manual_seed(0)
    weights = [
        torch.randn(b, a, generator=g, device="cuda").div(a**0.5).requires_grad_()
        for a, b in itertools.pairwise(widths)
    ]
    x = torch.zeros(10_001, padded(widths[0]), device="cuda")
    x[:, : widths[0]] = torch.randn(len(x), widths[0], generator=g, device="cuda")
    upstream = torch.randn(len(x), padded(widths[-1]), generator=g, device="cuda")

    def run(backend):
        with use(mlp=backend):
            out = mlp(x.requires_grad_(), weights)
            return (out, *torch.autograd.grad(out, [x, *weights], upstream))

    once, again, true = run("triton"), run("triton"), run("reference")
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        # The library's own TF32: ten bits of mantissa, and hidden units near zero that switch.
        theirs = run("reference")
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    for ours, same, exact, rounded in zip(once, again, true, theirs, strict=True):
        assert torch.equal(ours, same)
        error, usual = ((t - exact).norm() / exact.norm() for t in (ours, rounded))
        # Triton cuts the mantissa off where the library rounds: 4.4 times the error, in theory.
        assert error < 6 * usual
