from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.errors import ConfigError
from compress3g.kernels.hamming import scan, score
from compress3g.kernels.registry import use


def _corpus(*, pages, longest, words, tokens, seed):
    random = np.random.default_rng(seed)
    offsets = np.concatenate([[0], random.integers(0, longest + 1, pages).cumsum()])
    centre = random.integers(0, 1 << 64, (7, words), np.uint64)
    flips = random.integers(0, 1 << 64, (4, offsets[-1], words), np.uint64)
    bits = centre[random.integers(0, 7, offsets[-1])] ^ np.bitwise_and.reduce(flips)
    query = centre[random.integers(0, 7, tokens)] ^ random.integers(0, 1 << 20, words, np.uint64)
    return query, bits, offsets


def _unpack(bits):
    return np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little").astype(int)


def _brute(query, bits, offsets, pages):
    q, b = _unpack(query), _unpack(bits)
    out = []
    for p in pages:
        own = b[offsets[p] : offsets[p + 1]]
        out.append(int((q[:, None] != own).sum(-1).min(1).sum()) if len(own) else -1)
    return out


@settings(max_examples=25, deadline=None)
@given(
    pages=st.integers(1, 12),
    longest=st.sampled_from([0, 1, 3, 40]),
    words=st.sampled_from([1, 2, 3, 31, 32, 64]),
    tokens=st.sampled_from([1, 4, 7, 8, 9, 24, 31, 33, 70]),
    seed=st.integers(0, 99),
)
def test_every_body_counts_differing_bits(running, body, pages, longest, words, tokens, seed):
    query, bits, offsets = _corpus(
        pages=pages, longest=longest, words=words, tokens=tokens, seed=seed
    )
    some = np.random.default_rng(seed).integers(0, pages, 4)
    with running("hamming", body):
        found = scan(query, bits, offsets)
        assert found.dtype == torch.int32
        assert found.tolist() == _brute(query, bits, offsets, range(pages))
        assert scan(query, bits, offsets, some).tolist() == _brute(query, bits, offsets, some)


@pytest.mark.parametrize("words", [2, 64])
def test_opposite_bits_differ_in_all(running, body, words):
    full = np.full((1, words), (1 << 64) - 1, np.uint64)
    with running("hamming", body):
        assert scan(full, ~full, np.array([0, 1])).tolist() == [64 * words]
        assert scan(full, full, np.array([0, 1])).tolist() == [0]


def test_many_pages_on_two_threads_equal_the_reference(running, two_threads, compiled):
    query, bits, offsets = _corpus(pages=500, longest=30, words=2, tokens=24, seed=0)
    with use(hamming="reference"):
        expected = scan(query, bits, offsets)
    with running("hamming", compiled):
        assert torch.equal(scan(query, bits, offsets), expected)


@settings(max_examples=15, deadline=None)
@given(
    longest=st.sampled_from([0, 1, 3, 40]),
    words=st.sampled_from([1, 2, 5]),
    tokens=st.sampled_from([1, 9, 24, 40]),
    seed=st.integers(0, 99),
)
def test_a_float_query_scores_signs(running, body, longest, words, tokens, seed):
    _, bits, offsets = _corpus(pages=6, longest=longest, words=words, tokens=1, seed=seed)
    random = np.random.default_rng(seed)
    query = random.standard_normal((tokens, 64 * words)).astype(np.float32)
    scale = (0.5 + random.random(len(bits))).astype(np.float16)
    with running("residual_scan", body):
        found = score(query, bits, scale, offsets).double().numpy()
    signs = (2 * _unpack(bits) - 1) * scale[:, None].astype(float)
    # Each byte's entry is rounded to 2 * 32767 steps of the largest, at most 8 max |q|.
    tolerance = tokens * (8 * words * 8 * np.abs(query).max() / 65534 + 1e-5) * 1.5
    for p in range(6):
        own = query.astype(float) @ signs[offsets[p] : offsets[p + 1]].T
        if own.shape[1]:
            assert abs(found[p] - own.max(1).sum()) <= tolerance
        else:
            assert found[p] == -np.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": np.zeros((0, 2), np.uint64)}, "0 query tokens"),
        ({"query": np.zeros((1025, 2), np.uint64)}, "1025 query tokens"),
        ({"query": np.zeros((3, 1), np.uint64)}, "the words of `bits`"),
        ({"query": np.zeros((3, 2), np.int64)}, "query must be uint64"),
        ({"bits": np.zeros((4, 2), np.uint8)}, "bits must be uint64"),
        ({"bits": np.zeros((4, 4), np.uint64)[:, ::2]}, "not contiguous"),
        ({"bits": np.zeros((4, 0), np.uint64)}, "0 words"),
        ({"offsets": np.array([0, 3])}, "from 0 to 4 vectors"),
        ({"offsets": np.array([0, 1 << 60, 4])}, "offsets fall after page 1"),
        ({"pages": np.array([1])}, "page 1 does not exist"),
        ({"pages": np.array([-(1 << 60)])}, "does not exist"),
    ],
)
def test_bits_that_do_not_fit_are_refused(running, body, change, message):
    arguments = {
        "query": np.zeros((3, 2), np.uint64),
        "bits": np.zeros((4, 2), np.uint64),
        "offsets": np.array([0, 4]),
    }
    with running("hamming", body):
        assert len(scan(**arguments)) == 1
        with pytest.raises(ConfigError, match=message):
            scan(**{**arguments, **change})


def test_signs_that_do_not_fit_are_refused(running, body):
    bits, offsets = np.zeros((4, 2), np.uint64), np.array([0, 4])
    query, scale = np.ones((3, 128), np.float32), np.ones(4, np.float16)
    with running("residual_scan", body):
        for bad, message in (
            ((query[:, :64].copy(), bits, scale, offsets), "2 words of 64 bits"),
            ((query * np.nan, bits, scale, offsets), "values of query are NaN"),
            ((query, bits, scale[:3], offsets), "4 vectors"),
            ((query, bits, scale * np.float16("nan"), offsets), "page 0 holds values"),
        ):
            with pytest.raises(ConfigError, match=message):
                score(*bad)
