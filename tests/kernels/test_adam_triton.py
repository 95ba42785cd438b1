from __future__ import annotations

import pytest
import torch

from compress3g.kernels.adam import SparseAdam
from compress3g.kernels.registry import use

INTERPRETED = """
import torch
from compress3g.kernels.adam import reference, triton

assert triton.usable() is None, triton.usable()
g = torch.Generator().manual_seed(0)
for shape in ((0,), (5,), (1024,), (700, 3)):
    value, grad, first = (torch.randn(shape, generator=g) for _ in range(3))
    second = torch.rand(shape, generator=g)
    grad[::3] = 0
    results = []
    for m in (triton, reference):
        own = [t.clone() for t in (value, grad, first, second)]
        m.step(*own, rate=0.03, betas=(0.9, 0.99), root_correction=1.7, epsilon=1e-15)
        results.append(own)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-6)
    assert not results[0][1].any()
print("equal")
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from compress3g.kernels.adam import triton as kernels

names = kernels._step.arg_names
signature = dict(zip(names, ("*fp32",) * 4 + ("i32",) + ("fp32",) * 7)) | {"BLOCK": "constexpr"}
source = ASTSource(kernels._step, signature, {(len(names) - 1,): 1024})
for gpu in (80, 90):
    code = triton.compile(source, target=GPUTarget("cuda", gpu, 32)).asm
    # Four loads and four stores; where nothing is touched only the gradient is read.
    assert len(code["cubin"]) > 0 and "ld.global" in code["ptx"] and "st.global" in code["ptx"]
print("compiled")
"""


def test_interpreted_kernels_equal_the_reference(triton_script):
    triton_script(INTERPRETED, interpret=True, says="equal")


@pytest.mark.slow
def test_kernels_compile_for_a_gpu_that_is_not_there(triton_script):
    triton_script(COMPILED, interpret=False, says="compiled")


@pytest.mark.gpu
@pytest.mark.usefixtures("installed_triton")
def test_gpu_kernels_equal_the_reference():
    found = []
    for backend in ("triton", "reference"):
        g = torch.Generator().manual_seed(0)
        p = torch.nn.Parameter(torch.randn(100_003, 2, generator=g).cuda())
        optimizer = SparseAdam([p], lr=0.01)
        for _ in range(5):
            grad = torch.randn(100_003, 2, generator=g)
            p.grad = torch.where(torch.rand(100_003, 1, generator=g) < 0.3, grad, 0.0).cuda()
            with use(adam=backend):
                optimizer.step()
            assert not p.grad.any()
        found.append(p.detach())
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
