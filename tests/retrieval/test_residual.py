from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.errors import ConfigError, VectorError
from compress3g.retrieval.codebook import train_codebook
from compress3g.retrieval.quantizers import fit_pieces
from compress3g.retrieval.residual import ResidualName, fit_codec, load_codec
from compress3g.retrieval.vectors import normalise

NAMES = get_args(ResidualName)


def clustered(n, d, seed=0):
    random = np.random.default_rng(seed)
    centres = random.standard_normal((20, d))
    return normalise(centres[random.integers(0, 20, n)] + 0.7 * random.standard_normal((n, d)))


@pytest.fixture(scope="module")
def book():
    return train_codebook(clustered(4000, 64), 32, 0)


@pytest.fixture(scope="module")
def codecs(book):
    return {name: fit_codec(name, clustered(4000, 64), book, 0) for name in NAMES}


def stored(codec, x):
    codes = codec.codebook.assign(x)
    return codes, *codec.encode(x, codes)


def error(codec, x):
    """Mean squared distance of decoded vectors, those of codes alone scaled to unit length."""
    decoded = codec.decode(*stored(codec, x))
    return float(((x - normalise(decoded)) ** 2).sum(1).mean())


@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_what_the_table_says(name, codecs):
    x = clustered(50, 64, 1)
    _codes, kept, inv_norm = stored(codecs[name], x)
    wanted = {"none": 0, "res1": 8, "res2": 16, "res4": 32, "pq16": 18, "pq32": 34,
              "int8": 68, "f16": 128}  # fmt: skip
    assert kept.shape == (50, wanted[name])
    assert kept.dtype == np.uint8
    assert codecs[name].bytes_per_vector == wanted[name]
    assert codecs[name].name == name
    if name.startswith("pq"):
        assert inv_norm is None
        return
    assert inv_norm.shape == (50,)
    assert inv_norm.dtype == np.float16


@pytest.mark.parametrize("ladder", [["none", "res1", "res2", "res4", "int8", "f16"],
                                    ["none", "pq16", "pq32", "int8"]])  # fmt: skip
def test_more_bytes_are_never_worse(ladder, codecs):
    x = clustered(1000, 64, 1)  # not the vectors the codecs learned from
    errors = [error(codecs[name], x) for name in ladder]
    assert errors == sorted(errors, reverse=True)


def test_decoded_residuals_have_length_one(codecs):
    for name in ("res1", "res2", "res4", "pq16", "pq32"):
        x = codecs[name].decode(*stored(codecs[name], clustered(100, 64, 1)))
        # the inverse length is kept in half precision, or as one of 256 in steps of 0.64 %
        atol = 3.3e-3 if name.startswith("pq") else 1e-3
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=atol)


def test_whole_vectors_come_back_as_rounded(codecs):
    x = clustered(200, 64, 1)
    half = codecs["f16"].decode(*stored(codecs["f16"], x))
    np.testing.assert_array_equal(half, x.astype(np.float16).astype(np.float32))
    bytes_ = codecs["int8"].decode(*stored(codecs["int8"], x))
    assert (np.abs(bytes_ - x) <= np.abs(x).max(1, keepdims=True) / 254 * 1.0001).all()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_bucket_bytes_follow_their_definition(bits, book, codecs):
    """Bits of dimension d from bit d * bits of the row; the value is the nearest level."""
    codec, x = codecs[f"res{bits}"], clustered(30, 64, 1)
    codes, kept, inv_norm = stored(codec, x)
    levels = codec.quantizer.levels
    assert len(levels) == 1 << bits
    assert (np.diff(levels) > 0).all()
    rest = x - book.centroids[codes]
    for row in range(30):
        whole = int.from_bytes(kept[row].tobytes(), "little")
        value = levels[[whole >> d * bits & (1 << bits) - 1 for d in range(64)]]
        best = np.abs(rest[row][:, None] - levels[None]).min(1)
        # a number in the middle of two levels may go either way in float32
        np.testing.assert_allclose(np.abs(rest[row] - value), best, atol=1e-6)
        unscaled = book.centroids[codes[row]] + value
        assert inv_norm[row] == pytest.approx(1 / np.linalg.norm(unscaled), rel=1e-3)


def test_levels_beat_quantiles(book, codecs):
    """Cut points at quantiles, levels at means (2112.01488), are where the levels start from."""
    x = clustered(4000, 64)
    for bits in (2, 4):
        numbers = (x - book.centroids[book.assign(x)]).ravel().astype(np.float64)
        bucket = np.digitize(numbers, np.quantile(numbers, np.arange(1, 2**bits) / 2**bits))
        means = np.array([numbers[bucket == b].mean() for b in range(2**bits)])
        levels = codecs[f"res{bits}"].quantizer.levels
        nearest = np.abs(numbers[:, None] - levels[None]).min(1)
        assert (nearest**2).mean() < 0.95 * ((numbers - means[bucket]) ** 2).mean()


@pytest.mark.parametrize("name", ["pq16", "pq32"])
def test_pieces_are_the_nearest_words(name, book, codecs):
    codec, x = codecs[name], clustered(40, 64, 1)
    codes, kept, _ = stored(codec, x)
    rest = x - book.centroids[codes]
    q, m = codec.quantizer, int(name[2:])
    turned = normalise(rest) @ q.rotation
    distance = ((turned.reshape(40, m, 1, -1) - q.words) ** 2).sum(-1)
    chosen = np.take_along_axis(distance, kept[:, :m, None].astype(int), 2)[..., 0]
    np.testing.assert_allclose(chosen, distance.min(2), atol=1e-6)


@pytest.mark.parametrize("name", ["pq16", "pq32"])
def test_gains_and_norms_are_the_nearest_of_256(name, book, codecs):
    codec, x = codecs[name], clustered(40, 64, 1)
    codes, kept, _ = stored(codec, x)
    q, m = codec.quantizer, int(name[2:])
    gains, norms = codec.scales
    shape = q.words[np.arange(m), kept[:, :m]].reshape(40, -1) @ q.rotation.T
    rest = x - book.centroids[codes]
    tried = ((rest[:, None] - gains[:, None] * shape[:, None]) ** 2).sum(-1)
    chosen = np.take_along_axis(tried, kept[:, m, None].astype(int), 1)[:, 0]
    np.testing.assert_allclose(chosen, tried.min(1), atol=1e-6)
    length = np.linalg.norm(book.centroids[codes] + gains[kept[:, m], None] * shape, axis=1)
    best = np.abs(1 / length[:, None] - norms).min(1)
    np.testing.assert_allclose(np.abs(1 / length - norms[kept[:, -1]]), best, atol=1e-6)


def test_pieces_share_the_variance_of_uneven_dimensions_alike():
    """Against faiss without a rotation, of numbers whose variances span four powers of ten.

    Ours has a byte for the gain besides, which is worth little where all are of one distribution.
    """
    random = np.random.default_rng(0)
    spread = np.diag(np.logspace(0, -2, 32)) @ np.linalg.qr(random.standard_normal((32, 32)))[0]
    r = (random.standard_normal((6000, 32)) @ spread).astype(np.float32)
    new = (random.standard_normal((2000, 32)) @ spread).astype(np.float32)
    pieces = fit_pieces(r, 4, 0)
    np.testing.assert_allclose(pieces.rotation.T @ pieces.rotation, np.eye(32), atol=1e-5)
    turned = np.log((normalise(r) @ pieces.rotation).var(0)).reshape(4, 8).sum(1)
    assert np.ptp(turned) < 0.5  # of 37 each; dealt out greedily
    import faiss

    plain = faiss.ProductQuantizer(32, 4, 8)
    plain.train(r)
    errors = [
        float(((new - decoded) ** 2).sum())
        for decoded in (pieces.unpack(pieces.pack(new)), plain.decode(plain.compute_codes(new)))
    ]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("name", ["res1", "res2", "res4", "pq16", "pq32"])
def test_asymmetric_scores_equal_those_of_decoded_vectors(name, book, codecs):
    codec, x, query = codecs[name], clustered(60, 64, 1), clustered(5, 64, 2)
    codes, kept, inv_norm = stored(codec, x)
    similarity = (query @ book.centroids.T)[:, codes]
    q = codec.quantizer
    if name.startswith("pq"):
        tables = q.tables(query)
        inner = sum(tables[:, b, kept[:, b]] for b in range(int(name[2:])))
        similarity = similarity + inner * codec.scales[0, kept[:, -2]]
        factor = codec.scales[1, kept[:, -1]]
    else:
        shifts = np.arange(0, 8, q.bits)
        numbers = (kept[:, :, None] >> shifts & (1 << q.bits) - 1).reshape(60, -1)
        similarity = similarity + query @ q.levels[numbers].T
        factor = inv_norm.astype(np.float32)
    expected = query.astype(np.float64) @ codec.decode(codes, kept, inv_norm).T
    # float32 sums of 64 terms in another order
    np.testing.assert_allclose(similarity * factor, expected, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_arrays_bring_the_codec_back(name, book, codecs):
    x = clustered(30, 64, 1)
    again = load_codec(name, book, codecs[name].to_arrays())
    for a, b in zip(stored(codecs[name], x), stored(again, x), strict=True):
        np.testing.assert_array_equal(a, b)  # None for None
    np.testing.assert_array_equal(
        codecs[name].decode(*stored(codecs[name], x)), again.decode(*stored(again, x))
    )


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 40), d=st.sampled_from([32, 64, 96]), k=st.integers(1, 8),
    name=st.sampled_from(NAMES), seed=st.integers(0, 99),
)  # fmt: skip
def test_few_vectors_of_any_dimension_are_enough(n, d, k, name, seed):
    x = clustered(n, d, seed)
    codec = fit_codec(name, x, train_codebook(x, k, seed), seed)
    decoded = codec.decode(*stored(codec, x))
    assert decoded.shape == (n, d)
    assert np.isfinite(decoded).all()
    if name.startswith("pq"):  # every direction is a word of its own; gain and norm are rounded
        np.testing.assert_allclose(decoded, x, atol=1e-2)


def test_what_cannot_be_divided_is_refused(book):
    odd = train_codebook(clustered(50, 12), 4, 0)
    with pytest.raises(ConfigError, match="divisible by 16, not 12"):
        fit_codec("pq16", clustered(50, 12), odd, 0)
    with pytest.raises(ConfigError, match="divisible by 8, not 12"):
        fit_codec("res2", clustered(50, 12), odd, 0)
    with pytest.raises(ConfigError, match="choose from none, res1"):
        fit_codec("zip", clustered(50, 64), book, 0)


@pytest.mark.usefixtures("unchecked")
def test_vectors_and_codes_have_to_fit(codecs):
    with pytest.raises(VectorError, match="3 codes"):
        codecs["res2"].encode(clustered(4, 64), np.zeros(3, np.uint8))
