from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress3g.core import Budget, Units
from compress3g.criteria import by_layer, by_pq_index, pq_index, pq_kept
from compress3g.errors import BudgetError

vectors = st.lists(st.floats(0.0, 1e3), min_size=1, max_size=40)


def printed_index(w, p, q):
    """The formula, number by number."""
    d = len(w)
    norm = lambda r: sum(abs(x) ** r for x in w) ** (1 / r)  # noqa: E731
    return 1 - d ** (1 / q - 1 / p) * norm(p) / norm(q)


@given(w=vectors.filter(lambda w: max(w) > 1e-3), pq=st.sampled_from([(0.5, 1.0), (1.0, 2.0)]))
def test_pq_index_is_the_printed_formula(w, pq):
    p, q = pq
    ours = pq_index(torch.tensor(w, dtype=torch.float64), p=p, q=q)
    # a difference from 1: absolute; Jensen bounds it to [0, 1) but for rounding
    assert ours == pytest.approx(printed_index(w, p, q), abs=1e-9)
    assert 0 <= ours < 1


@given(
    w=vectors.filter(lambda w: max(w) > 1e-3),
    gamma=st.floats(0.2, 2.0),
    beta=st.floats(0.1, 0.95),
    eta=st.floats(0.0, 0.3),
)
def test_pq_kept_is_the_printed_rule(w, gamma, beta, eta):
    p, q, d = 0.5, 1.0, len(w)
    index = max(0.0, printed_index(w, p, q))
    r = d * (1 + eta) ** (-q / (q - p)) * (1 - index) ** (q * p / (q - p))
    exact = d * min(max(gamma * (1 - r / d), 0.0), beta)
    ours = d - pq_kept(
        torch.tensor(w, dtype=torch.float64), p=p, q=q, eta=eta, gamma=gamma, beta=beta
    )
    # where rounding decides, either side of the integer is right
    assert ours in {math.floor(exact - 1e-6), math.floor(exact), math.floor(exact + 1e-6)}


def test_pq_index_of_known_vectors():
    assert pq_index(torch.zeros(5)) == 0
    assert pq_kept(torch.full((7,), 3.0)) == 7
    one = torch.zeros(16)
    one[3] = 2.0
    # one of d entries, p 1/2, q 1: ||w||_p = ||w||_q, so I = 1 - 1/d and r = d (1 - I) = 1
    assert pq_index(one) == pytest.approx(1 - 1 / 16)
    assert pq_kept(one, beta=1.0) == 1
    assert pq_kept(one) == 16 - math.floor(16 * 0.9)


def groups():
    return [
        Units("a.heads", 6, inside="a", cost={"params": 32.0}),
        Units("a.neurons", 40, inside="a", cost={"params": 3.0}),
        Units("b.heads", 4, inside="b", cost={"params": 32.0}),
        Units("b.neurons", 50, inside="b", cost={"params": 3.0}),
    ]


def uniform_scores(units, seed, power=1.0):
    g = torch.Generator().manual_seed(seed)
    return {u.name: torch.rand(u.size, generator=g) ** power for u in units}


def share(units, keep):
    total = sum(u.cost["params"] * u.size for u in units)
    return sum(u.cost["params"] * len(keep[u.name]) for u in units) / total


@given(keep=st.floats(0.15, 1.0), seed=st.integers(0, 1 << 16))
def test_every_layer_keeps_its_share_and_the_best_of_each_group(keep, seed):
    units = groups()
    scores = uniform_scores(units, seed)
    kept = by_layer(scores, units, Budget(keep))
    for layer in "ab":
        mine = [u for u in units if u.inside == layer]
        neuron = 3.0 / sum(u.cost["params"] * u.size for u in mine)
        heads = next(u for u in mine if u.name.endswith("heads"))
        if len(kept[heads.name]) / heads.size >= keep:  # else the neurons may not make up for it
            assert share(mine, kept) >= keep - neuron
        assert share(mine, kept) <= keep + 1e-9
    for name, index in kept.items():
        s = scores[name]
        gone = torch.ones(len(s), dtype=torch.bool).index_fill(0, index, False)
        assert bool((index.diff() > 0).all())
        assert not gone.any() or float(s[gone].max()) <= float(s[index].min())


def test_layers_that_cannot_meet_their_share_say_so():
    units = groups()
    with pytest.raises(BudgetError, match=r"a cannot keep 0\.05") as caught:
        by_layer(uniform_scores(units, 0), units, Budget(0.05))
    least = float(str(caught.value).rsplit(" ", 1)[1])
    kept = by_layer(uniform_scores(units, 0), units[:2], Budget(least))
    assert [len(k) for k in kept.values()] == [1, 1]


@given(keep=st.floats(0.3, 0.95), seed=st.integers(0, 1 << 16))
def test_pq_allocation_fits_and_takes_more_where_scores_are_concentrated(keep, seed):
    units = [
        Units("even", 60, cost={"params": 1.0}),
        Units("peaked", 60, cost={"params": 1.0}),
    ]
    scores = uniform_scores(units, seed)
    scores["peaked"] = scores["peaked"] ** 6
    kept = by_pq_index(scores, units, Budget(keep))
    assert share(units, kept) <= keep + 1e-9
    assert share(units, kept) > keep - 0.05
    assert len(kept["peaked"]) <= len(kept["even"])


def test_pq_allocation_of_equal_scores_cannot_choose():
    units = [Units("a", 8, cost={"params": 1.0})]
    with pytest.raises(BudgetError, match="allocate by a ranking"):
        by_pq_index({"a": torch.ones(8)}, units, Budget(0.5))
