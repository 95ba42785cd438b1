"""The selective scan and the causal convolution where torch wants to see operators."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from compress3g.kernels import _library
from compress3g.kernels.causal_conv import causal_conv1d
from compress3g.kernels.selective_scan import selective_scan
from compress3g.profile.count import count_flops

SETS = ["cpu", "chunked"] if _library.status() is None else ["chunked"]
CHANNELS, STATES = 24, 4


class Mixer(nn.Module):
    """Convolution, projections and scan, as a state-space model has them."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend
        self.A = nn.Parameter(-torch.rand(CHANNELS, STATES))
        self.D = nn.Parameter(torch.ones(CHANNELS))
        self.taps = nn.Parameter(torch.randn(CHANNELS, 4))
        self.project = nn.Linear(CHANNELS, CHANNELS + 2 * STATES)

    def forward(self, x, gap):
        places = (gap + 1).cumsum(1) - 1
        conv = "cpu" if self.backend == "cpu" else "reference"
        u = causal_conv1d(
            x, self.taps, positions=places, mode="hold", activation="silu", backend=conv
        )
        delta, B, C = self.project(u).split([CHANNELS, STATES, STATES], -1)
        return selective_scan(
            u, delta, self.A, B, C, self.D, x, delta_softplus=True, gap=gap, backend=self.backend
        )


def _example():
    return torch.randn(2, 20, CHANNELS), torch.randint(0, 3, (2, 20))


@pytest.mark.parametrize("backend", SETS)
def test_an_exported_module_gives_what_the_module_gives(backend):
    module, example = Mixer(backend), _example()
    exported = torch.export.export(module, example)
    other = (torch.randn_like(example[0]), example[1].flip(1))
    torch.testing.assert_close(exported.module()(*other), module(*other), atol=1e-6, rtol=0)
    ours = {str(n.target) for n in exported.graph.nodes if "compress3g" in str(n.target)}
    if backend == "chunked":  # nothing but torch's own operators: any other runtime can have it
        assert not ours
    else:
        assert ours == {"compress3g.causal_conv.default", "compress3g.selective_scan.default"}


COMPILED = """
import importlib.util
import sys
import torch

spec = importlib.util.spec_from_file_location("mixers", sys.argv[1])
mixers = sys.modules["mixers"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mixers)
for backend in mixers.SETS:
    module, example = mixers.Mixer(backend), mixers._example()
    exported = torch.export.export(module, example, strict=True)
    # The backend that runs the traced forward and backward graphs without a compiler.
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    upstream = torch.randn_like(example[0])
    results = []
    for function in (compiled, exported.module(), module):
        out = function(*example)
        named = {k.removeprefix("_orig_mod."): v for k, v in function.named_parameters()}
        leaves = [named[name] for name, _ in module.named_parameters()]
        results.append((out, *torch.autograd.grad(out.mul(upstream).sum(), leaves)))
    for found in results[:2]:
        for a, b in zip(found, results[2], strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
print("equal")
"""


def test_a_compiled_module_is_one_graph_with_the_same_gradients():
    # A process of its own: what checks types while tests run cannot be traced.
    done = subprocess.run(
        [sys.executable, "-c", COMPILED, __file__], capture_output=True, text=True, timeout=240
    )
    assert done.stdout.strip() == "equal", done.stderr[-3000:]


@pytest.mark.skipif("cpu" not in SETS, reason="CPU library not compiled")
def test_operators_obey_torchs_rules():
    b, length, e, n = 2, 5, 6, 3
    shapes = ((b, length, e), (b, length, e), (e, n), (b, 1, length, n), (b, 1, length, n))
    tensors = [torch.randn(s, requires_grad=True) for s in shapes]
    tensors[2] = (-tensors[2].detach().abs()).requires_grad_()
    some = (torch.randn(e, requires_grad=True), None, torch.randn(e, requires_grad=True))
    gap = torch.randint(0, 3, (b, length))
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(
        torch.ops.compress3g.selective_scan.default,
        (*tensors, *some, gap, None, True, "current", False, "cpu", True, True),
        test_utils=checks,
    )
    torch.library.opcheck(
        torch.ops.compress3g.causal_conv.default,
        (tensors[0], tensors[2], some[0], None, "none", False, True, "cpu"),
        test_utils=checks,
    )


@pytest.mark.parametrize("backend", SETS)
def test_flops_are_three_multiply_adds_and_an_exponential_per_state(backend):
    module, (x, gap) = Mixer(backend), _example()
    counted = count_flops(lambda: module(x, gap))
    numbers = x.numel()
    assert counted.by_op["selective_scan"] == numbers * (7 * STATES + 2)
    assert counted.by_op["causal_conv"] == numbers * 2 * 4
    assert not any("compress3g" in name for name in counted.uncounted)


@pytest.mark.skipif("cpu" not in SETS, reason="CPU library not compiled")
def test_the_backward_pass_counts_twice_the_forward_and_torchs_counter_does_not_mind():
    module, (x, gap) = Mixer("cpu"), _example()
    counted = count_flops(lambda: module(x, gap).sum().backward())
    for name in ("selective_scan", "causal_conv"):
        assert counted.by_op[f"{name}.backward"] == 2 * counted.by_op[name]
    with FlopCounterMode(display=False) as counter:
        module(x, gap)
    assert counter.get_total_flops() == 2 * x.numel() * (CHANNELS + 2 * STATES)
