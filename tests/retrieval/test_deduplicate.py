from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress3g.errors import VectorError
from compress3g.retrieval import deduplicate
from compress3g.retrieval.deduplicate import unique_codes


def corpus(lengths, k, seed):
    random = np.random.default_rng(seed)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    kind = np.uint8 if k <= 256 else np.uint16
    return random.integers(0, k, offsets[-1]).astype(kind), offsets


@given(
    lengths=st.lists(st.integers(0, 40), max_size=12),
    k=st.sampled_from([1, 5, 256, 65536]),
    block=st.sampled_from([1, 7, 1 << 22]),
    seed=st.integers(0, 99),
)
def test_every_page_becomes_its_sorted_set(lengths, k, block, seed):
    codes, offsets = corpus(lengths, k, seed)
    before, deduplicate._BLOCK = deduplicate._BLOCK, block
    try:
        unique, starts = unique_codes(codes, offsets)
    finally:
        deduplicate._BLOCK = before
    pages = [codes[a:b].tolist() for a, b in itertools.pairwise(offsets)]
    kept = [unique[a:b].tolist() for a, b in itertools.pairwise(starts)]
    assert kept == [sorted(set(page)) for page in pages]
    assert unique.dtype == codes.dtype
    assert starts.dtype == np.int64


@given(seed=st.integers(0, 999), tokens=st.integers(1, 8))
def test_maxsim_scores_stay_the_same_to_the_last_bit(seed, tokens):
    codes, offsets = corpus([30, 1, 17, 64], 20, seed)
    table = np.random.default_rng(seed).standard_normal((tokens, 20)).astype(np.float32)
    unique, starts = unique_codes(codes, offsets)
    for page in range(4):
        whole = table[:, codes[offsets[page] : offsets[page + 1]]].max(1).sum()
        small = table[:, unique[starts[page] : starts[page + 1]]].max(1).sum()
        assert whole.tobytes() == small.tobytes()


@pytest.mark.parametrize("offsets", [[], [1, 3], [0, 2], [0, 3, 2, 3]])
def test_offsets_that_do_not_fit_are_refused(offsets):
    with pytest.raises(VectorError, match="offsets"):
        unique_codes(np.zeros(3, np.uint8), np.array(offsets, np.int64))
