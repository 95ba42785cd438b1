"""Scores of a few pages from what a segment keeps of their vectors.

A scorer is a function (segment, rows of pages) -> score of each page, made for one query.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Int64

from ..kernels import residual_scan
from .encoding import Encoding
from .segment import PageRows, Segment

Scorer = Callable[[Segment, Int64[np.ndarray, "n"]], Float32[np.ndarray, "n"]]


def centroid_scorer(encoding: Encoding, query: Float32[np.ndarray, "t d"]) -> Scorer:
    """MaxSim over the centroids in float: the table of stage 1 without its rounding to 8 bits."""
    similarity = np.ascontiguousarray((query @ encoding.codebook.centroids.T).T)

    def score(segment: Segment, rows: Int64[np.ndarray, "n"]) -> Float32[np.ndarray, "n"]:
        unique, bounds = segment.arrays["unique"], segment.arrays["unique_offsets"]
        pages = [similarity[unique[bounds[r] : bounds[r + 1]]].max(0).sum() for r in rows]
        return np.asarray(pages, np.float32)

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


def coded_scorer(encoding: Encoding, query: Float32[np.ndarray, "t d"]) -> Scorer:
    """The best score the compressed form allows."""
    if encoding.residual.bytes_per_vector:
        return decoded_scorer(encoding, query)
    return centroid_scorer(encoding, query)


def decoded(encoding: Encoding, rows: PageRows) -> Float32[np.ndarray, "m d"]:
    """The vectors of pages from their codes and residuals."""
    codes = rows.vectors["codes"]
    if encoding.residual.bytes_per_vector:
        kept = rows.vectors["residual"], rows.vectors["inv_norm"]
        return encoding.residual.decode(codes, *kept)
    return encoding.codebook.centroids[codes]
