"""What the graph over pages finds of real texts, and what it saves.

    COMPRESS3G_DATA=FOLDER python benchmarks/retrieval_graph.py [--quick] [--json]

SciFact in the vectors of retrieval_quality.py, an index on disk by preset `balanced` with --graph.
Every query is searched by scanning all pages and through the graph, which passes on so many pages;
recall is the share of the scan's best ten among the graph's, and that of the exact ten. Processor
time is that of one thread, the median over queries of the least of three runs, taken in turns.
Quick runs are of 250 texts of Cranfield, with a graph all the same.
"""

from __future__ import annotations

import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from dataclasses import replace

import numpy as np
from _corpora import TokenVectors, cranfield, part, ready, scifact, token_vectors
from _ranking import maxsim, ndcg, ranked
from _report import goal, parser, report

from compress3g.retrieval import page_graph
from compress3g.retrieval.config import PRESETS
from compress3g.retrieval.index import Index
from compress3g.retrieval.search_config import SearchConfig
from compress3g.retrieval.vectors import PageVectors

REPEATS = 3
DEPTHS = (200, 500, 1000, 2000)


def settings(pages: int) -> dict[str, SearchConfig]:
    """Ways to search, by name."""
    ways = {"scan of all pages": SearchConfig(graph="off")}
    for n0 in DEPTHS:
        if n0 < pages:
            ways[f"graph, {n0} pages"] = SearchConfig(graph="on", n0=n0)
    return ways


def fill(index: Index, t: TokenVectors) -> None:
    index.add_documents(
        index.document(str(i), [PageVectors(t.vectors[a:b])])
        for i, (a, b) in enumerate(pairwise(t.offsets))
    )


def measured(
    index: Index, t: TokenVectors, ways: dict[str, SearchConfig]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The best ten pages [queries, 10] and milliseconds of each way."""
    queries = [t.query_vectors[a:b].astype(np.float32) for a, b in pairwise(t.query_offsets)]
    found: dict[str, list[np.ndarray]] = {name: [] for name in ways}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for config in ways.values():
        index.rank(queries[:1], config=config)  # the graph is read, pages are mapped
    for query in queries:
        least, best = dict.fromkeys(ways, np.inf), dict[str, np.ndarray]()
        for _ in range(REPEATS):
            for name, config in ways.items():
                clock = time.process_time()
                (ranking,) = index.rank([query], config=config)
                least[name] = min(least[name], time.process_time() - clock)
                best[name] = ranking.page_ids
        for name in ways:
            found[name].append(best[name])
            times[name].append(least[name])
    pages = {name: np.array(rows) for name, rows in found.items()}
    return pages, {name: 1e3 * float(np.median(ms)) for name, ms in times.items()}


def recall(wanted: np.ndarray, found: np.ndarray) -> float:
    return float((wanted[:, :, None] == found[:, None, :]).any(2).mean())


def main() -> None:
    options = parser(__doc__).parse_args()
    folder = ready("retrieval_graph", options)
    if folder is None:
        return
    if options.quick:
        page_graph.FEWEST = 2
    corpus = part(cranfield(folder), 25, 250) if options.quick else scifact(folder)
    t = token_vectors(corpus)
    (scores,) = maxsim(
        t.query_vectors, t.query_offsets, lambda a, b: t.vectors[a:b].astype(np.float32), t.offsets
    )
    exact = ranked(scores)[:, :10]
    ways = settings(len(t.offsets) - 1)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        config = replace(PRESETS["balanced"], graph=True)
        with Index.create(Path(scratch, "idx"), dimension=128, config=config) as index:
            fill(index, t)
            found, times = measured(index, t, ways)
            info = index.info()
    scan = found["scan of all pages"]
    base = ndcg(scan, corpus.qrels).mean()
    for name, pages in found.items():
        rows[name] = {
            "ms": times[name],
            "recall of the scan": recall(scan, pages),
            "recall of exact": recall(exact, pages),
            "nDCG@10, % of the scan's": 100 * float(ndcg(pages, corpus.qrels).mean() / base),
        }
        print(f"{name:24}" + "  ".join(f"{k} {v:.3f}" for k, v in rows[name].items()), flush=True)
    size = (info.arrays["graph"] + info.arrays["pooled"]) / info.pages
    print(f"graph: {size:.0f} bytes a page of {info.bytes_per_page:.0f}")
    deepest = list(rows)[-1]
    faster = times["scan of all pages"] / times[deepest]
    goals = [
        goal(
            f"{deepest}: recall of the scan's best ten", rows[deepest]["recall of the scan"], 0.95
        ),
        goal(f"{deepest}: times less processor time than the scan", faster, 1.0, unit="x"),
    ]
    report(
        "retrieval_graph", options, seeds=[0], goals=goals, rows=rows, corpus=corpus.name,
        pages=info.pages, bytes_per_page=info.bytes_per_page, graph_bytes_per_page=size,
    )  # fmt: skip


if __name__ == "__main__":
    main()
