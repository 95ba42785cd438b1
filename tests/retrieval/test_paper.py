from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from compress3g.retrieval.codebook import train_codebook
from compress3g.retrieval.paper import hamming_similarity, quantised_similarity
from compress3g.retrieval.vectors import normalise


@given(k=st.integers(2, 300), tokens=st.integers(1, 8), seed=st.integers(0, 99))
def test_equal_bits_of_centroid_numbers(k, tokens, seed):
    codes = np.random.default_rng(seed).integers(0, k, tokens)
    table = hamming_similarity(codes, k)
    bits = (k - 1).bit_length()
    for t, code in enumerate(codes.tolist()):
        assert table[t].tolist() == [bits - (code ^ j).bit_count() for j in range(k)]


def test_other_numbers_than_positions_can_be_compared():
    numbers = np.array([3, 0, 1, 2])
    assert hamming_similarity(np.array([0]), 4, numbers).tolist() == [[2, 0, 1, 1]]


def test_query_tokens_are_replaced_by_their_centroids():
    x = normalise(np.random.default_rng(0).standard_normal((200, 16)))
    book = train_codebook(x, 10, 0)
    table = quantised_similarity(x[:5], book)
    for t in range(5):
        nearest = book.centroids[int((x[t] @ normalise(book.centroids).T).argmax())]
        np.testing.assert_allclose(table[t], nearest @ book.centroids.T, rtol=1e-5, atol=1e-6)
