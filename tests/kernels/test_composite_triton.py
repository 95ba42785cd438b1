from __future__ import annotations

import pytest
import torch

from compress3g.kernels.composite import composite, weights
from compress3g.kernels.registry import use

INTERPRETED = """
import torch
from compress3g.kernels.composite import reference, triton

assert triton.usable() is None, triton.usable()
g = torch.Generator().manual_seed(0)
for counts, size in (([0, 3, 64, 65, 200], 8.0), ([1], 1e-4), ([0, 0], 1.0), ([], 1.0)):
    offset = torch.tensor([0, *counts]).cumsum(0)
    n, r = int(offset[-1]), len(counts)
    sigma = torch.rand(n, generator=g) ** 4 * size
    sigma[::5] = 0
    colour, background = torch.rand(n, 3, generator=g), torch.rand(r, 3, generator=g)
    length = torch.rand(r, generator=g)
    ours, true = (m.weights(sigma, length, offset) for m in (triton, reference))
    for a, b in zip(ours, true, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-5)
    results = []
    upstream = torch.randn(r, 3, generator=g)
    for m in (triton, reference):
        out = m.forward(*true, colour, background, offset)
        results.append((out, *m.backward(upstream, *true, colour, background, length, offset)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)
print("equal")
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from compress3g.kernels.composite import triton as kernels

for function, tensors in ((kernels._weights, 4), (kernels._forward, 5), (kernels._backward, 8)):
    names = function.arg_names
    signature = {n: "*i64" if n == "offset" else "*fp32" for n in names[:-1]}
    assert len(signature) == tensors + 1
    source = ASTSource(function, signature | {"BLOCK": "constexpr"}, {(len(names) - 1,): 64})
    for gpu in (80, 90):
        code = triton.compile(source, target=GPUTarget("cuda", gpu, 32), options={"num_warps": 2})
        assert len(code.asm["cubin"]) > 0
print("compiled")
"""


def test_interpreted_kernels_equal_the_reference(triton_script):
    triton_script(INTERPRETED, interpret=True, says="equal")


@pytest.mark.slow
def test_kernels_compile_for_a_gpu_that_is_not_there(triton_script):
    triton_script(COMPILED, interpret=False, says="compiled")


@pytest.mark.gpu
@pytest.mark.usefixtures("installed_triton")
def test_gpu_kernels_equal_the_reference_in_double():
    g = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 300, (5000,), generator=g)
    offset = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).cuda()
    n, r = int(offset[-1]), len(counts)
    sigma = (torch.rand(n, generator=g) ** 4 * 3).cuda()
    given = [torch.rand(s, generator=g).cuda() for s in ((n, 3), (r, 3), (r,))]
    upstream = torch.randn(r, 3, generator=g).cuda()
    results = []
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        leaves = [t.to(dtype).requires_grad_() for t in (sigma, given[0])]
        with use(composite=backend):
            out = composite(*leaves, given[1].to(dtype), given[2].to(dtype), offset)
            grads = torch.autograd.grad(out, leaves, upstream.to(dtype))
            results.append((out, *grads, *weights(leaves[0], given[2].to(dtype), offset)))
    for ours, true in zip(*results, strict=True):
        scale = float(true.detach().abs().max())
        torch.testing.assert_close(ours.double(), true, atol=2e-5 * scale, rtol=0)
