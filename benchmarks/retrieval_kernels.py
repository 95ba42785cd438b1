"""Scans of compressed pages on one thread: compiled kernels, torch, numpy, faiss, maxsim-cpu.

    python benchmarks/retrieval_kernels.py [--quick] [--json]

CPU microseconds a page of 1030 vectors of 128 dimensions, 24 query tokens; all on the same pages in
the same run, in turn, the least of five rounds; codes of the pages are repeated to an index of
20,000, as a call on few pages would measure the call. Pages are clustered unit vectors: a page is
60 to 160 topics of uneven size, and two background topics that fill half of it, as blank paper
does; a vector is its topic's centre plus noise. Codebooks are k-means centroids of a sample.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from _report import goal, parser, report

from compress3g.kernels import hamming
from compress3g.kernels.code_scan import quantise_table, scan, scan_batch
from compress3g.kernels.residual_scan import score_buckets, score_float, score_pq

TOKENS, VECTORS, DIMS, BATCH = 24, 1030, 128, 16
ROUNDS = 5
SEED = 0


@dataclass(frozen=True, slots=True)
class Sizes:
    pages: int  # different ones
    repeat: int  # times they follow each other in the index of codes
    floats: int  # of those, held as floats for the exact peers
    rerank: int  # candidates of one query
    sample: int
    topics: int
    codebooks: tuple[int, ...] = (256, 2048, 4096)


FULL = Sizes(pages=4000, repeat=5, floats=200, rerank=200, sample=120_000, topics=6000)
QUICK = Sizes(pages=800, repeat=25, floats=60, rerank=60, sample=50_000, topics=6000)


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def make_page(random: np.random.Generator, centres: np.ndarray) -> np.ndarray:
    """Vectors of one page: half background, the rest spread unevenly over some of its topics."""
    topics = random.integers(8, len(centres), random.integers(60, 160))
    share = random.dirichlet(np.full(len(topics), 0.4))
    blank = random.integers(0, 8, 2)
    source = np.where(
        random.random(VECTORS) < 0.45,
        blank[random.integers(0, 2, VECTORS)],
        topics[random.choice(len(topics), VECTORS, p=share)],
    )
    noise = random.standard_normal((VECTORS, DIMS), np.float32) * (0.35 / DIMS**0.5)
    return unit(centres[source] + noise)


def make_query(random: np.random.Generator, centres: np.ndarray) -> np.ndarray:
    near = centres[random.integers(8, len(centres), TOKENS)]
    return unit(near + random.standard_normal(near.shape) * (0.6 / DIMS**0.5))


def train(sample: np.ndarray, rows: int) -> np.ndarray:
    kmeans = faiss.Kmeans(DIMS, rows, niter=4, seed=SEED, spherical=True)
    kmeans.cp.min_points_per_centroid = 1
    kmeans.cp.max_points_per_centroid = 64
    kmeans.train(sample)
    return np.asarray(kmeans.centroids).reshape(rows, DIMS)


def least(calls: Mapping[str, tuple[Callable[[], object], int]]) -> dict[str, float]:
    """Least CPU microseconds a page of every call, the calls taking turns."""
    best = dict.fromkeys(calls, float("inf"))
    for call, _ in calls.values():
        call()
    for _, (name, (call, pages)) in itertools.product(range(ROUNDS), calls.items()):
        began = time.process_time()
        call()
        best[name] = min(best[name], (time.process_time() - began) / pages * 1e6)
    return best


@dataclass(frozen=True, slots=True)
class Data:
    queries: np.ndarray  # [BATCH, T, D]
    vectors: np.ndarray  # [floats * M, D]
    offsets: np.ndarray  # of the float pages
    centroids: dict[int, np.ndarray]
    codes: dict[int, np.ndarray]  # of all pages


def generate(sizes: Sizes) -> Data:
    random = np.random.default_rng(SEED)
    centres = unit(random.standard_normal((sizes.topics, DIMS)) + 0.5)
    pages = (make_page(random, centres) for _ in range(sizes.sample // VECTORS + 1))
    sample = np.concatenate(list(pages))
    centroids = {rows: train(sample, rows) for rows in sizes.codebooks}
    codes: dict[int, list[np.ndarray]] = {rows: [] for rows in sizes.codebooks}
    kept = []
    for p in range(sizes.pages):
        page = make_page(random, centres)
        if p < sizes.floats:
            kept.append(page)
        for rows, own in centroids.items():
            nearest = (torch.from_numpy(page) @ torch.from_numpy(own).T).argmax(1).numpy()
            codes[rows].append(nearest.astype(np.uint8 if rows <= 256 else np.uint16))
    queries = np.stack([make_query(random, centres) for _ in range(BATCH)])
    return Data(
        queries,
        np.concatenate(kept),
        np.arange(sizes.floats + 1) * VECTORS,
        centroids,
        {rows: np.concatenate(own) for rows, own in codes.items()},
    )


def unique(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different codes of every page, ascending, and their offsets."""
    pages = [np.unique(page) for page in codes.reshape(-1, VECTORS)]
    return np.concatenate(pages), np.cumsum([0, *map(len, pages)]).astype(np.int64)


def scans(data: Data, sizes: Sizes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Calls on codes, and what they were fed: different codes a page."""
    calls: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    pages = sizes.pages * sizes.repeat
    offsets = np.arange(pages + 1) * VECTORS
    for rows, few in data.codes.items():
        codes = np.tile(few, sizes.repeat)
        fewer, ends = unique(codes)
        tables = [quantise_table(q @ data.centroids[rows].T) for q in data.queries]
        assert torch.equal(scan(tables[0], codes, offsets), scan(tables[0], fewer, ends))
        facts[f"unique codes a page, K={rows}"] = len(fewer) / pages
        each = BATCH * pages
        for name, stream, at in (("all codes", codes, offsets), ("unique codes", fewer, ends)):
            one = (lambda t=tables[0], c=stream, o=at: scan(t, c, o)), pages
            many = (lambda t=tables, c=stream, o=at: scan_batch(t, c, o)), each
            calls[f"code scan K={rows}, {name}"] = one
            calls[f"code scan K={rows}, {name}, batch {BATCH}"] = many
    return calls, facts


def exact(data: Data) -> dict[str, Any]:
    """MaxSim of one query with all float pages in torch: one product, then maxima."""
    query, vectors = torch.from_numpy(data.queries[0]), torch.from_numpy(data.vectors)
    pages = len(data.offsets) - 1
    half = vectors.to(torch.bfloat16)

    def product(q: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (q @ x.T).view(TOKENS, pages, VECTORS).amax(2).sum(0)

    def by_page(q: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([(q @ page.T).amax(1).sum() for page in x.view(pages, VECTORS, DIMS)])

    return {
        "torch f32 MaxSim, one product": (lambda: product(query, vectors), pages),
        "torch f32 MaxSim, page by page": (lambda: by_page(query, vectors), pages),
        "torch bf16 MaxSim, page by page": (lambda: by_page(query.bfloat16(), half), pages),
    }


def reranks(data: Data, sizes: Sizes) -> dict[str, Any]:
    """Second and third stage: candidates in random order, codes of the largest codebook."""
    rows = max(data.centroids)
    n = len(data.vectors)
    codes, query = data.codes[rows][:n], data.queries[0]
    base = data.centroids[rows][codes]
    residual = data.vectors - base
    similarity = query @ data.centroids[rows].T
    norm = np.ones(n, np.float16)
    candidates = np.random.default_rng(1).permutation(sizes.floats)[: sizes.rerank]
    where = (data.offsets, candidates)
    calls: dict[str, Any] = {}
    for parts in (16, 32):
        quantiser = faiss.ProductQuantizer(DIMS, parts, 8)
        quantiser.cp.niter = 2
        quantiser.train(residual[:: max(1, n // 10_000)])
        words = faiss.vector_to_array(quantiser.centroids).reshape(parts, 256, -1)
        tables = np.einsum("tmd,mwd->tmw", query.reshape(TOKENS, parts, -1), words)
        packed = np.pad(quantiser.compute_codes(residual), ((0, 0), (0, 2)))  # all of one scale
        calls[f"re-rank pq{parts}"] = lambda t=tables, p=packed: score_pq(
            similarity, t, codes, p, np.ones((2, 256), np.float32), *where
        )
    for bits in (1, 2, 4):
        cuts = np.quantile(residual[:2000], np.linspace(0, 1, (1 << bits) + 1)[1:-1])
        level = np.searchsorted(cuts, residual).astype(np.uint8)
        levels = np.array([residual[level == v].mean() for v in range(1 << bits)], np.float32)
        single = level[..., None] >> np.arange(bits, dtype=np.uint8) & 1
        packed = np.packbits(single.reshape(n, -1), axis=1, bitorder="little")
        calls[f"re-rank res{bits}"] = lambda b=bits, p=packed, v=levels: score_buckets(
            query, similarity, codes, p, v, norm, *where, bits=b
        )
    scale = np.abs(data.vectors).max(1) / 127
    whole = np.round(data.vectors / scale[:, None]).astype(np.int8)
    half = data.vectors.astype(np.float16)
    calls["exact int8"] = lambda: score_float(query, whole, *where, scale=scale)
    calls["exact f16"] = lambda: score_float(query, half, *where)
    return {name: (call, len(candidates)) for name, call in calls.items()}


def bits(data: Data, sizes: Sizes) -> dict[str, Any]:
    """128 sign bits: ours, numpy's bitwise_count, faiss's Hamming distances."""
    mean = data.vectors[:5000].mean(0)
    rotation = np.linalg.qr(np.random.default_rng(2).standard_normal((DIMS, DIMS)))[0]
    signs = (data.vectors - mean) @ rotation.astype(np.float32) > 0
    packed = np.packbits(signs, axis=1, bitorder="little")
    stored = packed.view(np.uint64)
    query = (data.queries[0] - mean) @ rotation.astype(np.float32)
    asked = np.packbits(query > 0, axis=1, bitorder="little")
    pages, scale = sizes.floats, np.ones(len(stored), np.float16)
    words = asked.view(np.uint64)

    def by_numpy() -> np.ndarray:
        found = []
        for own in stored.reshape(pages, VECTORS, 2):
            differ = np.bitwise_count(words[:, None] ^ own).sum(-1, dtype=np.uint16)
            found.append(differ.min(1).sum())
        return np.array(found)

    def by_faiss() -> np.ndarray:
        distance = np.empty((TOKENS, len(packed)), np.int32)
        faiss.hammings(
            faiss.swig_ptr(asked), faiss.swig_ptr(packed), TOKENS, len(packed), 16,
            faiss.swig_ptr(distance),
        )  # fmt: skip
        return distance.reshape(TOKENS, pages, VECTORS).min(2).sum(0)

    ours = hamming.scan(words, stored, data.offsets).numpy()
    assert (ours == by_numpy()).all()
    assert (ours == by_faiss()).all()
    return {
        "Hamming, 128 bits": (lambda: hamming.scan(words, stored, data.offsets), pages),
        "Hamming, numpy": (by_numpy, pages),
        "Hamming, faiss": (by_faiss, pages),
        "signs, float query": (
            lambda: hamming.score(query, stored, scale, data.offsets),
            pages,
        ),
    }


PEER = """
import sys, time
import numpy as np
import maxsim_cpu
data = np.load(sys.argv[1])
query, vectors = data["query"], np.ascontiguousarray(data["vectors"])
best = float("inf")
for _ in range(6):
    began = time.process_time()
    found = np.asarray(maxsim_cpu.maxsim_scores(query, vectors))
    best = min(best, time.process_time() - began)
expected = np.array([(query @ page.T).max(1).sum() for page in vectors])
assert np.abs(found - expected).max() < 1e-3
print(best / len(vectors) * 1e6)
"""


def maxsim_cpu(data: Data) -> float | str:
    """CPU microseconds a page of maxsim-cpu in an environment of its own, or why it is skipped."""
    pages = min(100, len(data.offsets) - 1)
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        install = [python, "-m", "pip", "install", "-q", "numpy", "maxsim-cpu"]
        if subprocess.run(install, capture_output=True).returncode:
            return "skipped: maxsim-cpu cannot be installed here"
        vectors = data.vectors.reshape(-1, VECTORS, DIMS)[:pages]
        np.savez(Path(folder) / "data.npz", query=data.queries[0], vectors=vectors)
        one = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(
            [python, "-c", PEER, str(Path(folder) / "data.npz")],
            env=one,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            return f"skipped: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}"
        return float(done.stdout)


def goals_of(us: Mapping[str, float], facts: Mapping[str, float]) -> list[dict[str, Any]]:
    scan_us, fewer = us["code scan K=256, all codes"], VECTORS / 4
    brute = min(us[name] for name in us if name.startswith("torch f32"))
    found = [
        goal("K=256 scan", scan_us, 0.5, unit="us a page", at_least=False),
        goal("K=256 scan against the faster torch f32 MaxSim", brute / scan_us, 500),
    ]
    for rows in (256, 2048, 4096):
        if facts[f"unique codes a page, K={rows}"] <= fewer:
            name = f"code scan K={rows}"
            ratio = us[f"{name}, all codes"] / us[f"{name}, unique codes"]
            found.append(goal(f"unique against all codes, K={rows}", ratio, 3))
    for name in [n for n in us if n.endswith(f"batch {BATCH}")]:
        alone = name.removesuffix(f", batch {BATCH}")
        found.append(goal(f"throughput of {BATCH} queries, {alone}", us[alone] / us[name], 2))
    return found


def main() -> None:
    options: argparse.Namespace = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    sizes = QUICK if options.quick else FULL
    data = generate(sizes)
    calls, facts = scans(data, sizes)
    us = least(calls | exact(data) | reranks(data, sizes) | bits(data, sizes))
    peer = "skipped in a quick run" if options.quick else maxsim_cpu(data)
    rows: dict[str, Any] = us | {"maxsim-cpu f32": peer}
    for name, value in (rows | facts).items():
        print(f"{name:44}" + (value if isinstance(value, str) else f"{value:>10.3f}"))
    report(
        "retrieval_kernels",
        options,
        seeds=[SEED],
        goals=goals_of(us, facts),
        rows=rows | facts,
        tokens=TOKENS,
        vectors=VECTORS,
        dims=DIMS,
        pages=sizes.pages * sizes.repeat,
        unit="CPU us a page and query",
    )


if __name__ == "__main__":
    sys.exit(main())
