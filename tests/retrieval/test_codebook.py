from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.errors import ConfigError, VectorError
from compress3g.retrieval import codebook as module
from compress3g.retrieval.codebook import Codebook, Sampler, train_codebook
from compress3g.retrieval.vectors import normalise


def unit(n, d, seed=0):
    return normalise(np.random.default_rng(seed).standard_normal((n, d)))


def planted(groups, each, d, noise, seed=0):
    centres = unit(groups, d, seed)
    return centres, normalise(
        np.repeat(centres, each, 0) + noise * unit(groups * each, d, seed + 1)
    )


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 300), d=st.sampled_from([8, 24, 128]), k=st.integers(1, 40),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_codes_are_the_nearest_directions_and_all_are_used(n, d, k, seed):
    x = unit(n, d, seed)
    book = train_codebook(x, k, seed)
    codes = book.assign(x)
    similarity = x.astype(np.float64) @ normalise(book.centroids).T.astype(np.float64)
    best = similarity.max(1)
    # float32 products of d terms
    np.testing.assert_allclose(similarity[np.arange(n), codes], best, atol=1e-6)
    assert set(codes.tolist()) == set(range(book.k))
    assert book.k <= k == book.asked
    np.testing.assert_array_equal(book.counts, np.bincount(codes, minlength=book.k))


def test_energy_is_the_mean_squared_distance():
    x = unit(500, 16)
    book = train_codebook(x, 20, 0)
    r = x.astype(np.float64) - book.centroids[book.assign(x)]
    assert book.energy == pytest.approx((r**2).sum(1).mean(), rel=1e-5)
    assert book.energy_of(x) == pytest.approx(book.energy, rel=1e-5)


def test_vectors_unlike_the_sample_have_more_energy():
    _, x = planted(12, 50, 32, 0.1)
    _, other = planted(12, 50, 32, 0.1, seed=7)
    book = train_codebook(x, 24, 0)
    assert book.energy_of(other) > 10 * book.energy


def test_no_code_mixes_planted_groups():
    # Five centroids a group: k-means from random vectors finds each group, not each group once.
    _, x = planted(12, 50, 32, 0.1)
    codes = train_codebook(x, 60, 0).assign(x).reshape(12, 50)
    groups = [set(row) for row in codes.tolist()]
    assert sum(map(len, groups)) == len(set().union(*groups))


def test_more_centroids_are_never_worse():
    x = unit(3000, 16)
    energies = [train_codebook(x, k, 0).energy for k in (4, 16, 64, 256)]
    assert energies == sorted(energies, reverse=True)


def test_more_centroids_than_distinct_vectors_shrink_with_a_warning(caplog):
    x = np.repeat(unit(7, 16), 9, 0)
    with caplog.at_level(logging.WARNING, "compress3g.retrieval"):
        book = train_codebook(x, 50, 0)
    assert book.k == 7
    assert book.asked == 50
    assert "7 distinct" in caplog.text
    assert book.energy == pytest.approx(0, abs=1e-6)


def test_a_page_of_blank_paper_leaves_no_empty_centroid():
    # nine vectors of ten are one and the same
    x = np.concatenate((np.repeat(unit(1, 16), 900, 0), unit(100, 16, 1)))
    book = train_codebook(x, 64, 0)
    assert book.k == 64
    assert (np.bincount(book.assign(x), minlength=64) > 0).all()


def test_training_depends_on_nothing_but_sample_and_seed():
    x = unit(2000, 16)
    books = [train_codebook(x, 32, seed).centroids for seed in (3, 3, 4)]
    np.testing.assert_array_equal(books[0], books[1])
    assert not np.array_equal(books[0], books[2])


def test_codes_take_two_bytes_above_256():
    x = unit(600, 8)
    assert train_codebook(x, 256, 0).assign(x).dtype == np.uint8
    assert train_codebook(x, 257, 0).assign(x).dtype == np.uint16


def test_arrays_bring_the_codebook_back():
    book = train_codebook(unit(100, 8), 10, 0)
    same = Codebook.from_arrays(book.to_arrays())
    np.testing.assert_array_equal(book.centroids, same.centroids)
    assert (same.asked, same.energy, same.agreement) == (10, book.energy, 1.0)


@pytest.mark.parametrize("floor", [0.0, 1.1])
def test_a_graph_assigns_many_centroids_or_exact_search_does(floor, monkeypatch, caplog):
    monkeypatch.setattr(module, "EXACT_UP_TO", 100)
    monkeypatch.setattr(module, "_AGREEMENT", floor)
    _, x = planted(300, 10, 32, 0.3)
    with caplog.at_level(logging.WARNING, "compress3g.retrieval"):
        book = train_codebook(x, 300, 0)
    exact = module._assign_exactly(x, normalise(book.centroids))[0]
    codes = book.assign(x)
    if floor > 1:
        assert "not used" in caplog.text
        np.testing.assert_array_equal(codes, exact)
    else:
        assert (codes == exact).mean() == pytest.approx(book.agreement, abs=0.01)
        assert book.agreement > 0.9


@pytest.mark.parametrize("k", [0, -1, 65537])
def test_numbers_of_centroids_out_of_range_are_refused(k):
    with pytest.raises(ConfigError, match="out of range"):
        train_codebook(unit(10, 8), k, 0)


def test_a_bad_row_of_the_sample_is_named():
    x = unit(10, 8)
    x[7] = np.nan
    with pytest.raises(VectorError, match="vector 7"):
        train_codebook(x, 2, 0)
    with pytest.raises(VectorError, match="no vectors"):
        train_codebook(x[:0], 2, 0)


def test_another_dimension_is_refused():
    with pytest.raises(VectorError, match="8"):
        train_codebook(unit(10, 8), 2, 0).assign(unit(3, 16))


ROWS = unit(2400, 32, 5)  # no two alike


def places(sample):
    """Rows of ROWS that a sample holds, in its order."""
    return (sample @ ROWS.T).argmax(1)


def stream(pages, seed=0):
    random = np.random.default_rng(seed)
    at = 0
    for _ in range(pages):
        rows = int(random.integers(1, 40))
        yield ROWS[at : at + rows]
        at += rows


@given(limit=st.integers(1, 400), per_page=st.integers(1, 50), seed=st.integers(0, 99))
def test_a_sample_is_bounded_and_holds_no_row_twice(limit, per_page, seed):
    sampler = Sampler(limit, seed, per_page=per_page)
    offered = 0
    for page in stream(60):
        sampler.add(page)
        offered += min(len(page), per_page)
    rows = places(sampler.sample())
    assert len(rows) == min(limit, offered)
    assert (np.diff(rows) > 0).all()


def test_early_and_late_pages_are_drawn_alike():
    drawn = np.zeros(1000)
    for seed in range(300):
        sampler = Sampler(50, seed)
        for start in range(0, 1000, 20):
            sampler.add(ROWS[start : start + 20])
        drawn[places(sampler.sample())] += 1
    # each row in 5 % of 300 samples: tenths of the stream are binomial, 5 standard deviations
    tenths = drawn.reshape(10, 100).sum(1)
    assert abs(tenths - 1500).max() < 5 * np.sqrt(1500 * 0.95)


def test_one_giant_page_is_not_the_whole_sample():
    sampler = Sampler(1000, 0, per_page=10)
    sampler.add(ROWS[:2000])
    for start in range(2000, 2200, 10):
        sampler.add(ROWS[start : start + 10])
    assert (places(sampler.sample()) < 2000).sum() == 10


def blank_paper(n, d=32):
    return normalise(np.ones(d) + 0.2 * np.random.default_rng(8).standard_normal((n, d)))


def test_blank_paper_leaves_the_centroids_to_the_rest():
    """Half of every page is alike: what its other half loses against pages without it."""
    energies = []
    for blank in (False, True):
        sampler = Sampler(10_000, 0)
        for start in range(0, 2400, 100):
            page = ROWS[start : start + 100]
            sampler.add(np.concatenate((page, blank_paper(100))) if blank else page)
        energies.append(train_codebook(sampler.sample(), 128, 0).energy_of(ROWS))
    # 16 of 116 vectors of the sample are blank, 1.01; without thinning half of them are, 1.08
    assert energies[1] < 1.05 * energies[0]


def test_a_crowd_is_thinned_and_not_emptied():
    sampler = Sampler(10_000, 0)
    for _ in range(50):
        sampler.add(blank_paper(200))
    # 16 of 200 a page, a binomial of 10,000 draws, 5 standard deviations
    assert abs(len(sampler.sample()) - 800) < 5 * np.sqrt(800)


def test_a_sample_of_nothing_is_refused():
    with pytest.raises(VectorError, match="no vectors"):
        Sampler(10, 0).sample()
    with pytest.raises(ConfigError):
        Sampler(0, 0)
