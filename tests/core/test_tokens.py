from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress3g.core import gather_tokens, keep_tokens, scatter_tokens
from compress3g.errors import BudgetError, ScoreError


@given(
    n=st.integers(1, 12),
    rows=st.integers(1, 4),
    share=st.floats(0.01, 1.0),
    seed=st.integers(0, 99),
)
def test_kept_tokens_are_the_sorted_best(n, rows, share, seed):
    # Few distinct values, so that ties happen.
    score = torch.randint(0, 4, (rows, n), generator=torch.Generator().manual_seed(seed)).float()
    count = max(1, round(share * n))
    index = keep_tokens(score, share)
    for row, kept in zip(score.tolist(), index.tolist(), strict=True):
        best = sorted(range(n), key=lambda i: (-row[i], i))[:count]
        assert kept == sorted(best)


@given(n=st.integers(3, 9), seed=st.integers(0, 99))
def test_some_tokens_always_stay_and_padding_goes_first(n, seed):
    g = torch.Generator().manual_seed(seed)
    score = torch.rand(2, n, generator=g)
    valid = torch.arange(n).expand(2, -1) < torch.tensor([[n], [2]])
    index = keep_tokens(score, 2, always=torch.tensor([1]), valid=valid)
    assert all(1 in row for row in index.tolist())
    assert set(index[1].tolist()) == {0, 1}


@given(n=st.integers(1, 9), width=st.integers(1, 4), share=st.floats(0.1, 1.0))
def test_scatter_puts_back_what_gather_took(n, width, share):
    x = torch.rand(3, n, width)
    index = keep_tokens(torch.rand(3, n), share)
    kept = gather_tokens(x, index)
    whole = scatter_tokens(kept, index, n, fill=-1.0).numpy()
    expected = np.full(x.shape, -1.0, np.float32)
    for b, row in enumerate(index.tolist()):
        expected[b, row] = x.numpy()[b, row]
    np.testing.assert_array_equal(whole, expected)


def test_fill_may_be_a_tensor():
    index = torch.tensor([[1]])
    fill = torch.tensor([7.0, 8.0])
    whole = scatter_tokens(torch.zeros(1, 1, 2), index, 2, fill=fill)
    assert whole.tolist() == [[[7.0, 8.0], [0.0, 0.0]]]


def test_bad_scores_and_counts_are_refused():
    with pytest.raises(ScoreError, match="NaN"):
        keep_tokens(torch.tensor([[1.0, torch.nan]]), 1)
    for count in (0, 3):
        with pytest.raises(BudgetError, match="of 2 tokens"):
            keep_tokens(torch.zeros(1, 2), count)
    with pytest.raises(BudgetError, match="2 of them always"):
        keep_tokens(torch.zeros(1, 3), 1, always=torch.tensor([0, 2]))
