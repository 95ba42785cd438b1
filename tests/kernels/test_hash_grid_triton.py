from __future__ import annotations

import importlib
import importlib.util
import os

import pytest
import torch

from compress3g.errors import BackendError
from compress3g.kernels.hash_grid import Levels

NAME = "compress3g.kernels.hash_grid.triton"
LOADER = "compress3g.kernels._triton"
INTERPRETED = """
import torch
from compress3g.errors import BackendError
from compress3g.kernels.hash_grid import Levels, reference, triton

assert triton.usable() is None, triton.usable()
cases = [
    Levels.geometric(count=5, log2_size=9, coarsest=4, finest=1024),
    Levels.single(9),
    Levels.geometric(count=3, features=3, log2_size=8, coarsest=1, finest=64),
    Levels.geometric(count=1, features=8, log2_size=3, coarsest=5, finest=5),
    Levels.ranked((3, 9), (20, 77)),
]
torch.manual_seed(0)
for levels in cases:
    table = torch.rand(levels.entries, levels.features) * 2 - 1
    ranks = torch.arange(levels.ranks, dtype=torch.int32) % 20 if levels.ranks else None
    for n in (0, 1, 127, 128, 300):
        x = torch.rand(n, 3)
        for i, value in enumerate((0.0, 1.0, 1 - 2.0**-24, -3.0, 7.0)[:n]):
            x[i] = value
        x = x.T.contiguous().T
        out = triton.forward(table, x, levels, ranks)
        expected = reference.forward(table, x, levels, ranks)
        torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)
        upstream = torch.randn_like(expected)
        upstream[::3] = 0
        start = torch.randn_like(table)
        grad, expected = start.clone(), start.clone()
        triton.backward(upstream, x, levels, grad, ranks)
        reference.backward(upstream, x, levels, expected, ranks)
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(grad, expected, atol=1e-5 * scale, rtol=0)
nan = torch.full((4, 3), float("nan"))
assert torch.isfinite(triton.forward(table, nan, levels, ranks)).all()  # indices stay inside
try:
    triton.forward(table.double(), x, levels, ranks)
except BackendError as error:
    assert "float64" in str(error)
else:
    raise AssertionError("a double table was accepted")
print("equal")
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from compress3g.kernels.hash_grid import triton as kernels

values = {"BLOCK": 128, "FEATURES": 2, "WIDE": 2, "PRIME_Y": 2654435761, "PRIME_Z": 805459861}
for function in (kernels._forward, kernels._backward):
    names = function.arg_names
    kinds = ("*fp32", "*fp32", "*i64", "*i32", "*fp32", "i32", "i32")
    signature = dict(zip(names, kinds)) | dict.fromkeys(values, "constexpr")
    constants = {(names.index(name),): value for name, value in values.items()}
    source = ASTSource(function, signature, constants)
    code = triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm
    assert len(code["cubin"]) > 0
    adds = code["ptx"].count("atom.") + code["ptx"].count("red.global")
    assert (adds > 0) == (function is kernels._backward), adds
print("compiled")
"""


def test_interpreted_kernels_equal_the_reference(triton_script):
    triton_script(INTERPRETED, interpret=True, says="equal")


@pytest.mark.slow
def test_kernels_compile_for_a_gpu_that_is_not_there(triton_script):
    triton_script(COMPILED, interpret=False, says="compiled")


@pytest.mark.usefixtures("installed_triton")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="triton is interpreted")
@pytest.mark.filterwarnings("ignore")
def test_cpu_tensors_are_refused_without_the_interpreter():
    triton = importlib.import_module(NAME)
    assert triton.usable() == "no CUDA device is visible to torch"
    levels = Levels.single(3)
    with pytest.raises(BackendError, match="CUDA tensors"):
        triton.forward(torch.zeros(levels.entries, 1), torch.rand(2, 3), levels)


@pytest.mark.gpu
@pytest.mark.usefixtures("installed_triton")
def test_gpu_kernels_equal_the_reference():
    levels = Levels.geometric(count=16, log2_size=15)
    triton, reference = (
        importlib.import_module(f"compress3g.kernels.hash_grid.{n}")
        for n in ("triton", "reference")
    )
    table = torch.rand(levels.entries, 2, device="cuda") * 2 - 1
    x = torch.rand(10_001, 3, device="cuda")
    out, expected = (m.forward(table, x, levels) for m in (triton, reference))
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)
    upstream, grads = torch.randn_like(out), []
    for module in (triton, reference):
        grads.append(torch.zeros_like(table))
        module.backward(upstream, x, levels, grads[-1])
    scale = float(grads[1].abs().max())
    torch.testing.assert_close(*grads, atol=1e-5 * scale, rtol=0)
