"""Whether an index that began with one short text ends as one that was built at once.

    COMPRESS3G_DATA=FOLDER python benchmarks/retrieval_growth.py [--quick] [--json]

Cranfield in the vectors of retrieval_quality.py, its shortest text first, then the others in the
order of their numbers: at once, one document at a time, in twelve additions each of which makes the
index larger by the same factor, and in the same twelve with a codebook that stays the one of the
first text (`--no-grow`). Indexes are real ones on disk, preset `balanced`, searched as anybody
would. Recall is the share of the exact top ten; a difference is that of means over the queries,
with the 95 % interval of 10,000 paired bootstrap draws.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from _corpora import Corpus, TokenVectors, cranfield, part, ready, token_vectors
from _ranking import maxsim, ndcg, ranked
from _report import goal, parser, report

from compress3g.retrieval.config import PRESETS
from compress3g.retrieval.index import Index
from compress3g.retrieval.vectors import PageVectors

SEED = 0
ADDITIONS = 12
NOISE = 0.01  # of recall: half the spread of five codebooks of retrieval_quality.py is .003


@dataclass(frozen=True, slots=True)
class Arena:
    """A corpus with its shortest text first, and what exact search finds in it."""

    tokens: TokenVectors
    order: np.ndarray  # document numbers, in the order of additions
    exact: np.ndarray
    qrels: dict[int, dict[int, int]]

    @property
    def queries(self) -> list[np.ndarray]:
        t = self.tokens
        return [t.query_vectors[a:b].astype(np.float32) for a, b in pairwise(t.query_offsets)]


def open_arena(corpus: Corpus) -> Arena:
    t = token_vectors(corpus)
    lengths = np.diff(t.offsets)
    first = int(np.argmin(lengths))
    order = np.array([first, *(d for d in range(len(lengths)) if d != first)])
    (scores,) = maxsim(
        t.query_vectors, t.query_offsets, lambda a, b: t.vectors[a:b].astype(np.float32), t.offsets
    )
    return Arena(t, order, ranked(scores), corpus.qrels)


@dataclass(frozen=True, slots=True)
class Grown:
    """An index that was filled: what it found, what it took."""

    found: np.ndarray  # documents [queries, 10]
    row: dict[str, Any]


def fill(arena: Arena, folder: Path, ends: Sequence[int], *, grow: bool) -> Grown:
    """An index of all documents, added up to each of `ends`."""
    t, clock, trainings = arena.tokens, time.process_time(), 0
    config = replace(PRESETS["balanced"], seed=SEED, grow=grow)
    with Index.create(folder, dimension=t.vectors.shape[1], config=config) as index:
        for first, last in pairwise((0, *ends)):
            documents = [
                index.document(str(d), [PageVectors(t.vectors[t.offsets[d] : t.offsets[d + 1]])])
                for d in arena.order[first:last]
            ]
            trainings += index.add_documents(documents).retrained
        seconds = time.process_time() - clock
        hits = index.search_vectors(arena.queries, 10)
        found = np.array([[int(h.doc) for h in row] for row in hits])
        info = index.info()
    kept = {n: b for n, b in info.arrays.items() if not n.startswith("store")}
    row = {
        "recall": float(recalls(arena, found).mean()),
        "nDCG@10": float(ndcg(found, arena.qrels).mean()),
        "centroids": info.centroids,
        "trained on": info.trained_on,
        "trained again": trainings,
        "bytes a vector": sum(kept.values()) / info.vectors,
        "kept to grow, bytes a vector": (sum(info.arrays.values()) - sum(kept.values()))
        / info.vectors,
        "cpu seconds": seconds,
    }
    return Grown(found, row)


def recalls(arena: Arena, found: np.ndarray) -> np.ndarray:
    """Of every query."""
    return (arena.exact[:, :10, None] == found[:, None, :]).any(2).mean(1)


def compared(arena: Arena, grown: Grown, once: Grown) -> dict[str, Any]:
    """Differences of the means over queries, with intervals."""
    draws = np.random.default_rng(0).integers(0, len(arena.exact), (10_000, len(arena.exact)))
    out: dict[str, Any] = {}
    for name, measure in (
        ("recall", lambda found: recalls(arena, found)),
        ("nDCG@10", lambda found: ndcg(found, arena.qrels)),
    ):
        difference = measure(grown.found) - measure(once.found)
        low, high = np.quantile(difference[draws].mean(1), (0.025, 0.975))
        out[name] = float(difference.mean())
        out[f"{name}, interval"] = [float(low), float(high)]
    return out


def in_steps(documents: int, steps: int) -> list[int]:
    """1, and so on to all documents, each so many times the one before."""
    return sorted({round(x) for x in np.geomspace(1, documents, steps)})


def main() -> None:
    options = parser(__doc__).parse_args()
    folder = ready("retrieval_growth", options)
    if folder is None:
        return
    corpus = cranfield(folder)
    if options.quick:
        corpus = part(corpus, 25, 250)
    arena = open_arena(corpus)
    count = len(arena.order)
    steps = in_steps(count, 6 if options.quick else ADDITIONS)
    ways = {
        "at once": ([count], True),
        f"{len(steps)} additions": (steps, True),
        f"{len(steps)} additions, --no-grow": (steps, False),
    }
    if not options.quick:
        ways["one document at a time"] = (list(range(1, count + 1)), True)
    made: dict[str, Grown] = {}
    for name, (ends, grow) in ways.items():
        with tempfile.TemporaryDirectory() as scratch:
            made[name] = fill(arena, Path(scratch, "idx"), ends, grow=grow)
        told = "  ".join(f"{k} {v:.4g}" for k, v in made[name].row.items())
        print(f"{name:28}  {told}", flush=True)
    goals, differences = [], {}
    for name, grown in made.items():
        if name == "at once":
            continue
        found = differences[name] = compared(arena, grown, made["at once"])
        print(f"{name:28} less at once: {found}")
        if "--no-grow" not in name:
            high = found["nDCG@10, interval"][1]
            goals += [
                goal(f"{name}: recall less that of at once", found["recall"], -NOISE),
                goal(f"{name}: upper end of nDCG@10's difference", high, 0),
            ]
    report(
        "retrieval_growth", options, seeds=[SEED], goals=goals, differences=differences,
        rows={name: grown.row for name, grown in made.items()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
