from __future__ import annotations

import pytest
import torch

from compress3g.kernels.causal_conv import causal_conv1d

NAME = "compress3g.kernels.causal_conv.triton"
LOADER = "compress3g.kernels._triton"
INTERPRETED = """
import torch
from compress3g.kernels.causal_conv import reference, triton
from compress3g.kernels.causal_conv._opaque import Inputs

assert triton.usable() is None, triton.usable()
torch.manual_seed(0)
for b, l, e, taps, mode, reverse, silu, has_bias in (
    (2, 9, 3, 4, "none", False, True, True),
    (1, 21, 130, 3, "none", True, False, False),
    (2, 13, 20, 4, "zero", False, True, True),
    (1, 33, 20, 4, "zero", True, False, True),
    (2, 13, 20, 4, "hold", False, False, True),
    (2, 35, 20, 2, "hold", True, True, False),
    (2, 50, 70, 4, "hold", True, True, True),
    (0, 4, 20, 2, "hold", False, True, True),
):
    places = torch.rand(b, 2 * l).argsort(1)[:, :l].sort(1).values
    leaves = [torch.randn(b, l, e), torch.randn(e, taps), torch.randn(e)][: 2 + has_bias]
    upstream = torch.randn(b, l, e)
    results = []
    for module, dtype in ((triton, torch.float32), (reference, torch.float64)):
        own = [t.to(dtype).requires_grad_() for t in leaves]
        out = module.convolve(
            Inputs(
                x=own[0], weight=own[1], bias=own[2] if has_bias else None,
                positions=None if mode == "none" else places, mode=mode, reverse=reverse, silu=silu,
            )
        )
        grads = torch.autograd.grad((out * upstream).sum(), own, materialize_grads=True)
        results.append((out, *grads))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-5)
print("equal")
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from compress3g.kernels.causal_conv import triton as kernels

values = {"TAPS": 4, "SILU": True, "BACK": True, "ROWS": 32, "BLOCK": 64, "TILES": 8}
whole = ("steps", "channels", "tokens", "back", "x_batch", "x_step")
kinds = {"positions": "*i32"} | dict.fromkeys(whole, "i32")
for holes in range(3):
    for function in (kernels._forward, kernels._input_grad, kernels._weight_grad):
        names, chosen = function.arg_names, {**values, "HOLES": holes}
        signature = {n: "constexpr" if n in chosen else kinds.get(n, "*fp32") for n in names}
        constants = {(names.index(n),): v for n, v in chosen.items() if n in names}
        source = ASTSource(function, signature, constants)
        code = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm
        assert len(code["cubin"]) > 0
        assert "atom." not in code["ptx"]
print("compiled")
"""


def test_interpreted_kernels_equal_the_reference_in_double_precision(triton_script):
    triton_script(INTERPRETED, interpret=True, says="equal")


@pytest.mark.slow
def test_kernels_compile_for_a_gpu_that_is_not_there(triton_script):
    triton_script(COMPILED, interpret=False, says="compiled")


@pytest.mark.gpu
@pytest.mark.usefixtures("installed_triton")
@pytest.mark.parametrize("mode", ["none", "zero", "hold"])
def test_gpu_kernels_equal_the_reference(mode):
    places = torch.rand(2, 300, device="cuda").argsort(1)[:, :97].sort(1).values
    leaves = [torch.randn(s, device="cuda") for s in ((2, 97, 200), (200, 4), (200,))]
    results = []
    for backend in ("triton", "reference"):
        own = [t.clone().requires_grad_() for t in leaves]
        out = causal_conv1d(*own, positions=places, mode=mode, activation="silu", backend=backend)
        results.append((out, *torch.autograd.grad(out.square().sum(), own)))
    for found, expected in zip(*results, strict=True):
        scale = float(expected.detach().abs().max())
        torch.testing.assert_close(found, expected, atol=1e-4 * scale, rtol=0)
