"""What each way to compress token vectors leaves of a ranking, on Cranfield and SciFact.

    COMPRESS3G_DATA=FOLDER python benchmarks/retrieval_quality.py [--quick] [--json]

Vectors: last hidden states of all-MiniLM-L6-v2, at most 256 word-pieces a text, specials kept,
unit length, un-centred PCA to 128 dimensions, unit length again, half precision. Scores: MaxSim.
`balanced` is the mean over five codebooks, each with a seed of its own; other rows are of one.
Every row: bytes that have to be kept per vector of the corpus (codes alone: each code of a page
once), nDCG@10 by ir_measures, its share of the exact ranking's with the 95 % interval of 10,000
paired bootstrap draws over all queries, and which part of the exact top 10 is within the first n.
Stage 1 of two-stage rows reads 8-bit tables over a page's set of codes, as search does. The rows
named after the paper are its method, measured: its own figures are estimates by its own words.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from _corpora import Corpus, TokenVectors, cranfield, part, ready, scifact, token_vectors
from _ranking import (
    Judge,
    Vectors,
    byte_table,
    maxsim,
    maxsim_of,
    ranked,
    rescored,
    table_scores,
)
from _report import goal, parser, report

from compress3g.retrieval.binary import SignCodec, fit_signs
from compress3g.retrieval.codebook import Codebook, Sampler, sample_size, train_codebook
from compress3g.retrieval.config import PRESETS
from compress3g.retrieval.deduplicate import unique_codes
from compress3g.retrieval.ordering import order_centroids
from compress3g.retrieval.paper import hamming_similarity, quantised_similarity
from compress3g.retrieval.pool import pool
from compress3g.retrieval.prune import keep_patches, random_saliency, rare_saliency
from compress3g.retrieval.residual import fit_codec
from compress3g.retrieval.vectors import PageVectors

DIMENSION = 128
DEPTH = 200  # pages that stage 1 hands on: max(10 k, 200) for the best k = 10
SEED = 0
SEEDS = range(5)  # of the codebooks whose mean `balanced` is: one seed moves nDCG by a point


@dataclass(frozen=True, slots=True)
class Arena:
    """A corpus in vectors, the exact ranking, and the rows so far.

    share: vectors of this arena per vector of the corpus, below 1 once pages are merged.
    """

    tokens: TokenVectors
    judge: Judge
    exact: np.ndarray
    rows: dict[str, dict[str, Any]]
    share: float = 1.0

    def add(self, name: str, bytes_per_vector: float, *orders: np.ndarray) -> None:
        row = self.rows[name] = self.judge.row(orders, self.share * bytes_per_vector)
        low, high = row["interval"]
        print(
            f"  {name:48}{row['bytes']:7.2f}{row['nDCG@10']:8.4f}{row['percent']:7.1f} "
            f"[{low:5.1f},{high:6.1f}]"
            + "".join(f"{row[f'R@{n}']:7.3f}" for n in (10, 50, 100, 200)),
            flush=True,
        )

    def maxsim(self, rows: Vectors, query: np.ndarray | None = None) -> np.ndarray:
        t = self.tokens
        asked = t.query_vectors if query is None else query
        return maxsim(asked, t.query_offsets, rows, t.offsets)[0]


@dataclass(frozen=True, slots=True)
class Coded:
    """A codebook, what it was trained on, the codes of a corpus, and each once a page."""

    book: Codebook
    sample: np.ndarray
    codes: np.ndarray
    unique: np.ndarray
    offsets: np.ndarray

    @property
    def set_bytes(self) -> float:
        """Of the sets of codes, per vector."""
        return self.unique.nbytes / len(self.codes)


@cache
def coded(t: TokenVectors, k: int, seed: int = SEED) -> Coded:
    sample = sample_of(t, sample_size(k), seed)
    book = train_codebook(sample, k, seed)
    codes = book.assign(t.vectors)
    return Coded(book, sample, codes, *unique_codes(codes, t.offsets))


def sample_of(t: TokenVectors, limit: int, seed: int = SEED) -> np.ndarray:
    sampler = Sampler(limit, seed)
    for a, b in pairwise(t.offsets):
        sampler.add(t.vectors[a:b])
    return sampler.sample()


@cache
def decoder(t: TokenVectors, k: int, name: str, seed: int = SEED) -> tuple[Vectors, float]:
    """Decoded vectors of a residual codec, and bytes per vector with code and inverse length."""
    c = coded(t, k, seed)
    codec = fit_codec(name, c.sample, c.book, seed)
    stored, inv_norm = codec.encode(t.vectors, c.codes)
    whole = name in ("int8", "f16")
    norms = 0 if inv_norm is None or whole else inv_norm.itemsize
    size = codec.bytes_per_vector + norms + (0 if whole else c.codes.itemsize)

    def decode(a: int, b: int) -> np.ndarray:
        norm = None if inv_norm is None else inv_norm[a:b]
        return codec.decode(c.codes[a:b], stored[a:b], norm)

    return decode, size


def views_of(t: TokenVectors, c: Coded) -> Iterator[dict[str, PageVectors]]:
    """Every page with each kind of saliency."""
    frequency = np.bincount(c.unique)
    for page, (a, b) in enumerate(pairwise(t.offsets)):
        plain = PageVectors(t.vectors[a:b], kind=t.special[a:b])
        views = {name: replace(plain, saliency=signal[a:b]) for name, signal in t.signals.items()}
        views["rare"] = rare_saliency(plain, c.codes[a:b], frequency)
        views["least last_indegree"] = replace(plain, saliency=-t.signals["last_indegree"][a:b])
        for seed in range(3):
            views[f"random {seed}"] = random_saliency(plain, 1_000_003 * seed + page)
        yield views


def prune_masks(t: TokenVectors, shares: tuple[float, ...]) -> dict[tuple[str, float], np.ndarray]:
    """Rows that stay, for every kind of saliency and every share."""
    kept: dict[tuple[str, float], list[np.ndarray]] = {}
    for views in views_of(t, coded(t, 256)):
        for name, view in views.items():
            for share in shares:
                mask = np.zeros(len(view), bool)
                mask[keep_patches(view, share)] = True
                kept.setdefault((name, share), []).append(mask)
    return {key: np.concatenate(masks) for key, masks in kept.items()}


def open_arena(corpus: Corpus, shares: tuple[float, ...]) -> Arena:
    """The exact ranking and, in the same pass over the vectors, everything pruned."""
    t = token_vectors(corpus)
    print(
        f"\n{corpus.name}: {len(t.offsets) - 1} pages, {len(t.vectors)} vectors, "
        f"{len(corpus.queries)} queries\n"
        f"  {'':48}{'B/vec':>7}{'nDCG@10':>8}{'%':>7} {'95 %':^14}{'R@10':>7}{'R@50':>7}"
        f"{'R@100':>7}{'R@200':>7}"
    )
    masks = prune_masks(t, shares)
    exact, *pruned = maxsim(
        t.query_vectors, t.query_offsets, lambda a, b: t.vectors[a:b].astype(np.float32),
        t.offsets, [None, *masks.values()],
    )  # fmt: skip
    arena = Arena(t, Judge(ranked(exact), corpus.qrels), exact, {})
    arena.add("exact, float16", 2 * DIMENSION, ranked(exact))
    arena.add("single vector, mean of tokens", 0, ranked(t.query_pooled @ t.pooled.T))
    scores = dict(zip(masks, pruned, strict=True))
    for share in shares:
        size = 2 * DIMENSION * float(masks["norm", share].mean())
        for name in dict.fromkeys(n for n, _ in masks if not n.startswith("random")):
            arena.add(f"keep {share:.0%}: {name}", size, ranked(scores[name, share]))
        drawn = [ranked(scores[f"random {seed}", share]) for seed in range(3)]
        arena.add(f"keep {share:.0%}: random, 3 seeds", size, *drawn)
    return arena


def stage_one(t: TokenVectors, k: int, seed: int = SEED) -> np.ndarray:
    """The ranking by codes alone, as search computes it."""
    c = coded(t, k, seed)
    table = byte_table(t.query_vectors.astype(np.float32) @ c.book.centroids.T, t.query_offsets)
    return ranked(table_scores(table, t.query_offsets, c.unique, c.offsets))


def code_rows(arena: Arena, sizes: tuple[int, ...]) -> None:
    for k in sizes:
        c = coded(arena.tokens, k)
        each = len(c.unique) / (len(c.offsets) - 1)
        name = f"codes K={k}, {each:.0f} distinct a page"
        arena.add(name, c.set_bytes, stage_one(arena.tokens, k))


def paper_rows(arena: Arena, k: int, share: float, *, ordered: bool) -> None:
    """2506.21601 as printed: patches by last-layer attention, codes on both sides, Hamming."""
    t, c = arena.tokens, coded(arena.tokens, k)
    signal = t.signals["last_indegree"]
    rows = [
        a + keep_patches(PageVectors(t.vectors[a:b], signal[a:b], kind=t.special[a:b]), share)
        for a, b in pairwise(t.offsets)
    ]
    offsets = np.concatenate(([0], np.cumsum([len(kept) for kept in rows])))
    kept, bounds = unique_codes(c.codes[np.concatenate(rows)], offsets)
    for name, table in (
        ("paper", quantised_similarity(t.query_vectors, c.book)),
        ("paper, but float query", t.query_vectors.astype(np.float32) @ c.book.centroids.T),
    ):
        order_of_kept = ranked(table_scores(table, t.query_offsets, kept, bounds))
        arena.add(f"{name}: K={k}, keep {share:.0%}", kept.nbytes / len(c.codes), order_of_kept)

    def order(table: np.ndarray) -> np.ndarray:
        return ranked(table_scores(table, t.query_offsets, c.unique, c.offsets))

    both = quantised_similarity(t.query_vectors, c.book)
    arena.add(f"paper: K={k}, keep all", c.set_bytes, order(both))
    numbers = {"paper: Hamming of raw numbers": np.arange(k)}
    if ordered:
        numbers["Hamming of numbers by halving"] = order_centroids(
            c.book.centroids, SEED, anneal=False
        )
        numbers["Hamming of annealed numbers"] = order_centroids(c.book.centroids, SEED)
    asked = c.book.assign(t.query_vectors)
    for name, called in numbers.items():
        arena.add(f"{name}, K={k}", c.set_bytes, order(hamming_similarity(asked, k, called)))


def sign_rows(arena: Arena, *, learned: bool) -> None:
    """Sign bits: as they are, centred and rotated, learned; against bits and float queries."""
    t, sample, size = arena.tokens, sample_of(arena.tokens, 60_000), DIMENSION / 8
    kinds = {"signs centred, rotated": fit_signs(sample, SEED)}
    if learned:
        blank = np.zeros(DIMENSION, np.float32)
        kinds["signs"] = SignCodec(blank, np.eye(DIMENSION, dtype=np.float32))
        kinds["signs centred, ITQ"] = fit_signs(sample, SEED, itq=True)
    for name, codec in kinds.items():
        bits, scale = codec.encode(t.vectors)
        asked, turned = codec.encode_query(t.query_vectors)
        signs = partial(_signs, codec, bits, np.ones(len(bits)))
        arena.add(f"{name}, Hamming", size, ranked(arena.maxsim(signs, codec.signs(asked))))
        if name != "signs":
            scaled = partial(_signs, codec, bits, scale)
            arena.add(f"{name}, float query", size + 2, ranked(arena.maxsim(scaled, turned)))


def _signs(codec: SignCodec, bits: np.ndarray, scale: np.ndarray, a: int, b: int) -> np.ndarray:
    return codec.signs(bits[a:b]) * scale[a:b, None].astype(np.float32)


def codec_rows(arena: Arena, k: int, names: tuple[str, ...]) -> None:
    """Residual codecs over all pages."""
    for name in names:
        rows, size = decoder(arena.tokens, k, name)
        arena.add(f"K={k} + {name}, all pages", size, ranked(arena.maxsim(rows)))


def two_stage_rows(arena: Arena, k: int, names: tuple[str, ...], depths: tuple[int, ...]) -> None:
    """Stage 1 by codes, a residual codec over its best pages."""
    order = stage_one(arena.tokens, k)
    for name in names:
        rows, size = decoder(arena.tokens, k, name)
        scores = candidates(arena, order, max(depths), rows)
        for depth in depths:
            arena.add(
                f"K={k}, best {depth} pages by {name}", size + coded(arena.tokens, k).set_bytes,
                rescored(order, depth, scores),
            )  # fmt: skip


def candidates(arena: Arena, order: np.ndarray, depth: int, rows: Vectors) -> np.ndarray:
    t = arena.tokens
    wanted = np.zeros(order.shape, bool)
    np.put_along_axis(wanted, order[:, :depth], True, 1)
    return maxsim_of(t.query_vectors, t.query_offsets, rows, t.offsets, wanted)


def preset_rows(arena: Arena, balanced: str, seeds: Sequence[int] = (SEED,)) -> None:
    """The presets as they search: stage 1 to 200 pages, `lossless` on to 50 and to float16."""
    t, config = arena.tokens, PRESETS["balanced"]
    k, found = config.centroids(len(t.offsets) - 1), []
    for seed in seeds:
        order = stage_one(t, k, seed)
        rows, size = decoder(t, k, config.residual, seed)
        found.append(rescored(order, DEPTH, candidates(arena, order, DEPTH, rows)))
        if len(seeds) > 1:
            arena.add(f"{balanced}, seed {seed}", size + coded(t, k, seed).set_bytes, found[-1])
    order, extra = stage_one(t, k), coded(t, k).set_bytes
    arena.add(balanced, decoder(t, k, config.residual)[1] + extra, *found)
    if arena.share == 1:
        rows, size = decoder(t, k, PRESETS["lossless"].residual)
        second = rescored(order, DEPTH, candidates(arena, order, DEPTH, rows))
        arena.add("lossless", size + extra + 2 * DIMENSION, rescored(second, 50, arena.exact))


def pool_rows(arena: Arena, factor: int) -> None:
    """Merged pages: as they are, with codes alone, and with what `balanced` keeps."""
    t = arena.tokens
    pages = [
        pool(PageVectors(t.vectors[a:b], kind=t.special[a:b]), factor).vectors
        for a, b in pairwise(t.offsets)
    ]
    offsets = np.concatenate(([0], np.cumsum([len(page) for page in pages])))
    merged = replace(t, vectors=np.concatenate(pages), offsets=offsets)
    small = replace(arena, tokens=merged, share=len(merged.vectors) / len(t.vectors))
    x = merged.vectors
    scores = small.maxsim(lambda a, b: x[a:b].astype(np.float32))
    small.add(f"pool x{factor}, float16", 2 * DIMENSION, ranked(scores))
    small.add(f"pool x{factor}, codes K=256", coded(merged, 256).set_bytes, stage_one(merged, 256))
    preset_rows(small, f"pool x{factor}, balanced")


def cranfield_rows(arena: Arena, quick: bool) -> None:
    code_rows(arena, (256, 4096) if quick else (256, 512, 1024, 4096))
    paper_rows(arena, 256, 0.6, ordered=False)
    if not quick:
        paper_rows(arena, 512, 0.4, ordered=True)
    sign_rows(arena, learned=not quick)
    if not quick:
        codec_rows(arena, 1, ("pq16", "pq32"))
        codec_rows(arena, 256, ("res1", "res2", "res4", "pq16"))
        codec_rows(arena, 4096, ("res1", "res2", "res4", "pq16", "pq32", "int8"))
        two_stage_rows(arena, 256, ("res2",), (20, 50, 100, 200))
        two_stage_rows(arena, 4096, ("pq16", "res2"), (20, 50, 100, 200))
    for factor in (2,) if quick else (2, 4):
        pool_rows(arena, factor)
    preset_rows(arena, "balanced", (SEED,) if quick else SEEDS)


def scifact_rows(arena: Arena) -> None:
    code_rows(arena, (256, 4096))
    paper_rows(arena, 256, 0.6, ordered=False)
    sign_rows(arena, learned=False)
    two_stage_rows(arena, 256, ("res2",), (100, 200))
    two_stage_rows(arena, 4096, ("pq16", "res2"), (100, 200))
    pool_rows(arena, 2)
    preset_rows(arena, "balanced", SEEDS)


def goals_of(corpus: str, rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    made = []
    for preset, limit in (("balanced", 99.0), ("lossless", 99.9)):
        row = rows[preset]
        met = goal(f"{corpus}: {preset}, nDCG@10 of exact", row["percent"], limit, unit="%")
        made.append({**met, "interval": row["interval"]})
    return made


def main() -> None:
    options = parser(__doc__).parse_args()
    folder = ready("retrieval_quality", options)
    if folder is None:
        return
    began, rows, goals = time.process_time(), {}, []
    corpora = [cranfield(folder)]
    if options.quick:
        corpora = [part(corpora[0], 25, 250)]
    else:
        corpora.append(scifact(folder))
    for corpus in corpora:
        if corpus.name == "cranfield":
            arena = open_arena(corpus, (0.6, 0.3))
            cranfield_rows(arena, options.quick)
        else:
            arena = open_arena(corpus, (0.6,))
            scifact_rows(arena)
        rows[corpus.name] = arena.rows
        coded.cache_clear()
        decoder.cache_clear()
    print()
    for name, found in rows.items():
        goals += goals_of(name, found)
    seconds = time.process_time() - began
    print(f"{seconds:.0f} CPU seconds")
    report(
        "retrieval_quality", options, seeds=[SEED] if options.quick else list(SEEDS), goals=goals,
        rows=rows, cpu_seconds=seconds,
    )  # fmt: skip


if __name__ == "__main__":
    main()
