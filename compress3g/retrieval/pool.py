"""Fewer vectors per page by merging neighbours: Ward clustering of the rows of X X^T.

The clusters are those of colpali-engine's HierarchicalTokenPooler, which gives 1 - X X^T to Ward
linkage as M features for each of M vectors. The euclidean distance of two such rows is
|X (x_i - x_j)| = |S (x_i - x_j)| with S the root of the D x D matrix X^T X, so D features do.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from ..errors import ConfigError, require
from .vectors import PATCH, PageVectors, normalise


def pool(page: PageVectors, factor: int) -> PageVectors:
    """The page with about 1 / factor of its patches: specials as they are, then merged patches.

    A merged vector is the mean of its cluster, divided by its length; its saliency is the mean, its
    place on the page that of the member nearest to it. Factor 1 and pages of at most one patch come
    back as they are. Raises ConfigError for a factor below 1.
    """
    patches, specials = page.patches, page.specials
    if factor == 1 or len(patches) < 2:
        _check(factor)
        return page
    x = page.vectors[patches].astype(np.float32)
    label = clusters(x, factor)
    merged = normalise(_means(x, label))
    # Opposite vectors can cancel: a member is better than a zero row, which MaxSim cannot use.
    nearest = _nearest_members(x, merged, label)
    lost = ~merged.any(1)
    merged[lost] = x[nearest[lost]]
    assert page.grid is not None
    assert page.kind is not None

    def pooled(signal: Float32[np.ndarray, "m"]) -> Float32[np.ndarray, "c"]:
        whole = _means(signal[patches, None], label)[:, 0]
        return np.concatenate((signal[specials], whole)).astype(np.float32)

    return PageVectors(
        np.concatenate((page.vectors[specials], merged.astype(page.vectors.dtype))),
        None if page.saliency is None else pooled(page.saliency),
        np.concatenate((page.grid[specials], page.grid[patches][nearest])),
        np.concatenate((page.kind[specials], np.full(len(merged), PATCH, np.uint8))),
        {name: pooled(signal) for name, signal in page.signals.items()},
    )


def clusters(x: Float[np.ndarray, "m d"], factor: int) -> Int64[np.ndarray, "m"]:
    """Cluster of every row, counted from 0, max(1, M // factor) clusters at most.

    Ward linkage on the rows of X X^T, cut by number. M = 0 and M = 1 need no linkage. Raises
    ConfigError for a factor below 1.
    """
    _check(factor)
    m = len(x)
    if factor == 1 or m < 2:
        return np.arange(m)
    hierarchy = require("scipy.cluster.hierarchy", extra="retrieval", purpose="merging patches")
    tree = hierarchy.linkage(_distances(x.astype(np.float64)), method="ward")
    label = hierarchy.fcluster(tree, t=max(m // factor, 1), criterion="maxclust")
    return np.asarray(label - 1, np.int64)


def _check(factor: int) -> None:
    if factor < 1:
        raise ConfigError(f"--pool {factor} is out of range: 1 (off), 2, 3 ...")


def _distances(x: Float64[np.ndarray, "m d"]) -> Float64[np.ndarray, "p"]:
    """Distances |X (x_i - x_j)| of all pairs i < j, row by row."""
    gram = x.T @ x if x.shape[1] < len(x) else None
    if gram is None:
        features = x @ x.T
    else:
        values, basis = np.linalg.eigh(gram)
        features = (x @ basis) * np.sqrt(values.clip(0))
    distance = require("scipy.spatial.distance", extra="retrieval", purpose="merging patches")
    pairs: Float64[np.ndarray, "p"] = distance.pdist(features)
    return pairs


def _means(x: Float[np.ndarray, "m d"], label: Int64[np.ndarray, "m"]) -> Float[np.ndarray, "c d"]:
    order = np.argsort(label, kind="stable")
    counts = np.bincount(label)
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    return np.add.reduceat(x[order], starts, axis=0) / counts[:, None]


def _nearest_members(
    x: Float[np.ndarray, "m d"], merged: Float[np.ndarray, "c d"], label: Int64[np.ndarray, "m"]
) -> Int64[np.ndarray, "c"]:
    """For every cluster the row of its member with the largest inner product."""
    near = np.einsum("md,md->m", x, merged[label])
    order = np.lexsort((-near, label))
    first = np.searchsorted(label[order], np.arange(len(merged)))
    return order[first]
