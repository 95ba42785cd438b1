"""Which vectors of a page stay, by how much the encoder attended to them; which query tokens stay.

HPC-ColPali (2506.21601, section on attention-guided pruning) keeps the top p % of patches. Kept by
default here: all. Published evidence and ours (docs/retrieval.md) is that merging (pool.py) loses
less, and that a random choice is hard to beat: every report of pruning shows `random_saliency` too.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, Int64, Integer

from ..core import keep_tokens
from ..errors import ConfigError, VectorError
from .vectors import PageVectors

SPREAD = -0.25  # k of DocPruner's rule
_FEWEST_QUERY_TOKENS = 4


def keep_patches(
    page: PageVectors, keep: float | Literal["auto"], *, spread: float = SPREAD
) -> Int64[np.ndarray, "k"]:
    """Ascending rows that stay: all specials and the most salient patches, at least one patch.

    keep: share of the patches, ceil(keep * patches) of them, ties to the lower row; or "auto", the
    rule of DocPruner (2509.23883): saliency > mean + spread * standard deviation of the page's.
    Raises ConfigError for a share outside (0, 1], VectorError without usable saliency.

    >>> page = PageVectors(np.eye(4, dtype=np.float32), saliency=np.array([0.1, 0.9, 0.5, 0.9]))
    >>> keep_patches(page, 0.5)
    array([1, 3])
    """
    patches = page.patches
    if keep != "auto" and not 0 < keep <= 1:
        raise ConfigError(f"--keep {keep} is out of range: a share above 0 and at most 1, or auto")
    if keep == 1 or len(patches) == 0:
        return np.arange(len(page))
    saliency = _saliency(page)
    if keep == "auto":
        seen = saliency[patches].astype(np.float64)
        count = max(1, int((seen > seen.mean() + spread * seen.std()).sum()))
    else:
        # 0.1 * 30 is 3.0000000000000004: without the rounding its ceiling were 4.
        count = math.ceil(round(keep * len(patches), 9))
    specials = torch.from_numpy(page.specials)
    chosen = keep_tokens(
        torch.from_numpy(saliency)[None],
        count + len(specials),
        always=specials if len(specials) else None,
    )
    return chosen[0].numpy()


def _saliency(page: PageVectors) -> Float32[np.ndarray, "m"]:
    if page.saliency is None:
        raise VectorError(
            "pruning needs saliency and the page has none: use --saliency random, or --pool instead"
        )
    bad = ~np.isfinite(page.saliency[page.patches])
    if bad.any():
        row = int(page.patches[bad.argmax()])
        raise VectorError(f"saliency of vector {row} is not finite")
    return np.where(np.isfinite(page.saliency), page.saliency, 0).astype(np.float32)


def page_seed(page: PageVectors, seed: int) -> int:
    """A seed of the page's own, by its vectors: one for all would keep the same positions."""
    return seed << 32 | zlib.crc32(page.vectors.astype(np.float16).tobytes())


def random_saliency(page: PageVectors, seed: int) -> PageVectors:
    """The page with random saliency: what every pruning has to be better than."""
    drawn = np.random.default_rng(seed).random(len(page), np.float32)
    return replace(page, saliency=drawn)


def rare_saliency(page: PageVectors, codes: Integer[np.ndarray, "m"],
                  frequency: Int64[np.ndarray, "k"]) -> PageVectors:  # fmt: skip
    """The page with saliency by rarity: minus on how many pages each vector's centroid is."""
    return replace(page, saliency=-np.asarray(frequency)[codes].astype(np.float32))


def inverse_page_frequency(
    frequency: Int64[np.ndarray, "k"], pages: int
) -> Float32[np.ndarray, "k"]:
    """log((P + 1) / (pages that hold the centroid + 1)) for every centroid."""
    return np.log((pages + 1) / (frequency + 1)).astype(np.float32)


def keep_query_tokens(
    codes: Integer[np.ndarray, "t"], inverse_frequency: Float32[np.ndarray, "k"], keep: float
) -> Int64[np.ndarray, "s"]:
    """Ascending query tokens that stay: those whose nearest centroid is on the fewest pages.

    ceil(keep * tokens) of them, never below 4. Ties go to the lower token. Raises ConfigError.
    """
    if not 0 < keep <= 1:
        raise ConfigError(f"--query-keep {keep} is out of range: a share above 0 and at most 1")
    count = max(math.ceil(round(keep * len(codes), 9)), _FEWEST_QUERY_TOKENS)
    if count >= len(codes):
        return np.arange(len(codes))
    score = torch.from_numpy(inverse_frequency[codes])
    return keep_tokens(score[None], count)[0].numpy()
