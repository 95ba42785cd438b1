"""The scan as one operator of a graph: the numbers of the reference, and one node."""

from __future__ import annotations

import pytest
import torch

from compress3g.kernels.selective_scan import selective_scan


def inputs(groups=2):
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    return {
        "u": normal(2, 9, 6), "delta": normal(2, 9, 6), "A": -normal(6, 4).exp(),
        "B": normal(2, groups, 9, 4), "C": normal(2, groups, 9, 4), "D": normal(6),
        "z": normal(2, 9, 6), "delta_bias": normal(6),
        "gap": torch.randint(0, 4, (2, 9), generator=g), "initial_state": normal(2, 6, 4),
    }  # fmt: skip


class _Scan(torch.nn.Module):
    def __init__(self, names, **options):
        super().__init__()
        self.names, self.options = names, options

    def forward(self, *tensors):
        return selective_scan(
            **dict(zip(self.names, tensors, strict=True)), **self.options, delta_softplus=True,
            return_last_state=True, backend="looped",
        )  # fmt: skip


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_program_with_it_gives_the_numbers_of_the_reference(reverse, groups):
    x = inputs(groups)
    options = {"reverse": reverse, "gap_mode": "previous"}
    model = _Scan(list(x), **options)
    with torch.no_grad():
        program = torch.export.export(model, tuple(x.values()), strict=False)
        got = program.module()(*x.values())
        want = selective_scan(**x, **options, delta_softplus=True, return_last_state=True,
                              backend="reference")  # fmt: skip
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)  # float32 over nine steps
    loops = [n for n in program.graph.nodes if n.target is torch.ops.higher_order.scan]
    assert len(loops) == 1
