from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.errors import ConfigError
from compress3g.retrieval.ordering import order_centroids
from compress3g.retrieval.vectors import normalise


def centroids(k, d=16, seed=0):
    return normalise(np.random.default_rng(seed).standard_normal((k, d)))


def correlation(c, numbers):
    """Of Hamming distances with squared distances, over all pairs."""
    pairs = np.triu_indices(len(c), 1)
    hamming = np.bitwise_count(numbers[:, None] ^ numbers[None])[pairs]
    distance = ((c[:, None] - c[None]) ** 2).sum(-1)[pairs]
    return np.corrcoef(hamming, distance)[0, 1]


@settings(max_examples=20, deadline=None)
@given(k=st.integers(1, 40), seed=st.integers(0, 99), anneal=st.booleans())
def test_numbers_are_different_and_fit_the_bits(k, seed, anneal):
    numbers = order_centroids(centroids(k, seed=seed), seed, anneal=anneal)
    assert len(set(numbers.tolist())) == k
    assert numbers.min() >= 0
    assert numbers.max() < 1 << max(1, (k - 1).bit_length())


@pytest.mark.parametrize("k", [64, 100])
def test_each_step_brings_hamming_closer_to_distance(k):
    c = centroids(k)
    raw = correlation(c, np.arange(k))
    halved = correlation(c, order_centroids(c, 0, anneal=False))
    annealed = correlation(c, order_centroids(c, 0))
    assert raw + 0.1 < halved < annealed


def test_planted_corners_of_a_cube_get_their_own_numbers():
    corners = np.array([[(n >> b & 1) * 2 - 1 for b in range(4)] for n in range(16)]) * (
        np.array([8.0, 4, 2, 1])
    )
    shuffled = np.random.default_rng(0).permutation(16)
    numbers = order_centroids(corners[shuffled], 0, anneal=False)
    # halving finds the four axes one after the other: the numbers up to flips and order of bits
    hamming = np.bitwise_count(numbers[:, None] ^ numbers[None])
    expected = np.bitwise_count(shuffled[:, None] ^ shuffled[None])
    np.testing.assert_array_equal(hamming, expected)


def test_equal_centroids_still_get_different_numbers():
    c = np.repeat(centroids(3), 4, 0)
    assert len(set(order_centroids(c, 0).tolist())) == 12


def test_the_seed_decides():
    c = centroids(64)
    orders = [order_centroids(c, seed).tolist() for seed in (0, 0)]
    assert orders[0] == orders[1]


def test_too_many_centroids_are_refused():
    with pytest.raises(ConfigError, match="4096"):
        order_centroids(np.zeros((4097, 2)), 0)
