from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress3g.errors import ConfigError, VectorError
from compress3g.retrieval.prune import (
    inverse_page_frequency,
    keep_patches,
    keep_query_tokens,
    random_saliency,
    rare_saliency,
)
from compress3g.retrieval.vectors import PageVectors, normalise


def page_of(saliency, kind=None):
    m = len(saliency)
    x = normalise(np.random.default_rng(0).standard_normal((m, 8)))
    kind = None if kind is None else np.asarray(kind)
    return PageVectors(x, np.asarray(saliency, np.float32), kind=kind)


@given(m=st.integers(1, 40), share=st.floats(0.01, 1), seed=st.integers(0, 99), data=st.data())
def test_specials_and_the_most_salient_patches_stay(m, share, seed, data):
    random = np.random.default_rng(seed)
    saliency = random.integers(0, 5, m)  # few values, so that ties happen
    kind = random.integers(0, 2, m)
    rows = keep_patches(page_of(saliency, kind), share)
    patches = [i for i in range(m) if kind[i] == 0]
    best = sorted(patches, key=lambda i: (-saliency[i], i))[: math.ceil(share * len(patches))]
    assert rows.tolist() == sorted([*best, *(i for i in range(m) if kind[i] == 1)])


def test_a_share_that_is_not_exact_in_binary_keeps_the_number_it_says():
    # ceil(0.1 * 30) is 4 in floating point.
    assert len(keep_patches(page_of(np.arange(30)), 0.1)) == 3


def test_a_flipped_sign_keeps_the_others():
    saliency = np.random.default_rng(1).random(20)
    most = keep_patches(page_of(saliency), 0.5)
    least = keep_patches(page_of(-saliency), 0.5)
    assert sorted([*most, *least]) == list(range(20))
    assert saliency[most].min() > saliency[least].max()


@given(m=st.integers(2, 60), spread=st.floats(-1, 1), seed=st.integers(0, 99))
def test_auto_keeps_what_lies_above_mean_and_spread(m, spread, seed):
    saliency = np.random.default_rng(seed).random(m).astype(np.float32)
    rows = keep_patches(page_of(saliency), "auto", spread=spread)
    limit = saliency.mean(dtype=np.float64) + spread * saliency.std(dtype=np.float64)
    expected = [i for i in range(m) if saliency[i] > limit] or [int(saliency.argmax())]
    assert rows.tolist() == expected


def test_auto_keeps_one_patch_where_all_are_alike():
    assert keep_patches(page_of([0.5] * 6), "auto").tolist() == [0]


def test_all_stay_without_saliency_where_nothing_is_pruned():
    page = PageVectors(np.eye(3, dtype=np.float32))
    assert keep_patches(page, 1.0).tolist() == [0, 1, 2]
    with pytest.raises(VectorError, match="saliency"):
        keep_patches(page, 0.5)


def test_saliency_that_is_not_finite_is_refused_on_patches_only():
    assert keep_patches(page_of([1, np.nan, 2], kind=[0, 1, 0]), 0.5).tolist() == [1, 2]
    with pytest.raises(VectorError, match="vector 1"):
        keep_patches(page_of([1, np.nan, 2]), 0.5)


@pytest.mark.parametrize("keep", [0, -0.1, 1.5, np.nan])
def test_a_share_out_of_range_is_refused(keep):
    with pytest.raises(ConfigError, match="--keep"):
        keep_patches(page_of([1, 2]), keep)


def test_the_random_control_depends_on_the_seed_alone():
    page = page_of(np.arange(50))
    rows = [keep_patches(random_saliency(page, seed), 0.5).tolist() for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]
    # Blind to saliency: the mean saliency of what stays is that of all, within 4 standard errors.
    kept = [page.saliency[keep_patches(random_saliency(page, s), 0.2)].mean() for s in range(400)]
    assert abs(np.mean(kept) - 24.5) < 4 * np.std(kept) / math.sqrt(len(kept))


def test_rare_centroids_are_salient():
    page = rare_saliency(page_of(np.zeros(3)), np.array([0, 1, 2], np.uint8), np.array([5, 1, 9]))
    assert keep_patches(page, 0.3).tolist() == [1]


@given(tokens=st.integers(1, 30), keep=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_query_tokens_of_rare_centroids_stay_and_never_fewer_than_four(tokens, keep, seed):
    random = np.random.default_rng(seed)
    unique, pages, k = random.integers(0, 9, 40), 50, 9
    frequency = inverse_page_frequency(np.bincount(unique, minlength=k), pages)
    codes = random.integers(0, k, tokens)
    rows = keep_query_tokens(codes, frequency, keep)
    count = min(tokens, max(4, math.ceil(round(keep * tokens, 9))))
    held = [int((unique == c).sum()) for c in codes]
    assert rows.tolist() == sorted(sorted(range(tokens), key=lambda i: (held[i], i))[:count])


def test_query_keep_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="--query-keep"):
        keep_query_tokens(np.zeros(9, np.uint8), np.ones(1, np.float32), 0)
