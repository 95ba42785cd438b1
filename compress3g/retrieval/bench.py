"""What an index costs and what it finds: bytes per page, processor time per stage, recall."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from ..errors import DocumentError
from .evaluate import exact_run, recall_of
from .index import Index
from .search_config import SearchConfig

_REPEATS = 3


@dataclass(frozen=True, slots=True)
class Bench:
    """milliseconds: median wall time of a search and of its stages. cpu: processor time of one.

    recall: share of the exact top 10 that is found, None when the index keeps no originals.
    """

    pages: int
    queries: int
    tokens: float
    bytes_per_page: float
    milliseconds: dict[str, float]
    cpu: float
    recall: float | None


def sample_queries(
    index: Index, count: int, tokens: int, seed: int
) -> list[Float32[np.ndarray, "_ d"]]:
    """Queries made of vectors of random pages, disturbed a little: some pages fit, most do not.

    Raises DocumentError for an empty index.
    """
    view = index._view
    if view.encoding is None or not len(view):
        raise DocumentError("the index is empty: nothing to measure")
    draw = np.random.default_rng(seed)
    queries = []
    for position in draw.integers(0, len(view.page_ids), count):
        segment, rows, _ = next(view.split(np.asarray([position])))
        bounds = segment.arrays["unique_offsets"][rows[0] : rows[0] + 2]
        codes = segment.arrays["unique"][bounds[0] : bounds[1]]
        x = view.encoding.codebook.directions[draw.choice(codes, tokens)]
        x = x + 0.5 / np.sqrt(x.shape[1]) * draw.standard_normal(x.shape)
        queries.append((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32))
    return queries


def bench(index: Index, queries: Sequence[Float[np.ndarray, "_ d"]], config: SearchConfig) -> Bench:
    """Every query alone, some times over; the median of the best times."""
    walls, cpus, stages = [], [], []
    for query in queries:
        runs = []
        for _ in range(_REPEATS):
            wall, cpu = time.perf_counter(), time.process_time()
            ranking = index.rank([query], config=config)[0]
            runs.append((time.perf_counter() - wall, time.process_time() - cpu, ranking.seconds))
        walls.append(min(r[0] for r in runs))
        cpus.append(min(r[1] for r in runs))
        stages.append({n: min(r[2][n] for r in runs) for n in runs[0][2]})
    milliseconds = {"total": 1e3 * float(np.median(walls))}
    for name in stages[0]:
        milliseconds[name] = 1e3 * float(np.median([s[name] for s in stages]))
    recall = None
    if index.config.store != "none":
        found = [(r.page_ids, r.scores) for r in index.rank(queries, config=config)]
        recall = recall_of(found, exact_run(index._view, queries), min(10, config.k))
    return Bench(
        pages=len(index),
        queries=len(queries),
        tokens=float(np.mean([len(q) for q in queries])),
        bytes_per_page=index.info().bytes_per_page,
        milliseconds=milliseconds,
        cpu=1e3 * float(np.median(cpus)),
        recall=recall,
    )
