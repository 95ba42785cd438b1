from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress3g.core import Cut, Masks, Sigmoid, TopK, Units, flat, open_ratio, split
from compress3g.errors import CutError, ScoreError


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5), rows=st.integers(0, 3))
def test_split_undoes_flat(sizes, rows):
    units = [Units(f"g.{i}", n) for i, n in enumerate(sizes)]
    lead = (rows,) if rows else ()
    gates = {u.name: torch.rand(*lead, u.size) for u in units}
    back = split(flat(gates, units), units)
    assert list(back) == list(gates)
    assert all(torch.equal(back[n], gates[n]) for n in gates)
    with pytest.raises(ScoreError, match="numbers for"):
        split(torch.zeros(sum(sizes) + 1), units)


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    costs=st.lists(st.integers(1, 9), min_size=5, max_size=5),
    seed=st.integers(0, 99),
)
def test_open_ratio_is_the_double_sum(sizes, costs, seed):
    block = Units("block", 1, bypass="b", cost={"params": costs[-1]})
    units = [block] + [
        Units(f"g{i}", n, inside="block" if i % 2 else None, cost={"params": costs[i]})
        for i, n in enumerate(sizes)
    ]
    g = torch.Generator().manual_seed(seed)
    gates = {u.name: torch.rand(3, u.size, generator=g) for u in units}
    for row in range(3):
        kept = sum(
            u.cost["params"] * float(o) * (float(gates["block"][row, 0]) if u.inside else 1.0)
            for u in units
            for o in gates[u.name][row]
        )
        total = sum(u.cost["params"] * u.size for u in units)
        assert float(open_ratio(gates, units)[row]) == pytest.approx(kept / total, abs=1e-6)
    with pytest.raises(ScoreError, match="'block'"):
        open_ratio(gates, units, "flops")


@given(keep=st.floats(0.01, 0.99), size=st.integers(1, 9))
def test_sigmoid_gates_open_as_far_as_asked(keep, size):
    z = Sigmoid().init(size, keep)
    for values in (Sigmoid().sample(z), Sigmoid().hard(z), Sigmoid().open(z)):
        torch.testing.assert_close(values, torch.full((size,), keep), atol=1e-6, rtol=0)


@given(scores=st.lists(st.integers(-3, 3), min_size=1, max_size=9), keep=st.floats(0, 1))
def test_topk_opens_the_largest_with_the_slope_of_a_sigmoid(scores, keep):
    z = torch.tensor(scores).float().requires_grad_()
    gate = TopK(keep, temperature=0.5)
    count = max(1, round(keep * len(scores)))
    best = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count]
    expected = torch.zeros(len(scores))
    expected[best] = 1
    assert torch.equal(gate.hard(z), expected)
    out = gate.sample(z)
    torch.testing.assert_close(out.detach(), expected)
    (grad,) = torch.autograd.grad(out.sum(), z)
    p = torch.sigmoid((z.detach() - scores[best[-1]]) / 0.5)
    torch.testing.assert_close(grad, p * (1 - p) / 0.5)


def test_masks_train_under_their_dotted_names_and_survive_a_round_trip():
    units = [Units("a.b", 3), Units("c", 2)]
    masks, other = Masks(units, Sigmoid(), keep=0.9), Masks(units, Sigmoid(), init=-1.0)
    assert list(masks.sample()) == ["a.b", "c"]
    flat(masks.open(), units).sum().backward()
    assert all(p.grad is not None for p in masks.parameters())
    assert not masks.scores()["c"].requires_grad
    other.load_state_dict(masks.state_dict())
    assert torch.equal(flat(other.hard(), units), flat(masks.hard(), units))


@given(
    index=st.lists(st.integers(0, 9), max_size=5), chunk=st.integers(1, 4), offset=st.integers(0, 9)
)
def test_slots_are_the_rows_of_the_units(index, chunk, offset):
    slots = Cut("m", "out", chunk, offset).slots(torch.tensor(index, dtype=torch.long))
    assert slots.tolist() == [offset + i * chunk + j for i in index for j in range(chunk)]


def test_units_that_cannot_be_cut_are_refused():
    for wrong in (
        {"size": 0},
        {"size": 2, "bypass": "b"},
        {"size": 2, "writes": (Cut("m", "in"),)},
        {"size": 2, "reads": (Cut("m", "out"),)},
    ):
        with pytest.raises(CutError):
            Units("a", **wrong)
    with pytest.raises(CutError):
        Cut("m", "out", chunk=0)
