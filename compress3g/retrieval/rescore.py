"""Scores of a few pages from what a segment keeps of their vectors.

A scorer is a function (segment, rows of pages) -> score of each page, made for one query.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Int64

from ..errors import ConfigError
from ..kernels import hamming, residual_scan
from .binary import SignCodec
from .encoding import Encoding
from .quantizers import Buckets
from .residual import PiecewiseResidual, QuantizedResidual
from .segment import PageRows, Segment

_PAGES = 256  # gathered at a time
Scorer = Callable[[Segment, Int64[np.ndarray, "n"]], Float32[np.ndarray, "n"]]


def centroid_scorer(similarity: Float32[np.ndarray, "t k"]) -> Scorer:
    """MaxSim over the centroids in float: the table of stage 1 without its rounding to 8 bits."""
    table = np.ascontiguousarray(similarity.T)

    def score(segment: Segment, rows: Int64[np.ndarray, "n"]) -> Float32[np.ndarray, "n"]:
        unique, bounds = segment.arrays["unique"], segment.arrays["unique_offsets"]
        out = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), _PAGES):
            block = rows[start : start + _PAGES]
            codes = np.concatenate([unique[bounds[r] : bounds[r + 1]] for r in block])
            if len(codes) and int(codes.max()) >= len(table):
                raise ConfigError(
                    f"code {codes.max()} in a table of {len(table)} rows: codes and codebook do not"
                    " belong together"
                )
            lengths = bounds[block + 1] - bounds[block]
            first = np.cumsum(lengths) - lengths
            out[start : start + _PAGES] = np.maximum.reduceat(table[codes], first).sum(1)
        return out

    return score


def decoded_scorer(encoding: Encoding, query: Float32[np.ndarray, "t d"]) -> Scorer:
    """MaxSim over decoded vectors, one page at a time: the formula, for codecs without a kernel."""

    def score(segment: Segment, rows: Int64[np.ndarray, "n"]) -> Float32[np.ndarray, "n"]:
        pages = [
            (query @ decoded(encoding, segment.take(int(r), int(r) + 1)).T).max(1).sum()
            for r in rows
        ]
        return np.asarray(pages, np.float32)

    return score


def stored_scorer(query: Float32[np.ndarray, "t d"]) -> Scorer:
    """MaxSim over the stored originals."""

    def score(segment: Segment, rows: Int64[np.ndarray, "n"]) -> Float32[np.ndarray, "n"]:
        arrays = segment.arrays
        return residual_scan.score_float(
            query, arrays["store"], segment.offsets, rows, scale=arrays.get("store_scale")
        ).numpy()

    return score


def coded_scorer(
    encoding: Encoding, query: Float32[np.ndarray, "t d"], similarity: Float32[np.ndarray, "t k"]
) -> Scorer:
    """The best score the compressed form allows: residual, else sign bits, else centroids.

    similarity: inner products of the query with the centroids.
    """
    residual = encoding.residual
    if isinstance(residual, PiecewiseResidual):
        return _pieces_scorer(similarity, residual, query)
    if isinstance(residual, QuantizedResidual):
        return _buckets_scorer(similarity, residual.quantizer, query)
    if residual.bytes_per_vector:
        return decoded_scorer(encoding, query)
    if encoding.sign is not None:
        return _signs_scorer(encoding.sign, query)
    return centroid_scorer(similarity)


def _pieces_scorer(
    similarity: Float32[np.ndarray, "t k"],
    residual: PiecewiseResidual,
    query: Float32[np.ndarray, "t d"],
) -> Scorer:
    """Residuals in pieces."""
    words = np.ascontiguousarray(residual.quantizer.tables(query))

    def score(segment: Segment, rows: Int64[np.ndarray, "n"]) -> Float32[np.ndarray, "n"]:
        arrays = segment.arrays
        return residual_scan.score_pq(
            similarity, words, arrays["codes"], arrays["residual"], residual.scales,
            segment.offsets, rows,
        ).numpy()  # fmt: skip

    return score


def _buckets_scorer(
    similarity: Float32[np.ndarray, "t k"], buckets: Buckets, query: Float32[np.ndarray, "t d"]
) -> Scorer:
    """Residuals of a few bits a dimension."""

    def score(segment: Segment, rows: Int64[np.ndarray, "n"]) -> Float32[np.ndarray, "n"]:
        arrays = segment.arrays
        return residual_scan.score_buckets(
            query, similarity, arrays["codes"], arrays["residual"], buckets.levels,
            arrays["inv_norm"], segment.offsets, rows, bits=buckets.bits,
        ).numpy()  # fmt: skip

    return score


def _signs_scorer(sign: SignCodec, query: Float32[np.ndarray, "t d"]) -> Scorer:
    turned = np.zeros((len(query), 64 * sign.words), np.float32)
    turned[:, : query.shape[1]] = sign.encode_query(query)[1]

    def score(segment: Segment, rows: Int64[np.ndarray, "n"]) -> Float32[np.ndarray, "n"]:
        arrays = segment.arrays
        return hamming.score(turned, arrays["bits"], arrays["scale"], segment.offsets, rows).numpy()

    return score


def decoded(encoding: Encoding, rows: PageRows) -> Float32[np.ndarray, "m d"]:
    """The vectors of pages from their codes and residuals."""
    codes = rows.vectors["codes"]
    if encoding.residual.bytes_per_vector:
        kept = rows.vectors["residual"], rows.vectors.get("inv_norm")
        return encoding.residual.decode(codes, *kept)
    return encoding.codebook.centroids[codes]
