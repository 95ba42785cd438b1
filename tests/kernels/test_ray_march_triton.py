from __future__ import annotations

import pytest
import torch

from compress3g.kernels.ray_march import march, pack_bits

INTERPRETED = """
import torch
from compress3g.kernels.ray_march import pack_bits, reference, triton

assert triton.usable() is None, triton.usable()
g = torch.Generator().manual_seed(0)
for n, side, step, near, limit in (
    (17, 5, 0.03, 0.0, 1 << 20), (9, 1, 0.4, 0.0, 1 << 20), (11, 12, 0.011, 0.9, 7),
    (0, 3, 0.1, 0, 4),
):
    origin = torch.rand(n, 3, generator=g) * 3 - 1
    direction = torch.rand(n, 3, generator=g) - origin
    direction[::4, 0] = 0.0
    if n:
        direction[-1] = torch.tensor([1e-9, 1.0, 0.0])  # leaves far away
    jitter = torch.rand(n, generator=g)
    bits = pack_bits(torch.rand(side, side, side, generator=g) < 0.4)
    found, true = (
        m.march(origin, direction, jitter, bits, side, step, near, limit)
        for m in (triton, reference)
    )
    for name in ("offset", "ray", "distance", "x"):
        a, b = getattr(found, name), getattr(true, name)
        assert a.dtype == b.dtype and torch.equal(a, b), name
print("equal")
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from compress3g.kernels.ray_march import triton as kernels

names = kernels._march.arg_names
kinds = ("*fp32",) * 5 + ("*i32", "*u8", "*i64", "*i64", "*fp32", "*fp32", "*i64")
kinds += ("i32", "fp32", "i32")
for fill in (False, True):
    values = {"FILL": fill, "BLOCK": 128}
    signature = dict(zip(names, kinds)) | dict.fromkeys(values, "constexpr")
    constants = {(names.index(name),): value for name, value in values.items()}
    source = ASTSource(kernels._march, signature, constants)
    options = {"enable_fp_fusion": False, "num_warps": 1}
    for gpu in (80, 90):
        code = triton.compile(source, target=GPUTarget("cuda", gpu, 32), options=options).asm
        assert len(code["cubin"]) > 0 and "fma.rn" not in code["ptx"]
print("compiled")
"""


def test_interpreted_kernels_equal_the_reference(triton_script):
    triton_script(INTERPRETED, interpret=True, says="equal")


@pytest.mark.slow
def test_kernels_compile_for_a_gpu_that_is_not_there_without_fused_products(triton_script):
    triton_script(COMPILED, interpret=False, says="compiled")


@pytest.mark.gpu
@pytest.mark.usefixtures("installed_triton")
def test_gpu_kernels_find_the_samples_of_the_reference():
    from compress3g.kernels.registry import use

    g = torch.Generator().manual_seed(0)
    origin = torch.rand(3000, 3, generator=g) * 3 - 1
    direction = torch.rand(3000, 3, generator=g) - origin
    direction = direction / direction.norm(dim=-1, keepdim=True)
    rays = [t.cuda() for t in (origin, direction, torch.rand(3000, generator=g))]
    bits = pack_bits(torch.rand(64, 64, 64, generator=g) < 0.3).cuda()
    samples = []
    for backend in ("triton", "reference"):
        with use(ray_march=backend):
            samples.append(march(*rays, bits, side=64, step=3**0.5 / 700, limit=150))
    for name in ("offset", "ray", "distance", "x"):
        assert torch.equal(*(getattr(s, name) for s in samples)), name
