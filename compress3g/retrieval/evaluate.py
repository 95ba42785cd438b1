"""How good an index is: compressed against exact, on judged queries, in one run.

Exact is MaxSim over the stored vectors of all pages. Differences come with a paired bootstrap
interval over queries: with a hundred queries nDCG alone moves by two points from luck.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

import numpy as np
from jaxtyping import Float, Float32, Int64

from ..errors import ConfigError, DocumentError, require
from .config import SaliencyName, SignalName
from .encoding import GIVEN, pages_of, stored_signals
from .index import Index
from .judgments import Judgments
from .prune import keep_patches
from .reduce import with_saliency
from .search_config import EvalConfig, SearchConfig
from .segment import PageRows
from .stages import top
from .vectors import PageVectors
from .view import View

MEASURES = ("nDCG@5", "nDCG@10", "R@10", "AP", "RR")
DEPTH = 100  # ranks that are judged
_RESAMPLES = 2000
Prune = Callable[[PageVectors], PageVectors]
Run = list[tuple[Int64[np.ndarray, "_"], Float32[np.ndarray, "_"]]]  # page numbers, scores


@dataclass(frozen=True, slots=True)
class Row:
    """One way to search. ratio: of exact nDCG@10, its 95 % interval; recall: of exact top 10."""

    name: str
    measures: Mapping[str, float]
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    recall: float | None = None


def evaluate(
    index: Index,
    queries: Sequence[Float[np.ndarray, "_ d"]],
    judgments: Judgments,
    config: EvalConfig,
    *,
    search: SearchConfig | None = None,
) -> list[Row]:
    """Rows for exact search, the index as it is, and pruning by every signal and by chance.

    queries: vectors of the queries in the order of `judgments.queries`. Raises ConfigError when the
    index keeps no originals, DocumentError when judgments and documents have no name in common.
    """
    view = index._view
    if view.encoding is None or view.encoding.config.store == "none":
        raise ConfigError("exact scores need the vectors: build the index with --store f16")
    names = _names(index, judgments)
    exact = exact_run(view, queries)
    settings = search or SearchConfig(k=DEPTH)
    compressed = [(r.page_ids, r.scores) for r in index.rank(queries, config=settings)]
    runs = {"exact": exact, "index": compressed}
    for signal, choose in _signals(view, config).items():
        runs[f"exact, keep {config.keep:g} by {signal}"] = exact_run(view, queries, choose)
    return _rows(runs, judgments, names, config.seed)


def missing_signals(index: Index) -> list[str]:
    """Kinds of saliency that cannot be compared: not kept, or not of all pages."""
    kept = stored_signals(index._view.segments)
    return [n for n in get_args(SignalName) if n not in kept]


def _signals(view: View, config: EvalConfig) -> dict[str, Prune]:
    """Functions that prune a page, by the name of the saliency."""
    if not config.keep:
        return {}
    assert view.encoding is not None
    encoding = replace(view.encoding, page_frequency=view.page_frequency)

    def by(name: str) -> Prune:
        def prune(page: PageVectors) -> PageVectors:
            if name != GIVEN:
                page = with_saliency(page, cast(SaliencyName, name), config.seed, encoding)
            return page.take(keep_patches(page, config.keep))

        return prune

    return {name: by(name) for name in ("random", "rare", *stored_signals(view.segments))}


def exact_run(
    view: View,
    queries: Sequence[Float[np.ndarray, "_ d"]],
    choose: Prune | None = None,
) -> Run:
    """The best DEPTH pages of each query by MaxSim over stored, perhaps pruned, vectors."""
    tokens = np.concatenate([np.asarray(q, np.float32) for q in queries])
    starts = np.cumsum([0, *(len(q) for q in queries[:-1])])
    best: Run = [(np.zeros(0, np.int64), np.zeros(0, np.float32)) for _ in queries]
    dead = set(view.snapshot.deleted)
    for segment in view.segments:
        for piece in segment.chunks(0, len(segment)):
            ids, scores = _scores(piece, tokens, starts, choose)
            alive = np.asarray([int(i) not in dead for i in ids], bool)
            best = [_merged(b, ids[alive], s[alive]) for b, s in zip(best, scores, strict=True)]
    return best


def _scores(
    piece: PageRows,
    tokens: Float32[np.ndarray, "t d"],
    starts: Int64[np.ndarray, "q"],
    choose: Prune | None,
) -> tuple[Int64[np.ndarray, "p"], Float32[np.ndarray, "q p"]]:
    out = np.empty((len(starts), len(piece.page_ids)), np.float32)
    for i, page in enumerate(pages_of(piece)):
        vectors = (page if choose is None else choose(page)).vectors
        out[:, i] = np.add.reduceat((tokens @ vectors.T).max(1), starts)
    return piece.page_ids, out


def _merged(
    best: tuple[Int64[np.ndarray, "n"], Float32[np.ndarray, "n"]],
    ids: Int64[np.ndarray, "p"],
    scores: Float32[np.ndarray, "p"],
) -> tuple[Int64[np.ndarray, "k"], Float32[np.ndarray, "k"]]:
    ids, scores = np.concatenate((best[0], ids)), np.concatenate((best[1], scores))
    order = top(scores, ids, DEPTH)
    return ids[order], scores[order]


def _names(index: Index, judgments: Judgments) -> dict[int, str]:
    """The judged name of each page: the document's path, file name or stem, or its `id`."""
    known = judgments.documents
    names: dict[int, str] = {}
    documents = {d.document: d for d in index.documents()}
    rows = index._catalog.query("SELECT page, document FROM pages WHERE deleted IS NULL")
    for page, number in rows:
        document = documents[number]
        path = Path(document.path)
        spellings = (str(document.meta.get("id", "")), document.path, path.name, path.stem)
        names[page] = next((n for n in spellings if n in known), document.path)
    if not known & set(names.values()):
        raise DocumentError(
            f"no judged document is in the index: judged is {sorted(known)[0]!r}, indexed is"
            f" {next(iter(names.values()), 'nothing')!r}; names match by path, file name or `id`"
        )
    return names


def _rows(
    runs: Mapping[str, Run], judgments: Judgments, names: Mapping[int, str], seed: int
) -> list[Row]:
    per_query = {name: _measured(run, judgments, names) for name, run in runs.items()}
    exact = per_query["exact"]
    rows = []
    for name, run in runs.items():
        means = {m: float(np.mean(values)) for m, values in per_query[name].items()}
        if name == "exact":
            rows.append(Row(name, means))
            continue
        ratio, interval = paired_ratio(per_query[name]["nDCG@10"], exact["nDCG@10"], seed)
        rows.append(Row(name, means, ratio, interval, recall_of(run, runs["exact"], 10)))
    return rows


def recall_of(run: Run, exact: Run, n: int) -> float:
    """Mean share of the exact top n that is in the run's top n."""
    shares = [
        len(set(a[:n].tolist()) & set(b[:n].tolist())) / max(len(b[:n]), 1)
        for (a, _), (b, _) in zip(run, exact, strict=True)
    ]
    return float(np.mean(shares))


def _measured(
    run: Run, judgments: Judgments, names: Mapping[int, str]
) -> dict[str, Float[np.ndarray, "q"]]:
    """Each measure of each judged query; a document's score is that of its best page."""
    measures = require("ir_measures", extra="retrieval", purpose="evaluating an index")
    scored = []
    for query, (pages, scores) in zip(judgments.queries, run, strict=True):
        best: dict[str, float] = {}
        for page, score in zip(pages.tolist(), scores.tolist(), strict=True):
            best.setdefault(names[page], score)
        scored += [measures.ScoredDoc(query, d, s) for d, s in best.items()]
    wanted = [measures.parse_measure(m) for m in MEASURES]
    judged = [measures.Qrel(q, d, r) for q, d, r in judgments.triples]
    place = {q: i for i, q in enumerate(judgments.judged)}
    values = {m: np.zeros(len(place)) for m in MEASURES}
    for metric in measures.iter_calc(wanted, judged, scored):
        if metric.query_id in place:
            values[str(metric.measure)][place[metric.query_id]] = metric.value
    return values


def paired_ratio(
    ours: Float[np.ndarray, "q"], theirs: Float[np.ndarray, "q"], seed: int
) -> tuple[float, tuple[float, float]]:
    """Ratio of the means and its 95 % interval, queries drawn with replacement, both alike.

    >>> paired_ratio(np.ones(9), np.ones(9), 0)
    (1.0, (1.0, 1.0))
    """
    draw = np.random.default_rng(seed).integers(0, len(ours), (_RESAMPLES, len(ours)))
    bottom = np.maximum(theirs[draw].mean(1), 1e-12)
    low, high = np.quantile(ours[draw].mean(1) / bottom, [0.025, 0.975])
    return float(ours.mean() / max(theirs.mean(), 1e-12)), (float(low), float(high))
