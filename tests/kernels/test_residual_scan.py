from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.errors import ConfigError
from compress3g.kernels.registry import use
from compress3g.kernels.residual_scan import (
    score_buckets,
    score_float,
    score_pq,
    similarities_buckets,
    similarities_float,
    similarities_pq,
)

CODECS = ["pq", "1 bit", "2 bits", "4 bits", "f16", "i8"]


class Stored:
    """A corpus in one codec: the call that scores it, and its vectors decoded in double."""

    def __init__(self, codec, data, seed):
        random = np.random.default_rng(seed)
        self.data, self.codec = data, codec
        n, dims = data.vectors.shape
        base = data.centroids[data.codes].astype(float)
        norm = (1 + 0.1 * random.random(n)).astype(np.float16)
        self.similarity = data.query @ data.centroids.T
        self.norm = norm
        if codec == "pq":
            self.parts = dims // 4
            words = random.standard_normal((self.parts, 256, 4)).astype(np.float32) * 0.05
            self.bytes = random.integers(0, 256, (n, self.parts + 2), np.uint8)
            self.scales = (0.8 + 0.4 * random.random((2, 256))).astype(np.float32)
            gain, factor = (
                self.scales[i, self.bytes[:, self.parts + i]].astype(float)[:, None] for i in (0, 1)
            )
            split = data.query.reshape(len(data.query), self.parts, 4)
            self.tables = np.einsum("tmd,mwd->tmw", split, words)
            residual = words[np.arange(self.parts), self.bytes[:, :-2]].reshape(n, dims)
            self.decoded = (base + gain * residual) * factor
        elif "bit" in codec:
            self.bits = int(codec[0])
            self.levels = np.sort(random.standard_normal(1 << self.bits)).astype(np.float32) * 0.05
            level = random.integers(0, 1 << self.bits, (n, dims))
            binary = (level[..., None] >> np.arange(self.bits) & 1).reshape(n, dims * self.bits)
            self.bytes = np.packbits(binary.astype(bool), axis=1, bitorder="little")
            self.decoded = (base + self.levels[level]) * norm[:, None].astype(float)
        elif codec == "f16":
            self.bytes = data.vectors.astype(np.float16)
            self.decoded = self.bytes.astype(float)
        else:
            self.scale = np.abs(data.vectors).max(-1, initial=1e-9) / 127
            self.bytes = np.round(data.vectors / self.scale[:, None]).astype(np.int8)
            self.bytes[::5, 0] = -128
            self.decoded = self.bytes * self.scale[:, None].astype(float)

    def _stored(self):
        data = self.data
        if self.codec == "pq":
            return (self.similarity, self.tables, data.codes, self.bytes, self.scales), {}
        if self.codec == "f16":
            return (data.query, self.bytes), {}
        if self.codec == "i8":
            return (data.query, self.bytes), {"scale": self.scale}
        stored = data.query, self.similarity, data.codes, self.bytes, self.levels, self.norm
        return stored, {"bits": self.bits}

    def score(self, pages=None):
        call = {"pq": score_pq, "f16": score_float, "i8": score_float}.get(
            self.codec, score_buckets
        )
        stored, options = self._stored()
        return call(*stored, self.data.offsets, pages, **options)

    def similarities(self, page):
        call = {
            "pq": similarities_pq,
            "f16": similarities_float,
            "i8": similarities_float,
        }.get(self.codec, similarities_buckets)
        stored, options = self._stored()
        return call(*stored, self.data.offsets, page=page, **options)

    def expected(self, page):
        """[T, M] of one page, in double."""
        own = slice(self.data.offsets[page], self.data.offsets[page + 1])
        return self.data.query.astype(float) @ self.decoded[own].T

    @property
    def tolerance(self):
        """Most that one similarity may be off: float32 sums, and integers on the query's side."""
        query, dims = np.abs(self.data.query).max(), self.data.query.shape[1]
        rounding = 1e-6
        if self.codec == "pq":  # every byte: half a step of a table of 2 * 32767 steps
            rounding += self.parts * np.abs(self.tables).max() / 65534
        elif self.codec == "i8":
            rounding += query / 65534 * np.abs(self.decoded).sum(-1).max(initial=0)
        elif self.codec == "4 bits":  # both sides, in 2 * 4095 and 2 * 2047 steps
            level = np.abs(self.levels).max()
            rounding += dims * query * level * (1 / 8190 + 1 / 4094)
        elif "bit" in self.codec:
            parts = dims * self.bits // 8
            rounding += parts * (8 // self.bits) * query * np.abs(self.levels).max() / 65534
        return rounding * 1.2 * 1.2  # the factor, and the gain of "pq"


def _check(stored, pages):
    found = stored.score(pages).double().numpy()
    for i, page in enumerate(range(stored.data.pages) if pages is None else pages):
        expected = stored.expected(page)
        if expected.shape[1] == 0:
            assert found[i] == -np.inf
        else:
            bound = len(stored.data.query) * stored.tolerance
            assert abs(found[i] - expected.max(1).sum()) <= bound


@pytest.mark.parametrize("codec", CODECS)
@settings(max_examples=12, deadline=None)
@given(
    longest=st.sampled_from([0, 1, 2, 3, 8, 9, 60]),
    rows=st.sampled_from([1, 200, 300]),
    tokens=st.sampled_from([1, 8, 9, 16, 24, 32, 33, 57, 100]),
    dims=st.sampled_from([8, 24, 128, 264]),
    seed=st.integers(0, 99),
)
def test_every_body_scores_decoded_vectors(
    running, body, corpus, codec, longest, rows, tokens, dims, seed
):
    data = corpus(pages=9, longest=longest, rows=rows, tokens=tokens, dims=dims, seed=seed)
    stored = Stored(codec, data, seed)
    some = np.random.default_rng(seed).integers(0, data.pages, 5)
    with running("residual_scan", body):
        _check(stored, None)
        _check(stored, some)


@pytest.mark.parametrize("codec", CODECS)
def test_similarities_of_a_page_are_those_behind_its_score(running, body, corpus, codec):
    data = corpus(pages=9, longest=50, rows=40, tokens=24, dims=32, seed=5)
    stored = Stored(codec, data, 5)
    with running("residual_scan", body):
        scores = stored.score()
        for page in range(data.pages):
            found = stored.similarities(page)
            expected = stored.expected(page)
            assert found.shape == expected.shape
            if expected.size:
                assert np.abs(found.numpy() - expected).max() <= stored.tolerance
                torch.testing.assert_close(found.max(1).values.sum(), scores[page])


@pytest.mark.parametrize("dims", [1, 3, 255, 257, 513, 4096])
@pytest.mark.parametrize("codec", ["f16", "i8"])
def test_any_number_of_dimensions(running, body, corpus, codec, dims):
    data = corpus(pages=5, longest=12, rows=20, tokens=10, dims=dims, seed=dims)
    with running("residual_scan", body):
        _check(Stored(codec, data, 1), None)


@pytest.mark.parametrize("codec", CODECS)
def test_compiled_bodies_equal_the_reference_on_two_threads(
    running, compiled, two_threads, corpus, codec
):
    data = corpus(pages=200, longest=40, rows=500, tokens=24, dims=128, seed=6)
    stored = Stored(codec, data, 6)
    with use(residual_scan="reference"):
        expected = stored.score()
    with running("residual_scan", compiled):
        # Integer sums are equal; what is left are float32 sums of 128 products in another order.
        torch.testing.assert_close(stored.score(), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 2.0**-24, -(2.0**-15), 6e-5, -65504.0, 1.0])
def test_halves_of_every_size_are_read(running, body, value):
    vectors = torch.full((19, 33), value, dtype=torch.float16)
    with running("residual_scan", body):
        found = score_float(torch.ones(1, 33), vectors, np.array([0, 19]))
    assert float(found) == pytest.approx(33 * float(vectors[0, 0]), rel=1e-6)


@pytest.mark.parametrize("flaw", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("codec", [c for c in CODECS if c != "pq"])  # it has nothing but bytes
def test_flawed_stores_are_named_by_page(running, body, corpus, codec, flaw):
    data = corpus(pages=9, longest=50, rows=40, tokens=24, dims=32, seed=7)
    stored = Stored(codec, data, 7)
    page = int(np.diff(data.offsets).argmax())
    at = data.offsets[page] + 3
    if codec == "f16":
        stored.bytes[at, 5] = flaw
    elif codec == "i8":
        stored.scale[at] = flaw
    else:
        stored.norm[at] = flaw
    with running("residual_scan", body):
        with pytest.raises(ConfigError, match=f"page {page} holds values that are NaN"):
            stored.score()
        with pytest.raises(ConfigError, match=f"page {page} holds"):
            stored.score(np.array([page]))


@pytest.mark.parametrize("codec", ["pq", "4 bits", "2 bits"])
def test_codes_and_pages_that_do_not_exist_are_refused(running, body, corpus, codec):
    data = corpus(pages=9, longest=50, rows=40, tokens=24, dims=32, seed=8)
    stored = Stored(codec, data, 8)
    with running("residual_scan", body):
        for pages in (np.array([9]), np.array([-1]), np.array([1 << 61])):
            with pytest.raises(ConfigError, match="does not exist"):
                stored.score(pages)
        with pytest.raises(ConfigError, match="does not exist"):
            stored.similarities(9)
        data.codes[-1] = 40
        with pytest.raises(ConfigError, match="code 40 in a table of 40 rows"):
            stored.score()


def _arguments(**changes):
    arguments = {
        "query": np.ones((3, 16), np.float32),
        "similarity": np.ones((3, 5), np.float32),
        "codes": np.zeros(4, np.uint8),
        "packed": np.zeros((4, 4), np.uint8),
        "levels": np.zeros(4, np.float32),
        "inv_norm": np.ones(4, np.float16),
        "offsets": np.array([0, 4]),
        "bits": 2,
    }
    return {**arguments, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 3}, "3 bits per dimension"),
        ({"bits": 4}, "for 16 dimensions of 4 bits"),
        ({"query": np.ones((0, 16), np.float32)}, "0 query tokens"),
        ({"query": np.ones((1025, 16), np.float32)}, "1025 query tokens"),
        ({"query": np.full((3, 16), np.nan, np.float32)}, "48 of 48 values of query are NaN"),
        ({"query": np.ones((3, 0), np.float32)}, "0 dimensions"),
        ({"query": np.ones((3, 16))}, "query must be float32"),
        ({"similarity": np.ones((2, 5), np.float32)}, "for 3 query tokens"),
        ({"similarity": np.full((3, 5), np.inf, np.float32)}, "similarity are NaN or infinite"),
        ({"similarity": np.ones((3, 0), np.float32)}, "0 centroids"),
        ({"levels": np.zeros(3, np.float32)}, "levels of shape"),
        ({"inv_norm": np.ones(3, np.float16)}, "inv_norm of shape"),
        ({"inv_norm": np.ones(4, np.float32)}, "inv_norm must be float16"),
        ({"codes": np.zeros(3, np.uint8)}, "3 codes for 4 vectors"),
        ({"packed": np.zeros((4, 4), np.int16)}, "packed must be uint8"),
        ({"packed": np.zeros((4, 8), np.uint8)[:, ::2]}, "not contiguous"),
        ({"offsets": np.array([0, 5])}, "from 0 to 4 vectors"),
    ],
)
def test_buckets_that_do_not_fit_together_are_refused(changes, message):
    assert len(score_buckets(**_arguments())) == 1
    with pytest.raises(ConfigError, match=message) as caught:
        score_buckets(**_arguments(**changes))
    assert "\n" not in str(caught.value)


def test_words_and_stores_that_do_not_fit_are_refused():
    similarity, tables = np.ones((3, 5), np.float32), np.ones((3, 2, 256), np.float32)
    codes, scales = np.zeros(4, np.uint8), np.ones((2, 256), np.float32)
    residual, offsets = np.zeros((4, 4), np.uint8), np.array([0, 4])
    assert len(score_pq(similarity, tables, codes, residual, scales, offsets)) == 1
    with pytest.raises(ConfigError, match="tables of shape"):
        score_pq(similarity, tables, codes, np.zeros((4, 5), np.uint8), scales, offsets)
    with pytest.raises(ConfigError, match="tables of shape"):
        score_pq(similarity, tables, codes, np.zeros((4, 1), np.uint8), scales, offsets)
    with pytest.raises(ConfigError, match="tables are NaN"):
        score_pq(similarity, tables * np.nan, codes, residual, scales, offsets)
    with pytest.raises(ConfigError, match="scales are NaN"):
        score_pq(similarity, tables, codes, residual, scales * np.nan, offsets)
    with pytest.raises(ConfigError, match="scales of shape"):
        score_pq(similarity, tables, codes, residual, scales[:, :255].copy(), offsets)
    query = np.ones((3, 2), np.float32)
    with pytest.raises(ConfigError, match="need a scale"):
        score_float(query, np.zeros((4, 2), np.int8), offsets)
    with pytest.raises(ConfigError, match="need a scale"):
        score_float(query, np.zeros((4, 2), np.float16), offsets, scale=np.ones(4, np.float32))
    with pytest.raises(ConfigError, match="scale of shape"):
        score_float(query, np.zeros((4, 2), np.int8), offsets, scale=np.ones(3, np.float32))
    with pytest.raises(ConfigError, match="a query of 2 dimensions"):
        score_float(query, np.zeros((4, 3), np.float16), offsets)
