from __future__ import annotations

import importlib
import importlib.util
import os

import pytest
import torch

from compress3g.errors import BackendError
from compress3g.kernels.selective_scan import selective_scan

NAME = "compress3g.kernels.selective_scan.triton"
LOADER = "compress3g.kernels._triton"
INTERPRETED = """
import torch
from compress3g.kernels.selective_scan import reference, triton
from compress3g.kernels.selective_scan._inputs import Inputs

assert triton.usable() is None, triton.usable()
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


def scan(module, leaves, options):
    found = module.scan(
        Inputs(**leaves, **options, delta_softplus=True), ungated=True, last_state=True
    )
    torch.manual_seed(1)
    outputs = (found.out, found.ungated, found.last_state)
    loss = sum((t * torch.randn(t.shape).to(t.dtype)).sum() for t in outputs)
    return outputs, torch.autograd.grad(loss, list(leaves.values()))


torch.manual_seed(0)
for b, l, e, n, g, reverse, mode in (
    (2, 5, 3, 1, 1, False, "current"),
    (1, 19, 24, 5, 1, True, "previous"),
    (2, 17, 20, 4, 1, True, "current"),
    (1, 9, 8, 16, 1, False, "bias"),
    (1, 8, 24, 16, 1, False, "hold"),
    (2, 24, 12, 16, 2, False, "mean"),
    (1, 27, 32, 8, 1, True, "bias"),
):
    row, few = (b, l, e), (b, g, l, n)
    shapes = (row, row, (e, n), few, few, (e,), row, (e,), (b, e, n))
    leaves = {k: torch.randn(*s) for k, s in zip(NAMES, shapes)}
    leaves["A"] = -leaves["A"].abs() * 3
    options = {"gap": torch.randint(0, 4, (b, l)), "gap_mode": mode, "reverse": reverse}
    singles = {k: v.clone().requires_grad_() for k, v in leaves.items()}
    doubles = {k: v.double().requires_grad_() for k, v in leaves.items()}
    out, grads = scan(triton, singles, options)
    expected, truth = scan(reference, doubles, options)
    for found, wanted, tolerance in (
        *zip(out, expected, [1e-5] * 3),
        *zip(grads, truth, [1e-4] * len(NAMES)),
    ):
        scale = float(wanted.detach().abs().max())
        torch.testing.assert_close(found.double(), wanted, atol=tolerance * scale, rtol=0)
print("equal")
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from compress3g.kernels.selective_scan import _fused

values = {
    "SHARE": 384, "STATES": 16, "WIDE": 16, "BLOCK": 32, "KEEP": 8, "SOFTPLUS": True, "GATED": True,
    "START": False, "UP": True, "LAST": False,
}
WHOLE = ("steps", "groups")
for mode in (_fused.NO_HOLE, _fused.CURRENT, _fused.BASE, _fused.GIVEN):
    for function in (_fused.forward, _fused.backward):
        names = function.arg_names
        chosen = {**values, "MODE": mode, "REVERSE": mode == 1, "UNGATED": mode == 2}
        chosen = {k: v for k, v in chosen.items() if k in names}
        signature = {
            n: "i32" if n in WHOLE or n.endswith(("_batch", "_step", "_group")) else "*fp32"
            for n in names
        }
        signature["gap"] = "*i32"
        signature |= dict.fromkeys(chosen, "constexpr")
        constants = {(names.index(name),): value for name, value in chosen.items()}
        source = ASTSource(function, signature, constants)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
        assert len(made.asm["cubin"]) > 0
        assert "atom." not in made.asm["ptx"]
print("compiled")
"""


def test_interpreted_kernels_equal_the_reference_in_double_precision(triton_script):
    triton_script(INTERPRETED, interpret=True, says="equal")


@pytest.mark.slow
def test_kernels_compile_for_a_gpu_that_is_not_there(triton_script):
    triton_script(COMPILED, interpret=False, says="compiled")


def _arguments(device="cpu"):
    g = torch.Generator().manual_seed(0)
    shapes = [(2, 97, 48), (2, 97, 48), (48, 16), (2, 97, 16), (2, 97, 16)]
    u, delta, A, B, C = (torch.randn(s, generator=g).to(device) for s in shapes)
    return u, delta.abs(), -A.abs(), B, C


@pytest.mark.usefixtures("installed_triton")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="triton is interpreted")
def test_cpu_tensors_are_refused_without_the_interpreter():
    triton = importlib.import_module(NAME)
    assert triton.usable() == "no CUDA device is visible to torch"
    with pytest.raises(BackendError, match="no backend 'triton' on cpu"):
        selective_scan(*_arguments(), backend="triton")


@pytest.mark.gpu
@pytest.mark.usefixtures("installed_triton")
def test_gpu_kernels_equal_the_reference():
    results = []
    for backend in ("triton", "reference"):
        leaves = [t.requires_grad_() for t in _arguments("cuda")]
        out = selective_scan(*leaves, backend=backend)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for found, expected in zip(*results, strict=True):
        scale = float(expected.detach().abs().max())
        torch.testing.assert_close(found, expected, atol=1e-4 * scale, rtol=0)
