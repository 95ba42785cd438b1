from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.core import Budget, Schedule, Units, select
from compress3g.errors import BudgetError, ScoreError

groups = st.lists(
    st.tuples(st.lists(st.integers(-3, 3), min_size=1, max_size=7), st.integers(1, 5)),
    min_size=1,
    max_size=4,
)


def _made(groups):
    units = [Units(f"g{i}", len(s), cost={"params": c}) for i, (s, c) in enumerate(groups)]
    scores = {f"g{i}": torch.tensor(s).float() for i, (s, _) in enumerate(groups)}
    return scores, units


def _twin(groups, budget):
    """Walk down one sorted list in Python."""
    rows = [(-s, g, i, c) for g, (scores, c) in enumerate(groups) for i, s in enumerate(scores)]
    kept = [set() for _ in groups]
    for g in range(len(groups)):
        own = [row for row in sorted(rows) if row[1] == g]
        kept[g] = {i for _, _, i, _ in own[: budget.floor]}
        if budget.scope == "group":
            count = max(budget.floor, int(budget.keep * len(own) + 1e-9))
            kept[g] = {i for _, _, i, _ in own[:count]}
    if budget.scope == "group":
        return [sorted(k) for k in kept]
    left = budget.keep * sum(r[3] for r in rows) + 1e-6
    left -= sum(len(k) * groups[g][1] for g, k in enumerate(kept))
    if left < 0:
        return None
    for _, g, i, c in sorted(rows):
        if i in kept[g]:
            continue
        if c > left:
            break
        left -= c
        kept[g].add(i)
    return [sorted(k) for k in kept]


@settings(max_examples=150, deadline=None)
@given(
    groups=groups,
    keep=st.integers(1, 20),
    scope=st.sampled_from(["global", "group"]),
    floor=st.integers(0, 2),
)
def test_selection_is_the_sorted_walk(groups, keep, scope, floor):
    budget = Budget(keep / 20, scope=scope, floor=floor)
    scores, units = _made(groups)
    expected = _twin(groups, budget)
    if expected is None:
        with pytest.raises(BudgetError, match="floor alone"):
            select(scores, units, budget)
        return
    found = select(scores, units, budget)
    assert [found[u.name].tolist() for u in units] == expected


@given(groups=groups)
def test_keeping_everything_keeps_everything(groups):
    scores, units = _made(groups)
    scores["g0"][-1] = -torch.inf
    found = select(scores, units, Budget(1.0))
    assert all(found[u.name].tolist() == list(range(u.size)) for u in units)


@settings(max_examples=60, deadline=None)
@given(groups=groups, pair=st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_a_larger_budget_keeps_what_the_smaller_one_keeps(groups, pair):
    scores, units = _made(groups)
    less, more = (select(scores, units, Budget(k / 20, floor=0)) for k in sorted(pair))
    assert all(set(less[n].tolist()) <= set(more[n].tolist()) for n in less)


def test_ties_go_to_the_earlier_group_and_the_lower_index():
    scores, units = _made([([1] * 4, 1), ([1] * 4, 1)])
    found = select(scores, units, Budget(0.75, floor=0))
    assert [v.tolist() for v in found.values()] == [[0, 1, 2, 3], [0, 1]]


def test_normalising_and_cost_change_the_order():
    scores, units = _made([([1, 2], 1), ([100, 300], 4)])
    assert select(scores, units, Budget(0.4, floor=0))["g1"].tolist() == [1]
    z = select(scores, units, Budget(0.5, floor=0), normalize="z")
    assert [v.tolist() for v in z.values()] == [[1], [1]]
    scores, units = _made([([3, 3], 1), ([4, 4], 4)])
    cheap = select(scores, units, Budget(0.2, floor=0), per_cost=True)
    assert [v.tolist() for v in cheap.values()] == [[0, 1], []]


def test_a_dropped_parent_drops_its_children_and_does_not_come_back():
    units = [
        Units("first", 1, bypass="a", cost={"params": 1}),
        Units("inside", 4, inside="first", cost={"params": 1}),
        Units("other", 5, cost={"params": 1}),
    ]
    scores = {
        "first": torch.tensor([0.0]),
        "inside": torch.tensor([9.0, 8.0, 0.1, 0.1]),
        "other": torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]),
    }
    found = select(scores, units, Budget(0.6))
    assert [v.tolist() for v in found.values()] == [[], [], [0, 1, 2, 3, 4]]
    scores["first"] += 10
    assert select(scores, units, Budget(0.6))["inside"].tolist() == [0, 1]


@given(size=st.integers(1, 40), keep=st.integers(1, 20), multiple=st.integers(1, 9))
def test_kept_counts_are_multiples_where_the_size_allows(size, keep, multiple):
    u = [Units("a", size)]
    scores = {"a": torch.rand(size)}
    budget = Budget(keep / 20, "units", scope="group", multiple=multiple)
    count = len(select(scores, u, budget)["a"])
    assert count % multiple == 0 or size < multiple
    assert 1 <= count <= max(multiple, size * keep / 20 + 1e-6, 1)


def test_bad_scores_and_budgets_are_refused():
    u = [Units("a", 2)]
    with pytest.raises(ScoreError, match="1 of 2 are NaN"):
        select({"a": torch.tensor([1.0, torch.nan])}, u, Budget(0.5, "units"))
    with pytest.raises(ScoreError, match="shape"):
        select({"a": torch.ones(3)}, u, Budget(0.5, "units"))
    with pytest.raises(ScoreError, match="price"):
        select({"a": torch.ones(2)}, u, Budget(0.5, "flops"))
    for wrong in ({"keep": 0.0}, {"keep": 1.1}, {"keep": 0.5, "multiple": 0}):
        with pytest.raises(BudgetError):
            Budget(**wrong)


@pytest.mark.parametrize("shape", ["linear", "cosine", "cubic", "step"])
def test_schedules_hold_their_ends_and_fall_between(shape):
    s = Schedule(1.0, 0.2, begin=10, finish=50, shape=shape)
    values = [s.at(i) for i in range(70)]
    assert set(values[:11]) == {1.0}
    assert set(values[50:]) == {0.2}
    assert all(a >= b for a, b in itertools.pairwise(values))
