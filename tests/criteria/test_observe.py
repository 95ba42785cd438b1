from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress3g.core import Cut, Units, gated
from compress3g.criteria import observe
from compress3g.errors import ScoreError, SiteError

from .models import decoder, joined, loss, priced, run, samples, scores_of, valid


def inputs(model: nn.Module, name: str, batches: list[Any]) -> torch.Tensor:
    """A reader's valid inputs in float64, one row per token."""
    rows = []

    def note(module: nn.Module, args: Any) -> None:
        rows.append(args[0][valid(current)].double())

    hook = model.get_submodule(name).register_forward_pre_hook(note)
    for current in batches:
        with torch.no_grad():
            run(model, current)
    hook.remove()
    return torch.cat(rows)


def test_moments_are_those_of_all_valid_tokens():
    model, batches = decoder(), joined(samples(14), 4)
    units = priced(model)
    stats = observe(model, units, batches, run=run, valid=valid)
    for name in stats.mean:
        x = inputs(model, name, batches)
        assert stats.count == len(x)
        # float32 results of float64 sums
        torch.testing.assert_close(stats.mean[name].double(), x.mean(0), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(
            stats.square[name].double(), x.square().mean(0), rtol=1e-5, atol=1e-7
        )
        torch.testing.assert_close(
            stats.variance[name].double(), x.var(0, correction=0), rtol=1e-5, atol=1e-7
        )
        torch.testing.assert_close(
            stats.absolute[name].double(), x.abs().mean(0), rtol=1e-5, atol=1e-7
        )


@settings(max_examples=20)
@given(
    sizes=st.lists(st.integers(0, 7), min_size=1, max_size=5).filter(any),
    centre=st.sampled_from([0.0, 1e4]),
    seed=st.integers(0, 1 << 16),
)
def test_variance_survives_a_large_mean_and_any_batching(sizes, centre, seed):
    g = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Identity(), nn.Linear(3, 2))
    unit = Units("u", 3, reads=(Cut("1", "in"),))
    batches = [torch.randn(n, 3, generator=g) + centre for n in sizes]
    stats = observe(model, [unit], batches, run=lambda m, x: m(x))
    x = torch.cat(batches).double()
    torch.testing.assert_close(
        stats.variance["1"].double(), x.var(0, correction=0), rtol=1e-6, atol=1e-9
    )
    assert stats.count == sum(sizes)


def test_gradients_of_gates_are_those_of_one_backward_per_sample():
    model, one = decoder(), samples(9)
    units = priced(model)
    stats = observe(model, units, joined(one, 4), loss, valid=valid)  # 4, 4 and 1 samples
    rows = {u.name: [] for u in units}
    for sample in one:
        g = {u.name: torch.ones(u.size, requires_grad=True) for u in units}
        with gated(model, units, g):
            loss(model, sample).backward()
        for name, gate in g.items():
            rows[name].append(gate.grad.double())
    for name, grads in rows.items():
        each = torch.stack(grads)
        # a batch's sums round otherwise than one sample's: float32 through two layers
        close = {"rtol": 1e-3, "atol": 1e-7}
        torch.testing.assert_close(stats.gradient[name].double(), each.mean(0), **close)
        torch.testing.assert_close(stats.gate_square[name].double(), each.square().mean(0), **close)
        parts = [each[:4].sum(0).abs(), each[4:8].sum(0).abs(), each[8:].sum(0).abs()]
        torch.testing.assert_close(stats.gate_grad[name].double(), sum(parts) / 9, **close)


def test_gate_gradient_is_the_group_taylor_of_the_weights():
    """Sum over a unit's columns of <W, dL/dW>, on grouped-query attention with a mask."""
    model, (batch,) = decoder(), joined(samples(6), 6)
    units = priced(model)
    stats = observe(model, units, [batch], loss, valid=valid)
    model.requires_grad_(True)
    loss(model, batch).backward()
    for u in units:
        (cut,) = u.reads
        weight = model.get_parameter(f"{cut.module}.weight")
        columns = (weight * weight.grad).detach().double().sum(0)
        expected = columns.view(u.size, cut.chunk).sum(1)
        scale = float(expected.abs().max())
        assert float((stats.gradient[u.name].double() - expected).abs().max()) < 1e-4 * scale


def test_tokens_without_their_batch_are_masked_too():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(3, 1)

        def forward(self, x):
            return self.last(x.flatten(0, 1))

    x, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    unit = Units("u", 3, reads=(Cut("last", "in"),))
    stats = observe(Flat(), [unit], [x], run=lambda m, b: m(b), valid=lambda _: mask)
    assert stats.count == 5
    torch.testing.assert_close(stats.mean["last"], x[mask].mean(0))


def test_bad_calibration_is_refused():
    model = decoder()
    units = priced(model)
    with pytest.raises(ScoreError, match="either a loss or a run"):
        observe(model, units, samples(1))
    with pytest.raises(ScoreError, match="at least one"):
        observe(model, units, [], run=run)
    with pytest.raises(ScoreError, match="nan"):
        observe(model, units, samples(1), lambda m, b: loss(m, b) * torch.nan)
    with pytest.raises(SiteError, match="never called"):
        observe(model, units, samples(1), run=lambda m, b: None)


RANK = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
from tests.criteria.models import decoder, joined, samples, scores_of

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
batches = joined(samples(20), 4)
share = batches[:2] if rank == 0 else batches[2:]
found = {n: scores_of(n, decoder(4), share) for n in sys.argv[3:]}
torch.save(found, folder / f"{rank}.pt")
dist.destroy_process_group()
"""


def test_two_processes_find_what_one_finds_and_agree_to_the_bit(tmp_path):
    names = ["taylor_signed", "taylor", "fisher", "flap", "wanda", "amp"]
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", RANK]
    started = [
        subprocess.Popen([*command, str(rank), str(tmp_path), *names], cwd=root)
        for rank in range(2)
    ]
    assert [process.wait(timeout=240) for process in started] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name in names:
        alone = scores_of(name, decoder(4), joined(samples(20), 4))
        for unit, scores in alone.items():
            assert torch.equal(first[name][unit], second[name][unit])
            # the same float64 sums in another order
            torch.testing.assert_close(first[name][unit], scores, rtol=1e-5, atol=1e-7)
