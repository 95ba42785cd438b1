"""One code per vector: spherical k-means by faiss, and what it is trained on.

A centroid is the mean of its members, not divided by its length: the direction decides who is a
member, the length says how much the members agree. Of the exact top 10 of Cranfield, codes of 4096
means find .751 and those of unit centroids .732; of 256 it is .416 against .421.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, Integer

from ..errors import ConfigError, VectorError, require
from .config import LARGEST
from .vectors import Array, check_vectors, normalise

EXACT_UP_TO = 8192  # centroids; above, a graph over them finds the nearest
_AGREEMENT = 0.99  # of the graph with exact assignment, below which the graph is not used
_ALIKE, _CROWD = 0.9, 16  # inner product of vectors alike; how many are no crowd yet
_BLOCK = 1 << 25  # similarities at a time, 128 MiB
_GROWTH = 1.5  # of an index between two trainings of a codebook that is not full-grown

_log = logging.getLogger("compress3g.retrieval")


def sample_size(k: int) -> int:
    """How many vectors a codebook of k centroids is trained on, where there are as many."""
    return max(64 * k, 200_000)


class Sampler:
    """A sample of all vectors of a stream of pages, in bounded memory; uniform but for crowds.

    Every vector draws a number, the `limit` smallest stay; so the sample depends on the seed and on
    the order of pages, not on how many vectors were expected. per_page: vectors that are drawn from
    a page first, so that one giant page cannot be the whole sample.

    A vector with n > 16 others like it on its page (inner product above 0.9) stays with probability
    16 / n: half of many pages is blank paper, which would take half of the centroids. On planted
    pages, half of them blank, that leaves the rest an energy of .64 instead of .49.
    """

    def __init__(self, limit: int, seed: int, *, per_page: int = 1024) -> None:
        if limit < 1 or per_page < 1:
            raise ConfigError(f"a sample of {limit} vectors, {per_page} a page: both at least 1")
        self._limit, self._per_page = limit, per_page
        self._random, self._thinning = (np.random.default_rng((seed, i)) for i in range(2))
        self._rows: list[Float32[np.ndarray, "n d"]] = []
        self._keys: list[Float[np.ndarray, "n"]] = []
        self._held, self._threshold = 0, np.inf

    def add(self, vectors: Float[np.ndarray, "m d"]) -> None:
        """Takes what the sample needs of one page."""
        key = self._random.random(len(vectors))
        take = key < self._threshold
        if len(vectors) > self._per_page:
            take &= key <= np.partition(key, self._per_page - 1)[self._per_page - 1]
        rows = self._thinned(vectors, np.flatnonzero(take))
        self._rows.append(np.asarray(vectors[rows], np.float32))
        self._keys.append(key[rows])
        self._held += len(rows)
        if self._held > 2 * self._limit:
            self._shrink()

    def _thinned(
        self, vectors: Float[np.ndarray, "m d"], rows: Int64[np.ndarray, "r"]
    ) -> Int64[np.ndarray, "s"]:
        page = torch.from_numpy(np.array(vectors, np.float32))
        alike = ((page[torch.from_numpy(rows)] @ page.T) > _ALIKE).sum(1).numpy()
        stay = self._thinning.random(len(rows)) * alike < _CROWD
        return np.asarray(rows[stay])

    def _shrink(self) -> None:
        rows, keys = np.concatenate(self._rows), np.concatenate(self._keys)
        if len(keys) > self._limit:
            # In the order of the stream: training must not depend on when this was called.
            kept = np.sort(np.argpartition(keys, self._limit - 1)[: self._limit])
            rows, keys = rows[kept], keys[kept]
            self._threshold = float(keys.max())
        self._rows, self._keys, self._held = [rows], [keys], len(keys)

    def sample(self) -> Float32[np.ndarray, "n d"]:
        """At most `limit` vectors in the order of the stream. Raises VectorError if none came."""
        if self._held == 0:
            raise VectorError("no vectors to train a codebook on: the pages are empty")
        self._shrink()
        return self._rows[0]


@dataclass(frozen=True, eq=False)
class Codebook:
    """K centroids [K, D] and what is known of their training.

    centroids: float32, of numbers that half precision holds, in which they are stored.
    asked: the K that was wanted. counts: members in the sample. energy: mean squared distance of
    the sample from its centroids, to notice drift by. agreement: share of the sample that the
    graph over centroids assigns like exact search; 1 where no graph is used. seen: vectors the
    index had when it was trained, 0 where nobody wrote that down.
    """

    centroids: Float32[np.ndarray, "k d"]
    asked: int
    counts: Int64[np.ndarray, "k"]
    energy: float
    agreement: float = 1.0
    seen: int = 0

    @property
    def full_grown(self) -> bool:
        """Whether it was trained on as much as it ever will be, or on nobody knows how much."""
        return not 0 < self.seen < sample_size(self.asked)

    def outgrown_by(self, vectors: int) -> bool:
        """Whether an index of so many vectors needs another: half as many more, or a whole sample.

        Steps of a fixed ratio cost each vector a bounded number of trainings, as in an array that
        grows: three at this ratio, of which the last has seen two thirds of all vectors at least.
        """
        whole = sample_size(self.asked)
        return not self.full_grown and vectors >= min(_GROWTH * self.seen, whole)

    @property
    def k(self) -> int:
        """Number of centroids."""
        return len(self.centroids)

    @property
    def dimension(self) -> int:
        """Of the vectors, D."""
        return int(self.centroids.shape[1])

    @property
    def code_type(self) -> type[np.uint8] | type[np.uint16]:
        """The smallest type that holds a code."""
        return np.uint8 if self.k <= 256 else np.uint16

    @cached_property
    def directions(self) -> Float32[np.ndarray, "k d"]:
        """The centroids divided by their lengths."""
        return normalise(self.centroids)

    @cached_property
    def _graph(self) -> Any:
        return _graph_over(self.directions)

    def assign(self, x: Float[np.ndarray, "n d"]) -> Integer[np.ndarray, "n"]:
        """Code of every row: the centroid whose direction has the largest inner product with it.

        uint8 up to 256 centroids, else uint16. Raises VectorError for another dimension.
        """
        if x.ndim != 2 or x.shape[1] != self.dimension:
            raise VectorError(f"vectors of shape {x.shape}, the codebook has {self.dimension}")
        if self.k > EXACT_UP_TO and self.agreement >= _AGREEMENT:
            return _assign_by_graph(x, self._graph).astype(self.code_type)
        return _assign_exactly(x, self.directions)[0].astype(self.code_type)

    def energy_of(self, x: Float[np.ndarray, "n d"]) -> float:
        """Mean squared distance of vectors from their centroids; far above `energy` is drift."""
        r = np.asarray(x, np.float32) - self.centroids[self.assign(x)]
        return float(np.einsum("nd,nd->", r, r, dtype=np.float64) / len(r))

    def to_arrays(self) -> dict[str, Array]:
        """Everything, as arrays to store."""
        return {
            "centroids": self.centroids,
            "counts": self.counts,
            "facts": np.array([self.asked, self.energy, self.agreement]),
            "seen": np.array([self.seen]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Codebook:
        """The codebook that `to_arrays` stored."""
        asked, energy, agreement = map(float, arrays["facts"])
        return cls(
            np.asarray(arrays["centroids"], np.float32),
            int(asked), np.asarray(arrays["counts"]), energy, agreement,
            int(arrays["seen"][0]) if "seen" in arrays else 0,
        )  # fmt: skip


def train_codebook(
    sample: Float[np.ndarray, "n d"],
    k: int,
    seed: int,
    *,
    iterations: int = 10,
    provisional: bool = False,
) -> Codebook:
    """A codebook of k centroids, each with a member in the sample, by spherical k-means.

    sample: unit vectors. Fewer distinct vectors than k: as many centroids as there are, with a
    logged warning. provisional: another codebook will follow, nothing is worth a warning. Raises
    ConfigError for k outside 1 to 65536, VectorError naming the row of the sample that is NaN, zero
    or not of unit length.
    """
    if not 1 <= k <= LARGEST:
        raise ConfigError(f"--k {k} is out of range: 1 to {LARGEST}")
    sample = np.ascontiguousarray(sample, np.float32)
    check_vectors(sample, "training sample")
    distinct = _distinct_rows(sample)
    level = logging.DEBUG if provisional else logging.WARNING
    if k >= len(distinct):
        if k > len(distinct):
            _log.log(level, "%d centroids: there are only %d distinct vectors", k, len(distinct))
        directions = sample[distinct]
    else:
        directions = _refill(sample, distinct, _kmeans(sample, k, seed, iterations), k)
    return _measure(sample, directions, k, level)


def _kmeans(
    sample: Float32[np.ndarray, "n d"], k: int, seed: int, iterations: int
) -> Float32[np.ndarray, "k d"]:
    faiss = require("faiss", extra="retrieval", purpose="training codebooks")
    kmeans = faiss.Kmeans(
        sample.shape[1], k, niter=iterations, spherical=True, seed=seed,
        min_points_per_centroid=1, max_points_per_centroid=256, gpu=faiss.get_num_gpus() > 0,
    )  # fmt: skip
    kmeans.train(sample)
    trained: Float32[np.ndarray, "k d"] = kmeans.centroids
    return trained


def _distinct_rows(x: Float32[np.ndarray, "n d"]) -> Int64[np.ndarray, "r"]:
    """One row of each kind, by a 64-bit hash of its bits."""
    odd = np.random.default_rng(0).integers(1, 1 << 63, x.shape[1], np.uint64) * 2 + 1
    bits = x.view(np.uint32).astype(np.uint64)
    bits ^= bits >> np.uint64(15)
    key = np.zeros(len(x), np.uint64)
    for d in range(x.shape[1]):  # a product with overflow, column by column: no [n, D] of products
        key = (key ^ bits[:, d]) * odd[d]
        key ^= key >> np.uint64(29)
    return np.sort(np.unique(key, return_index=True)[1])


def _refill(
    sample: Float32[np.ndarray, "n d"],
    distinct: Int64[np.ndarray, "r"],
    directions: Float32[np.ndarray, "k d"],
    k: int,
) -> Float32[np.ndarray, "k d"]:
    """Centroids without members moved to the vectors that are represented worst."""
    for _ in range(3):
        codes, similarity = _assign_exactly(sample, directions)
        empty = np.flatnonzero(np.bincount(codes, minlength=k) == 0)
        if len(empty) == 0:
            break
        worst = distinct[np.argsort(similarity[distinct], kind="stable")[: len(empty)]]
        directions = directions.copy()
        directions[empty] = sample[worst]
    return directions


def _measure(
    sample: Float32[np.ndarray, "n d"],
    directions: Float32[np.ndarray, "k d"],
    asked: int,
    level: int,
) -> Codebook:
    """Means of the members, without the centroids to which nothing in the sample is assigned."""
    codes, _ = _assign_exactly(sample, directions)
    counts = np.bincount(codes, minlength=len(directions))
    sums = np.zeros(directions.shape, np.float64)
    for d in range(sample.shape[1]):
        sums[:, d] = np.bincount(codes, sample[:, d], minlength=len(directions))
    centroids = (sums[counts > 0] / counts[counts > 0, None]).astype(np.float32)
    codes, similarity = _assign_exactly(sample, normalise(centroids))
    counts = np.bincount(codes, minlength=len(centroids))
    squares = np.einsum("kd,kd->k", centroids, centroids, dtype=np.float64)
    # |x - c|^2 of unit vectors, of which `similarity` is <x, c> / |c|
    energy = float(np.mean(1 - 2 * similarity * np.sqrt(squares)[codes] + squares[codes]))
    alive = counts > 0
    if alive.sum() < len(directions):
        _log.log(
            level, "%d of %d centroids have no members: dropped",
            len(directions) - alive.sum(), len(directions),
        )  # fmt: skip
    centroids = centroids[alive]
    agreement = _graph_agreement(sample, centroids) if len(centroids) > EXACT_UP_TO else 1.0
    return Codebook(centroids, asked, counts[alive], max(energy, 0.0), agreement)


def _assign_exactly(
    x: Float[np.ndarray, "n d"], directions: Float32[np.ndarray, "k d"]
) -> tuple[Int64[np.ndarray, "n"], Float32[np.ndarray, "n"]]:
    """The nearest direction of every row and the inner product with it, by products of blocks."""
    codes = np.empty(len(x), np.int64)
    similarity = np.empty(len(x), np.float32)
    right = torch.from_numpy(directions).T
    step = max(1, _BLOCK // len(directions))
    for start in range(0, len(x), step):
        block = torch.from_numpy(np.array(x[start : start + step], np.float32))
        best = (block @ right).max(1)
        codes[start : start + step] = best.indices.numpy()
        similarity[start : start + step] = best.values.numpy()
    return codes, similarity


def _graph_over(directions: Float32[np.ndarray, "k d"]) -> Any:
    """An HNSW graph over the centroids. One thread builds it: two would make it random."""
    hnswlib = require("hnswlib", extra="retrieval", purpose="assigning to many centroids")
    graph = hnswlib.Index(space="ip", dim=directions.shape[1])
    graph.init_index(max_elements=len(directions), M=16, ef_construction=200, random_seed=0)
    graph.add_items(directions, num_threads=1)
    graph.set_ef(64)
    return graph


def _assign_by_graph(x: Float[np.ndarray, "n d"], graph: Any) -> Int64[np.ndarray, "n"]:
    found, _ = graph.knn_query(np.asarray(x, np.float32), k=1, num_threads=torch.get_num_threads())
    return np.asarray(found[:, 0], np.int64)


def _graph_agreement(
    sample: Float32[np.ndarray, "n d"], centroids: Float32[np.ndarray, "k d"]
) -> float:
    """Share of at most 10,000 vectors of the sample whose centroid the graph finds."""
    rows = sample[:: max(1, len(sample) // 10_000)]
    directions = normalise(centroids)
    same: Bool[np.ndarray, "n"] = (
        _assign_by_graph(rows, _graph_over(directions)) == _assign_exactly(rows, directions)[0]
    )
    agreement = float(same.mean())
    if agreement < _AGREEMENT:
        _log.warning(
            "the graph over %d centroids agrees with exact search on %.1f %% only: not used",
            len(centroids), 100 * agreement,
        )  # fmt: skip
    return agreement
